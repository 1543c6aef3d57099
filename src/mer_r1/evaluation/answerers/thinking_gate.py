"""The gate of adaptive thinking: which fast answers are followed by reasoning, and what that is worth.

A gate holds a score of the fast answer, which costs no further token, and a threshold: the model reasons where the
score is below it. Scores are linear in the features of a fast answer:

- confidence: geometric mean of the probabilities of the answer's tokens (VideoAuto-R1, arXiv 2601.05175, gates its
  second answer by it);
- margin: difference between the probabilities of the first and the second category, mean over the wheels;
- evenness: minus the entropy over a wheel's categories, as a share of the highest possible one, mean over the wheels;
- lead: F1 of the fast answer minus F1 of the slow one, as a ridge regression on all features predicts it. Below minus
  the price of the reasoning's tokens, reasoning pays. Its curve is that of predictions for left-out clips.

Scores and thresholds are chosen on validation clips, never on test clips, and kept beside the model.

Shapes: N clips, F features.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mer_r1.data.claim import check_claim, weights_digest
from mer_r1.data.jsonl import read_object, write_atomically
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.two_answers import TWICE
from mer_r1.errors import UserError, brief
from mer_r1.evaluation.intervals import Array, Interval, bootstrap
from mer_r1.evaluation.records import Record
from mer_r1.weights import model_path

GATE_FILE = "think_auto.json"
CANDIDATES = 101
"""Thresholds that are tried: from never to always reasoning, in equal shares of the validation clips."""
PENALTY = 30.0
"""Strength of the ridge penalty on standardised features, in clips."""
FOLDS = 5
RESAMPLES = 400
"""Bootstrap resamples of a point, over clips."""
FEATURES = ("confidence", "surprise", "margin", "evenness", "words")
SINGLE = ("confidence", "margin", "evenness")
"""Scores that are one feature; of equally good scores the first is taken, so `LEAD` comes last."""
LEAD = "lead"
SCORES = (*SINGLE, LEAD)

Both = tuple[Record, Record]
"""Fast and slow record of one clip and draw."""


@dataclass(frozen=True)
class Point:
    """Result of one threshold: share of clips with reasoning, mean F1 with its 95 % interval, mean generated tokens."""

    threshold: float
    share: float
    f1: float
    tokens: float
    low: float
    high: float


@dataclass(frozen=True)
class Gate:
    """Score of a fast answer, and the threshold below which the model reasons.

    Attributes:
        threshold: the model reasons where the score of its fast answer is below it.
        score: "confidence", "margin", "evenness" or "lead".
        weights: feature -> its weight in the score.
        offset: the score where all features are 0.
        chosen_on: manifest, split, wheels and temperature of the answers it was chosen on, and their number.
        curve: results of the thresholds on those clips, from never to always reasoning.
    """

    threshold: float
    score: str
    weights: dict[str, float]
    offset: float
    chosen_on: dict[str, Any]
    curve: list[Point]

    @classmethod
    def by_confidence(cls, threshold: float) -> "Gate":
        """The gate of a threshold of the answer confidence."""
        return cls(threshold, SINGLE[0], {SINGLE[0]: 1.0}, 0.0, {}, [])

    def score_of(self, fast: Record) -> float:
        """Score of a fast answer; minus infinity where it has no words, or a feature of the score is unknown."""
        found = features(fast)
        known = [weight * x for name, weight in self.weights.items() if (x := found[name]) is not None]
        return self.offset + math.fsum(known) if fast.labels and len(known) == len(self.weights) else -math.inf

    def reasons(self, fast: Record) -> bool:
        """Whether slow thinking follows a fast answer."""
        return self.score_of(fast) < self.threshold

    def within(self, tokens: float) -> "Gate":
        """The gate with the threshold that spends at most so many tokens per clip, and as many of them as it can.

        Raises:
            UserError: the validation curve does not reach that number.
        """
        if not self.curve[0].tokens <= tokens <= self.curve[-1].tokens:
            least, most = math.ceil(10 * self.curve[0].tokens) / 10, math.floor(10 * self.curve[-1].tokens) / 10
            raise UserError(
                f"--budget: got {tokens:g} tokens per clip, expected {least} to {most}, which this model takes "
                "from never to always reasoning on its validation clips"
            )
        return replace(self, threshold=[p for p in self.curve if p.tokens <= tokens][-1].threshold)

    @property
    def point(self) -> Point:
        """Result of the threshold on the validation clips."""
        return next(point for point in self.curve if point.threshold == self.threshold)


@dataclass(frozen=True)
class Candidate:
    """A score, and how well it orders the validation clips by what reasoning gains there.

    Attributes:
        gate: the gate with this score and the threshold of the highest value.
        correlation: of minus the score with the gain in F1, slow minus fast.
        auc: probability that a clip where slow scores higher has a lower score than one where fast does.
        lift: mean height of the curve of F1 above that of a random choice of as many clips.
    """

    gate: Gate
    correlation: float
    auc: float
    lift: Interval


def features(fast: Record) -> dict[str, float | None]:
    """Features of a fast answer, by the names in `FEATURES`; None where it has no confidence, or none in categories."""
    sure = fast.sureness
    wheels = [np.asarray([p or 0.0 for p in wheel.values()]) for wheel in fast.confidence.values()]
    shares = [np.sort(wheel / wheel.sum())[::-1] for wheel in wheels if len(wheel) > 1 and wheel.sum() > 0]
    margins = [float(share[0] - share[1]) for share in shares]
    evenness = [float(np.sum(share * np.log(np.maximum(share, 1e-12)))) / math.log(len(share)) for share in shares]
    return {
        "confidence": sure,
        "surprise": None if sure is None else -math.log(max(sure, 1e-4)),
        "margin": math.fsum(margins) / len(margins) if margins else None,
        "evenness": math.fsum(evenness) / len(evenness) if evenness else None,
        "words": float(len(fast.labels)),
    }


def both_tokens(fast: Record, slow: Record) -> int:
    """Tokens generated for a clip with a fast answer and reasoning."""
    return slow.tokens if slow.form == TWICE else fast.tokens + slow.tokens


def pairs(records: Sequence[Record]) -> list[Both]:
    """(Fast, slow) records of each clip and draw that has both, scored."""
    slow = {
        (record.id, record.draw): record for record in records if record.mode == ThinkingMode.SLOW and record.scores
    }
    fast = [record for record in records if record.mode == ThinkingMode.FAST and record.scores]
    return [(record, slow[record.id, record.draw]) for record in fast if (record.id, record.draw) in slow]


def at_gate(both: Sequence[Both], gate: Gate) -> Point:
    """Result of a gate on clips with records of both modes, from `pairs`."""
    return _point(both, [gate.reasons(fast) for fast, _ in both], gate.threshold)


def oracle(both: Sequence[Both]) -> Point:
    """Upper bound: slow only where it scores higher than fast, which no gate can know."""
    return _point(both, (_f1s(both, 1) > _f1s(both, 0)).tolist(), math.nan)


def alone(both: Sequence[Both], side: int) -> Point:
    """Result of the fast answers (side 0) or the slow ones (side 1) alone; no clip pays for both."""
    records = [pair[side] for pair in both]
    return _point([(record, record) for record in records], [False] * len(records), math.nan)


def curve(both: Sequence[Both], scores: Iterable[float]) -> list[Point]:
    """Results of thresholds of these scores, (N,), from never to always reasoning, in steps of equal shares of clips.

    A score of minus infinity always reasons.
    """
    scores = list(scores)
    known = sorted(score for score in scores if math.isfinite(score))
    places = [round(step * (len(known) - 1) / (CANDIDATES - 2)) for step in range(CANDIDATES - 1)]
    # Above the last one every clip is reasoned about.
    thresholds = sorted({*(known[place] for place in places), known[-1] + 1.0}) if known else [0.0]
    return [_point(both, [score < threshold for score in scores], threshold) for threshold in thresholds]


def candidates(
    records: Sequence[Record], chosen_on: Mapping[str, Any], token_price: float = 0.0, scores: Sequence[str] = SCORES
) -> list[Candidate]:
    """The scores with their thresholds, the best first: that of the highest lift on validation clips.

    The threshold is the one with the highest value, mean F1 minus the price of the mean tokens; of equally good ones
    the one with the fewest tokens.

    Args:
        records: records of both modes on the same clips.
        chosen_on: manifest and split, kept with the result.
        token_price: F1 that a token costs.
        scores: scores to try, of `SCORES`.

    Raises:
        UserError: if no clip has a scored record in both modes.
    """
    both = pairs(records)
    if not both:
        raise UserError("a threshold needs clips with gold labels and records of both modes; got none")
    told = {**chosen_on, "answers": len(both), "token_price": token_price}
    found = []
    for score in scores:
        gate = Gate(0.0, score, {score: 1.0}, 0.0, told, [])
        if score == LEAD:
            gate, values = _lead(both, gate)
        else:
            values = [gate.score_of(fast) for fast, _ in both]
        points = curve(both, values)
        best = max(points, key=lambda point: (round(point.f1 - token_price * point.tokens, 6), -point.tokens))
        found.append(_candidate(both, values, replace(gate, threshold=best.threshold, curve=points)))
    return sorted(found, key=lambda candidate: -round(candidate.lift["mean"] or 0.0, 6))


def choose_gate(
    records: Sequence[Record], chosen_on: Mapping[str, Any], token_price: float = 0.0, scores: Sequence[str] = SCORES
) -> Gate:
    """The best gate of `candidates`, which explains the arguments."""
    return candidates(records, chosen_on, token_price, scores)[0].gate


def write_gate(gate: Gate, model: Path | str) -> Path:
    """Write a gate into a model's folder, for its weights of now; returns the file."""
    file = Path(model_path(model)) / GATE_FILE
    gate = replace(gate, chosen_on={**gate.chosen_on, "weights": weights_digest(model)})
    write_atomically(file, json.dumps(asdict(gate), indent=1) + "\n")
    return file


