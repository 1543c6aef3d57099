"""One self-contained HTML page about a run: its scores, its learning curves, its best and worst clips.

The page only reads what a run has saved: records of predictions, training logs, the manifest and its clips. It needs no
model, no network and no script. A missing part is named in its place.
"""

from mer_r1.evaluation.report.page import write_report

__all__ = ["write_report"]
