"""Report of a folder of predictions: official and audited scores, slow, fast, their difference, and the mean.

The official number of a set is that of the checkpoint with the best score on the test set, as in the reference. The
audited number is that of the last checkpoint, which is not chosen on the test set; with a single checkpoint both are of
the same predictions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mer_r1.benchmarks.mer_unibench.gold import Gold
from mer_r1.benchmarks.mer_unibench.predictions import MODES, Answers
from mer_r1.benchmarks.mer_unibench.scores.audit import Side
from mer_r1.benchmarks.mer_unibench.scores.official import best_checkpoint, official_score
from mer_r1.benchmarks.mer_unibench.scores.tally import resampled
from mer_r1.benchmarks.mer_unibench.sets import HEADLINES, NINE, SETS, nine_way_mean
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.intervals import Array, Interval, interval_of
from mer_r1.evaluation.summary import SLOW_MINUS_FAST

Checkpoints = Mapping[str, Mapping[str, Answers]]
"""Checkpoint -> mode -> answers."""


@dataclass(frozen=True)
class Scoring:
    """Settings of the scoring.

    Attributes:
        official: whether to give the official numbers.
        audited: whether to give the audited ones.
        seed: random seed of the bootstrap.
        resamples: bootstrap resamples.
    """

    taxonomy: Taxonomy
    official: bool = True
    audited: bool = True
    seed: int = 0
    resamples: int = 2000


def score_benchmark(golds: Mapping[str, Gold], predictions: Mapping[str, Checkpoints], how: Scoring) -> dict[str, Any]:
    """The whole report, as JSON values in which NaN may stand, of gold and predictions by canonical name.

    Sets without gold or predictions are listed as missing.

    Returns:
        `sets` (each with `modes`, their `official` and `audited` parts, and the `difference` of slow and fast) and
        `mean` (the same over the nine sets; a mean of fewer is not given).

    Raises:
        UserError: no set has both gold and predictions; or only official numbers are asked for and one is undefined.
    """
    chosen = [name for name in SETS if name in golds and predictions.get(name)]
    if not chosen:
        raise UserError(
            f"no set has both gold ({', '.join(golds) or 'none'}) and predictions ({', '.join(predictions) or 'none'})"
        )
    samples: dict[str, dict[str, Array]] = {}
    sets = {}
    for name in chosen:
        sets[name], samples[name] = _score_set(golds[name], predictions[name], how)
    return {
        "benchmark": "MER-UniBench",
        "wheels": "official" if how.taxonomy.alphabetical else "built-in",
        "tables": how.taxonomy.title,
        "matching": how.taxonomy.compared_by,
        "sets": sets,
        "missing": [name for name in NINE if name not in chosen],
        "mean": _means(sets, samples, how),
    }


def _score_set(gold: Gold, checkpoints: Checkpoints, how: Scoring) -> tuple[dict[str, Any], dict[str, Array]]:
    """The report of one set, and the bootstrap samples of its modes and of their difference."""
    modes = list(dict.fromkeys(mode for entry in checkpoints.values() for mode in entry))
    found: dict[str, Any] = {}
    sides: dict[str, Side] = {}
    samples: dict[str, Array] = {}
    seed = (how.seed, list(SETS).index(gold.entry.name))  # sets are drawn independently, the modes of a set together
    for mode in modes:
        runs = {name: entry[mode] for name, entry in checkpoints.items() if mode in entry}
        found[mode] = {"official": _official(gold, runs, how)} if how.official else {}
        if how.audited:
            last = max(runs)
            sides[mode] = Side(gold, runs[last], how.taxonomy)
            samples[mode] = resampled(sides[mode].tally.only(sides[mode].answered), seed, how.resamples)
            found[mode]["audited"] = {"checkpoint": last, **sides[mode].audit(samples[mode], seed[0], how.resamples)}
    report = {
        "title": gold.entry.title,
        "kind": gold.entry.kind,
        "headline": HEADLINES[gold.entry.kind],
        "manifest": gold.manifest,
        "n_gold": len(gold.values),
        "n_expected": gold.entry.clips,
        "notes": list(gold.notes),
        "modes": found,
        "differences": {},
    }
    slow, fast = (sides.get(mode.value) for mode in ThinkingMode)
    if slow is not None and fast is not None:
        difference, samples[SLOW_MINUS_FAST] = _difference(slow, fast, seed, how.resamples)
        report["differences"] = {SLOW_MINUS_FAST: difference}
    return report, samples


def _official(gold: Gold, runs: Mapping[str, Answers], how: Scoring) -> dict[str, Any]:
    """The reference's number and chosen checkpoint; `error` where the reference stops."""
    scores = {}
    try:
        for name, answers in runs.items():
            scores[name] = official_score(gold.entry.kind, gold.values, answers.values, how.taxonomy)
    except UserError as error:
        if not how.audited:
            raise UserError(f"{gold.entry.title}: {error}") from error
        return {"main": None, "error": str(error)}
    mains = {name: score["main"] for name, score in scores.items()}
    best = best_checkpoint(mains)
    return {"checkpoint": best, **scores[best], "checkpoints": mains}


def _difference(slow: Side, fast: Side, seed: Sequence[int], resamples: int) -> tuple[Interval, Array]:
    """Slow minus fast on the clips that both answered."""
    both = slow.answered & fast.answered
    tallies = [side.tally.only(both) for side in (slow, fast)]
    samples = np.subtract(*(resampled(tally, seed, resamples) for tally in tallies))
    return interval_of(tallies[0].value() - tallies[1].value(), samples, int(both.sum())), samples


def _means(sets: Mapping[str, Any], samples: Mapping[str, Mapping[str, Array]], how: Scoring) -> dict[str, Any]:
    """The nine-way mean of each mode and of the difference; `without` lists the sets without a number."""
    found: dict[str, Any] = {}
    for mode in (*MODES, SLOW_MINUS_FAST):
        if not any(mode in entry["modes"] or mode in entry["differences"] for entry in sets.values()):
            continue
        found[mode] = {}
        if how.official and mode != SLOW_MINUS_FAST:
            mean, without = _mean_of_nine(sets, mode, "official")
            found[mode]["official"] = {"mean": mean, "without": without}
        if how.audited:
            mean, without = _mean_of_nine(sets, mode, "audited")
            drawn = [samples[name][mode] for name in NINE if name not in without]
            score = interval_of(mean, np.mean(drawn, axis=0) if drawn else np.array([]), len(drawn))
            found[mode]["audited"] = {**score, "without": without}
    return found


def _mean_of_nine(sets: Mapping[str, Any], mode: str, kind: str) -> tuple[float, list[str]]:
    """The mean, NaN where a set has no number; and the names of such sets."""
    mains = {}
    for name in NINE:
        value = figure(sets[name], mode, kind).get("mean") if name in sets else None
        if value is not None:
            mains[name] = value
    without = [name for name in NINE if name not in mains]
    return math.nan if without else nine_way_mean(mains), without


def figure(entry: Mapping[str, Any], mode: str, kind: str) -> Mapping[str, Any]:
    """The main number of a set in one mode, or the difference: `mean`, and `low` and `high`; each where it is known."""
    if mode == SLOW_MINUS_FAST:
        found: Mapping[str, Any] = entry["differences"].get(mode, {})
        return found
    part = entry["modes"].get(mode, {}).get(kind, {})
    return {"mean": part.get("main")} if kind == "official" else part.get("score", {})