def read_gate(model: Path | str, **asked: Any) -> Gate:
    """The gate in a model's folder.

    Args:
        model: folder, or name of the built-in model.
        asked: facts of `Gate.chosen_on` that the question must share: wheels, temperature.

    Raises:
        UserError: it is missing, cannot be read, or was chosen for other weights, wheels or another temperature.
    """
    file = Path(model_path(model)) / GATE_FILE
    if not file.exists():
        raise UserError(f"no {GATE_FILE} in {model}: choose a threshold with `mer-r1 threshold`, or give --threshold")
    try:
        row = read_object(file)
        gate = Gate(**{**row, "curve": [Point(**point) for point in row["curve"]]})
        told = {name: gate.chosen_on.get(name) for name in ("weights", *asked)}
        _check_numbers(gate)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file} is not a threshold file: {error}; `mer-r1 threshold` writes one") from error
    check_claim(file, told, {"weights": weights_digest(model), **asked}, "choose it again with `mer-r1 threshold`")
    return gate


def _check_numbers(gate: Gate) -> None:
    numbers = [("a number as threshold", gate.threshold), ("a number as offset", gate.offset)]
    numbers += [(f"a number as weight of {name:.40}", weight) for name, weight in gate.weights.items()]
    numbers += [("numbers in the curve", x) for p in gate.curve for x in asdict(p).values()]
    for expected, number in numbers:
        if not (type(number) in (int, float) and math.isfinite(number)):
            raise ValueError(f"expected {expected}, got {brief(number)}")
    if not gate.curve:
        raise ValueError("expected a curve, got none")
    if unknown := [name for name in gate.weights if name not in FEATURES]:
        raise ValueError(f"expected weights of {', '.join(FEATURES)}, got {brief(unknown[0])}")


