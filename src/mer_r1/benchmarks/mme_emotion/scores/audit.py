"""Audit of the official numbers: what they leave out, and its effect.

The official arithmetic drops every item that failed, that the judge answered in another form, or that never reached the
judge; each of these raises a score. Here such items count as zero, and every score comes with the change and a 95 %
bootstrap interval over the items. Ratings are also checked against their steps: the reference does not notice when a
judge rates more or fewer steps than there are, when a rating in another form is skipped (so that the rating of another
step becomes the recognition), or when a rating exceeds 1.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mer_r1.benchmarks.mme_emotion.judged import Judged
from mer_r1.benchmarks.mme_emotion.scores.official import (
    ALPHA,
    ItemScores,
    category_totals,
    parse_ratings,
    score_field,
    totals,
)
from mer_r1.benchmarks.mme_emotion.tasks import TASKS, grouped
from mer_r1.evaluation.intervals import bootstrap, bootstraps

NAMES = ("recognition", "reasoning", "cot")
SHOWN_IDS = 5
ERROR_STEP = "Error: "
"""Prefix of the step text of a failed extraction in the reference; it is judged like any other."""

_STEP = re.compile(r"\bstep\s*(\d+)\s*[:.)]", re.IGNORECASE)
_ZERO = ItemScores(0.0, 0.0, 0)

Report = dict[str, Any]


def official_report(items: Sequence[Judged], alpha: float = ALPHA) -> Report:
    """The reference's numbers of items that are judged once each; `alpha` in [0, 1] weighs recognition in CoT.

    Returns:
        `alpha`; `tasks` -> TASK -> `count`, `sum_recognition`, `sum_reasoning`, `sum_steps`, `recognition`,
        `reasoning`, `cot`, `avg_step` and `categories` -> gold label -> the same; `overall` with the same eight
        figures over all items in one pool, read by the fraction parser.
    """
    tasks: Report = {}
    groups = grouped(items, lambda item: item.task)
    for name in filter(groups.__contains__, TASKS):
        rows = groups[name]
        scored = [score_field(row.score, TASKS[name].fraction) for row in rows]
        pairs = [(row.gold, scores) for row, scores in zip(rows, scored, strict=True)]
        categories = category_totals(pairs, TASKS[name], alpha)
        tasks[name] = asdict(totals(scored, alpha)) | {
            "categories": {label: asdict(entry) for label, entry in categories.items()}
        }
    pooled = totals([score_field(item.score, fraction=True) for item in items], alpha)
    return {"alpha": alpha, "tasks": tasks, "overall": asdict(pooled)}


def audited_report(
    items: Sequence[Judged],
    expected: Mapping[str, Collection[str]] | None = None,
    alpha: float = ALPHA,
    seed: int = 0,
    resamples: int = 2000,
) -> Report:
    """The same scores with every item in the denominator, and checks of the ratings.

    Args:
        items: items judged once each.
        expected: task -> ids that should be judged; None if unknown, so that none count as missing.
        alpha: weight of recognition in CoT.
        seed: random seed of the bootstrap.
        resamples: bootstrap resamples.

    Returns:
        `tasks` -> TASK and `overall`, each with `n` (items in the denominator), `n_scored`, `n_failed` (no reply),
        `n_unparsed` (a reply that cannot be read), `n_missing`, and for `recognition`, `reasoning` and `cot`
        `official`, `audited`, `change` and the interval `low`, `high` of the audited score; `checks` as in `checked`.
        All items of an expected task without judged items are missing.
    """
    wanted = {name: frozenset(ids) for name, ids in (expected or {}).items()}
    groups = grouped(items, lambda item: item.task)
    tasks: Report = {}
    for name in TASKS:
        rows = groups.get(name, [])
        if rows or wanted.get(name):
            missing = len(wanted.get(name, frozenset()) - {row.id for row in rows})
            scores = [score_field(row.score, TASKS[name].fraction) for row in rows]
            tasks[name] = _audited(rows, scores, missing, alpha, seed, resamples)
    missing = sum(entry["n_missing"] for entry in tasks.values())
    scores = [score_field(item.score, fraction=True) for item in items]
    overall = _audited(items, scores, missing, alpha, seed, resamples)
    return {"missing_known": expected is not None, "tasks": tasks, "overall": overall}


def checked(items: Iterable[Judged]) -> Report:
    """Checks of ratings against steps: counts, and the first ids of each kind.

    Returns:
        `n_steps_known`: items with ratings whose steps can be counted; `fewer_ratings` and `more_ratings` than steps
        among them; `skipped_ratings`: the task's parser sees fewer ratings than there are, so that another step may
        have become the recognition; `above_one`: a rating exceeds 1; `failed_extractions`: the "steps" are an error
        message; `repeated_ids`: items beyond the first of an id. Each of these is `{"n": ..., "ids": [...]}`.
    """
    known, found = 0, dict[str, list[str]]()
    seen: set[tuple[str, str]] = set()
    for item in items:
        ratings = parse_ratings(item.score, TASKS[item.task].fraction) or []
        everything = parse_ratings(item.score, fraction=True) or []
        steps = count_steps(item.step) if ratings else None
        surplus = len(ratings) - steps if steps else 0
        known += steps is not None
        kinds = {
            "fewer_ratings": surplus < 0,
            "more_ratings": surplus > 0,
            "skipped_ratings": len(ratings) < len(everything),
            "above_one": any(rating > 1 for rating in ratings),
            "failed_extractions": (item.step or "").startswith(ERROR_STEP),
            "repeated_ids": (item.task, item.id) in seen,
        }
        seen.add((item.task, item.id))
        for kind, present in kinds.items():
            found.setdefault(kind, []).extend([item.id] if present else [])
    return {"n_steps_known": known} | {
        kind: {"n": len(ids), "ids": list(dict.fromkeys(ids))[:SHOWN_IDS]} for kind, ids in found.items()
    }


def count_steps(step: str | None) -> int | None:
    """Number of distinct step numbers in an extracted text; None if it has none, or is an error message.

    >>> count_steps("<step>Step 1: He frowns. Step 2: The emotion is anger.</step>")
    2
    """
    if not step or step.startswith(ERROR_STEP):
        return None
    return len({int(number) for number in _STEP.findall(step) if len(number) < 6}) or None


def item_values(item: Judged, alpha: float = ALPHA) -> dict[str, float]:
    """Audited recognition, reasoning and CoT of one item: 0 where it cannot be read."""
    scores = score_field(item.score, TASKS[item.task].fraction) or _ZERO
    return {"recognition": scores.recognition, "reasoning": scores.reasoning, "cot": scores.cot(alpha)}


def intervals(columns: Mapping[str, Iterable[float]], seed: int) -> dict[str, dict[str, float | None]]:
    """`mean`, `low` and `high` of each column, see `bootstrap`."""
    found = bootstraps(columns, seed=seed)
    return {name: {"mean": i["mean"], "low": i["low"], "high": i["high"]} for name, i in found.items()}


def _audited(
    rows: Sequence[Judged], values: Sequence[ItemScores | None], missing: int, alpha: float, seed: int, resamples: int
) -> Report:
    """One pool of items with their scores (None: not readable) and the number of missing ones."""
    unread = [row for row, scores in zip(rows, values, strict=True) if scores is None]
    failed = sum(row.score is None for row in unread)
    everything = [scores or _ZERO for scores in values] + [_ZERO] * missing
    official, audited = asdict(totals(values, alpha)), asdict(totals(everything, alpha))
    report: Report = {
        "n": len(everything),
        "n_scored": len(rows) - len(unread),
        "n_failed": failed,
        "n_unparsed": len(unread) - failed,
        "n_missing": missing,
    }
    for name in NAMES:
        each = [scores.cot(alpha) if name == "cot" else getattr(scores, name) for scores in everything]
        interval = bootstrap(each, seed=seed, resamples=resamples)
        report[name] = {
            "official": official[name],
            "audited": audited[name],
            "change": audited[name] - official[name],
            "low": interval["low"],
            "high": interval["high"],
        }
    return report | {"checks": checked(rows)}
