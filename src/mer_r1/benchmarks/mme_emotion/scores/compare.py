"""Report of judged items: official numbers, their audit, and slow against fast on the same clips.

Hard clips are hard for both modes, so the two are compared by their difference on each clip, audited: an item without
a readable rating counts as zero on its side and stays in the pair.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mer_r1.benchmarks.mme_emotion.judged import Judged, by_mode, first_judgements
from mer_r1.benchmarks.mme_emotion.scores.agreement import agreement_report, runs_of
from mer_r1.benchmarks.mme_emotion.scores.audit import NAMES, audited_report, intervals, item_values, official_report
from mer_r1.benchmarks.mme_emotion.scores.official import ALPHA
from mer_r1.benchmarks.mme_emotion.tasks import TASKS, grouped
from mer_r1.evaluation.summary import SLOW_MINUS_FAST


def score_report(
    items: Sequence[Judged],
    expected: Mapping[str, Collection[str]] | None = None,
    alpha: float = ALPHA,
    seed: int = 0,
    judge: str | None = None,
) -> dict[str, Any]:
    """The whole report of judged items, which may be of both modes, several judges and repetitions.

    The ratings of `judge` are scored, None takes the first one; `expected` is task -> ids that should be judged.

    Returns:
        For items of one mode its `official_report` with `mode`, `judge`, `audited` (see `audited_report`) and, where
        items were judged more than once, `agreement`. For slow and fast: `modes` -> mode -> that report, and
        `differences`.
    """
    modes = by_mode(items)
    reports = {mode: _mode_report(mode, rows, expected, alpha, seed, judge) for mode, rows in modes.items()}
    if len(reports) == 1:
        return next(iter(reports.values()))
    differences = {}
    if {"slow", "fast"} <= modes.keys():
        slow, fast = (first_judgements(modes[mode], judge) for mode in ("slow", "fast"))
        differences[SLOW_MINUS_FAST] = paired_report(slow, fast, alpha, seed)
    return {"alpha": alpha, "modes": reports, "differences": differences}


def _mode_report(
    mode: str,
    rows: Sequence[Judged],
    expected: Mapping[str, Collection[str]] | None,
    alpha: float,
    seed: int,
    judge: str | None,
) -> dict[str, Any]:
    first = first_judgements(rows, judge)
    report = official_report(first, alpha) | {
        "mode": mode,
        "judge": first[0].judge if first else judge,
        "audited": audited_report(first, expected, alpha, seed),
    }
    runs = runs_of(rows)
    return report | ({"agreement": agreement_report(runs, alpha)} if len(runs) > 1 else {})


def paired_report(
    left: Sequence[Judged], right: Sequence[Judged], alpha: float = ALPHA, seed: int = 0
) -> dict[str, Any]:
    """Differences left minus right on the clips of both sides, with 95 % bootstrap intervals.

    Returns:
        `tasks` -> TASK and `overall`, each with `n` pairs and, for `recognition`, `reasoning` and `cot`, `mean`, `low`
        and `high` of the difference; `n_unmatched`, the items that one side lacks.
    """
    sides = [{(item.task, item.id): item_values(item, alpha) for item in side} for side in (left, right)]
    shared = [key for key in sides[0] if key in sides[1]]
    gaps = {key: {name: sides[0][key][name] - sides[1][key][name] for name in NAMES} for key in shared}
    groups = grouped(gaps.items(), lambda entry: entry[0][0])
    tasks = {task: _intervals([gap for _, gap in groups[task]], seed) for task in TASKS if task in groups}
    unmatched = len(sides[0]) + len(sides[1]) - 2 * len(shared)
    return {"n_unmatched": unmatched, "tasks": tasks, "overall": _intervals(list(gaps.values()), seed)}


def _intervals(rows: Sequence[Mapping[str, float]], seed: int) -> dict[str, Any]:
    return {"n": len(rows)} | intervals({name: [row[name] for row in rows] for name in NAMES}, seed)