def _lead(both: Sequence[Both], gate: Gate) -> tuple[Gate, list[float]]:
    """The gate with the weights of a ridge regression, and its scores (N,) of each clip as if that were left out.

    The answers to one clip are left out together.
    """
    rows = [list(features(fast).values()) for fast, _ in both]
    known = np.asarray([bool(fast.labels) and None not in row for row, (fast, _) in zip(rows, both, strict=True)])
    values = np.full(len(both), -np.inf)
    number = {name: place for place, name in enumerate(dict.fromkeys(fast.id for fast, _ in both))}
    fold = np.asarray([number[fast.id] % FOLDS for fast, _ in both])
    table = np.asarray([row for row, usable in zip(rows, known, strict=True) if usable], dtype=np.float64)
    lead = (_f1s(both, 0) - _f1s(both, 1))[known]
    if not len(table):
        return replace(gate, weights=dict.fromkeys(FEATURES, 0.0)), values.tolist()
    weights, offset = _ridge(table, lead)
    left_out = np.full(len(table), offset)
    for place in range(FOLDS):
        here = fold[known] == place
        if here.any() and not here.all():
            own, least = _ridge(table[~here], lead[~here])
            left_out[here] = table[here] @ own + least
    values[known] = left_out
    return replace(gate, weights=dict(zip(FEATURES, weights.tolist(), strict=True)), offset=offset), values.tolist()


