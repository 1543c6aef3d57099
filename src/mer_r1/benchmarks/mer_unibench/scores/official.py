"""The official numbers: the reference's, with all its quirks.

Per set, one main number and two more beside it. A wheel on which no gold word stands gives NaN, and so do precision and
recall that are both 0; one NaN makes the mean NaN. A clip without a prediction stops the scoring. Neutral and
unreadable sentiments count as negative. Of several checkpoints the one with the best main number *on the test set* is
reported, set by set. All of this follows the AffectGPT release; `scores.audit` shows what it hides.
"""

import math
from collections.abc import Mapping
from typing import Any, TypedDict

from mer_r1.benchmarks.mer_unibench.sets import NINE, Kind, named, nine_way_mean
from mer_r1.emotions.metrics import hit_rate_report, openset_report, sentiment_report
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError


class OfficialScore(TypedDict):
    """What the reference reports of one set and checkpoint, each in [0, 1] or NaN, and its details in `report`.

    Discrete sets: hit rate, then two zeros (the reference puts them in place of what it computed). Sentiment: weighted
    F1, accuracy, 0. Open-set: mean F, mean precision, mean recall over the wheels on ring 1.
    """

    main: float
    second: float
    third: float
    report: dict[str, Any]


def official_score(
    kind: Kind, gold: Mapping[str, object], predicted: Mapping[str, object], taxonomy: Taxonomy
) -> OfficialScore:
    """The reference's score of one set.

    Args:
        kind: kind of the set.
        gold: clip name -> label string, list of labels, or sentiment value.
        predicted: clip name -> label string, list of labels, or sentiment reply; further names are ignored.
        taxonomy: wheels and words; the official tables give the reference's numbers.

    Raises:
        UserError: where the reference stops: a clip without a prediction, a lone "[", no sentiment but 0.
    """
    report: dict[str, Any]
    if kind == "discrete":
        report = dict(hit_rate_report(gold, predicted, taxonomy))
        means = report[f"mean{len(taxonomy.wheels)}"]
        return {"main": means["hitrate"], "second": 0.0, "third": 0.0, "report": report}
    if kind == "sentiment":
        report = dict(sentiment_report(gold, predicted))
        return {"main": report["waf"], "second": report["accuracy"], "third": 0.0, "report": report}
    report = dict(openset_report(gold, predicted, taxonomy))
    means = report[f"mean{len(taxonomy.wheels)}_level1"]
    return {"main": means["fscore"], "second": means["precision"], "third": means["recall"], "report": report}


def best_checkpoint(mains: Mapping[str, float]) -> str:
    """The checkpoint that the reference reports: the largest main number; the first by name among equals; NaN wins.

    >>> best_checkpoint({"checkpoint_2": 0.5, "checkpoint_1": 0.5, "checkpoint_3": 0.4})
    'checkpoint_1'
    """
    if not mains:
        raise UserError("checkpoints: expected at least one")
    return max(sorted(mains), key=lambda name: math.inf if math.isnan(mains[name]) else mains[name])


def benchmark_mean(datasets: Mapping[str, Any], taxonomy: Taxonomy) -> dict[str, Any]:
    """The benchmark's row from the gold and the predictions of all nine sets, or from nine main numbers.

    Args:
        datasets: set -> main number; or set -> {"gold": name -> gold, "checkpoints": {checkpoint: predictions}}, where
            predictions are name -> label string or sentiment, or {"openset" or "sentiment": such an object}.
        taxonomy: wheels and words.

    Returns:
        `datasets` (in the order given: `best`, the main, second and third number, and `checkpoint`), `table_row` (in
        the published order, percent with two decimals, then the mean) and `mean`.

    Raises:
        UserError: a set is missing or unknown, or `official_score` fails.
    """
    found: dict[str, Any] = {}
    mains: dict[str, float] = {}
    for title, entry in datasets.items():
        entry_set = named(title)
        if isinstance(entry, int | float) and not isinstance(entry, bool):
            found[title], mains[entry_set.name] = {"best": [entry]}, float(entry)
            continue
        scores = _checkpoint_scores(title, entry_set.kind, entry, taxonomy)
        best = best_checkpoint({name: score["main"] for name, score in scores.items()})
        chosen = scores[best]
        found[title] = {"checkpoint": best, "best": [chosen["main"], chosen["second"], chosen["third"]]}
        mains[entry_set.name] = chosen["main"]
    mean = nine_way_mean(mains)
    row = [f"& {100 * value:.2f}" for value in (*(mains[name] for name in NINE), mean)]
    return {"datasets": found, "table_row": row, "mean": mean}


def _checkpoint_scores(title: str, kind: Kind, entry: Any, taxonomy: Taxonomy) -> dict[str, OfficialScore]:
    if not isinstance(entry, dict) or not isinstance(entry.get("checkpoints"), dict) or "gold" not in entry:
        raise UserError(f"{title}: expected a number, or an object with gold and checkpoints, got {entry!r:.60}")
    scores = {}
    for name, predictions in entry["checkpoints"].items():
        key = "sentiment" if kind == "sentiment" else "openset"
        inner = predictions[key] if key in predictions else predictions  # noqa: SIM401 - may be no dictionary
        try:
            scores[name] = official_score(kind, entry["gold"], inner, taxonomy)
        except UserError as error:
            raise UserError(f"{title}, {name}: {error}") from error
    return scores
