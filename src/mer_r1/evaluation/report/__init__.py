"""One self-contained page about a run: what it scored, how it learnt, and where it was right and wrong.

The page only reads what a run has saved: records of predictions, training logs, the manifest and its clips. It needs no
model, no network and no script, and whatever part is missing is said in its place.
"""

from mer_r1.evaluation.report.page import write_report

__all__ = ["write_report"]
