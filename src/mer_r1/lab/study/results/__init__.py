"""From finished runs to tables, intervals, claims, figures and the page docs/study.md."""
