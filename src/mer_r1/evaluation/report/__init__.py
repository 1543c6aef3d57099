"""One self-contained HTML page about a run: its scores, its learning curves, its best and worst clips."""

from mer_r1.evaluation.report.page import write_report

__all__ = ["write_report"]
