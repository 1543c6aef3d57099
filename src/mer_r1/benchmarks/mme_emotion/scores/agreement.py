"""Agreement of judges, or of repeated judgements, and its effect on the scores.

The same steps are rated several times, by one judge repeatedly or by two. Recognition is compared item by item (share
of equal ratings, and Cohen's kappa, which subtracts the agreement of chance), reasoning by the ratings of the steps
before the last, where both runs have equally many. The effect shows in each run's official scores.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

from mer_r1.benchmarks.mme_emotion.judged import Judged
from mer_r1.benchmarks.mme_emotion.scores.audit import NAMES, official_report
from mer_r1.benchmarks.mme_emotion.scores.official import ALPHA, parse_ratings
from mer_r1.benchmarks.mme_emotion.tasks import TASKS, grouped
from mer_r1.errors import UserError

Ratings = Mapping[tuple[str, str, str], list[float]]


def runs_of(items: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Items by judge and repetition: "gpt-4o #1", "gpt-4o #2", ..."""
    return grouped(items, lambda item: f"{item.judge or 'judge'} #{item.repeat + 1}")


def agreement_report(runs: Mapping[str, Sequence[Judged]], alpha: float = ALPHA) -> dict[str, Any]:
    """Agreement of at least two runs of judgements of the same items, and the scores of each run.

    Returns:
        `pairs` -> "A | B" -> `n` (items both rated), `n_one_only` (rated in one run only), `same_recognition`
        (share), `kappa` (None where chance alone would agree on everything), `same_number` (share with equally many
        ratings), `same_step_ratings` (share of equal ratings before the last, over items with equally many); `runs`
        -> name -> the official overall `recognition`, `reasoning`, `cot` and `count`; `spread` -> score -> `low`,
        `high`, `mean`, `deviation` over the runs.

    Raises:
        UserError: fewer than two runs, or no item that two runs share.
    """
    if len(runs) < 2:
        raise UserError(f"agreement: got {len(runs)} run of judgements, expected at least two")
    rated = {name: _ratings(items) for name, items in runs.items()}
    pairs = {f"{a} | {b}": _pair(rated[a], rated[b]) for a, b in combinations(runs, 2)}
    if not any(pair["n"] for pair in pairs.values()):
        raise UserError("agreement: no item was rated in two runs; expected the same tasks and ids in both")
    scores = {}
    for name, items in runs.items():
        overall = official_report(items, alpha)["overall"]
        scores[name] = {key: overall[key] for key in (*NAMES, "count")}
    return {"pairs": pairs, "runs": scores, "spread": {name: _spread(scores, name) for name in NAMES}}


def cohen_kappa(left: Sequence[Hashable], right: Sequence[Hashable]) -> float | None:
    """Agreement beyond chance of two raters (Cohen 1960): (p - e) / (1 - e), at most 1; None where e is 1.

    p is the share of equal pairs, e the share that the two raters' frequencies give by chance.

    >>> cohen_kappa([1, 1, 0, 0], [1, 0, 0, 0])
    0.5
    """
    n = len(left)
    same = sum(a == b for a, b in zip(left, right, strict=True))
    first, second = Counter(left), Counter(right)
    chance = sum(count * second[value] for value, count in first.items())
    return None if not n or chance == n * n else (same / n - chance / n**2) / (1 - chance / n**2)


def _ratings(items: Sequence[Judged]) -> Ratings:
    found = {}
    times: Counter[tuple[str, str]] = Counter()  # several items of one id in a file are kept apart by their number
    for item in items:
        times[item.task, item.id] += 1
        ratings = parse_ratings(item.score, TASKS[item.task].fraction)
        if ratings:
            found[item.task, item.id, f"{item.mode} {times[item.task, item.id]}"] = ratings
    return found


def _pair(a: Ratings, b: Ratings) -> dict[str, Any]:
    shared = [(a[key], b[key]) for key in a if key in b]
    left, right = [x[-1] for x, _ in shared], [y[-1] for _, y in shared]
    same_number = [(x, y) for x, y in shared if len(x) == len(y)]
    steps = [p == q for x, y in same_number for p, q in zip(x[:-1], y[:-1], strict=True)]
    return {
        "n": len(shared),
        "n_one_only": len(a) + len(b) - 2 * len(shared),
        "same_recognition": fmean(p == q for p, q in zip(left, right, strict=True)) if shared else None,
        "kappa": cohen_kappa(left, right),
        "same_number": len(same_number) / len(shared) if shared else None,
        "same_step_ratings": fmean(steps) if steps else None,
    }


def _spread(scores: Mapping[str, Mapping[str, float]], name: str) -> dict[str, float]:
    values = [entry[name] for entry in scores.values()]
    return {"low": min(values), "high": max(values), "mean": fmean(values), "deviation": stdev(values)}