def _ridge(table: Array, target: Array) -> tuple[Array, float]:
    """Weights (F,) and offset of a linear prediction of the targets (N,) from the features (N, F)."""
    centre, spread = table.mean(axis=0), table.std(axis=0)
    scaled = (table - centre) / np.where(spread > 1e-9, spread, 1.0)
    mean = target.mean()
    weights = np.linalg.solve(scaled.T @ scaled + PENALTY * np.eye(table.shape[1]), scaled.T @ (target - mean))
    weights = weights / np.where(spread > 1e-9, spread, 1.0)
    return weights, float(mean - centre @ weights)


def _candidate(both: Sequence[Both], values: Sequence[float], gate: Gate) -> Candidate:
    gain, scores = _f1s(both, 1) - _f1s(both, 0), np.asarray(values)
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count + 1) / 2)[place]  # from 0; equal scores share their mean rank
    pays, costs = rank[gain > 0], rank[gain < 0]
    auc = float(np.mean(pays[:, None] < costs) + np.mean(pays[:, None] == costs) / 2) if len(pays) * len(costs) else 0.5
    # A clip of rank r is reasoned about at the shares above r/N: all but r/N of the curve; at random, half of it.
    lift = bootstrap(gain * (0.5 - (rank + 0.5) / len(gain)))
    known = np.isfinite(scores)
    varies = known.sum() > 1 and gain[known].std() > 0 and scores[known].std() > 1e-12
    correlation = -float(np.corrcoef(scores[known], gain[known])[0, 1]) if varies else 0.0
    return Candidate(gate, correlation, auc, lift)


def _point(both: Sequence[Both], slowly: Sequence[bool], threshold: float) -> Point:
    asked = list(zip(both, slowly, strict=True))
    f1s: dict[str, list[float]] = {}
    for (fast, slow), think in asked:
        f1s.setdefault(fast.id, []).append(_f1(slow if think else fast))
    found = bootstrap([math.fsum(values) / len(values) for values in f1s.values()], resamples=RESAMPLES)
    f1 = math.fsum(map(math.fsum, f1s.values())) / max(len(both), 1)
    low, high = (f1 if (bound := found[side]) is None else bound for side in ("low", "high"))
    tokens = sum(both_tokens(fast, slow) if think else fast.tokens for (fast, slow), think in asked)
    count = max(len(both), 1)
    return Point(threshold, sum(slowly) / count, f1, tokens / count, low, high)


def _f1s(both: Sequence[Both], side: int) -> Array:
    return np.asarray([_f1(pair[side]) for pair in both], dtype=np.float64)


def _f1(record: Record) -> float:
    return record.scores["f1"] if record.scores else math.nan
