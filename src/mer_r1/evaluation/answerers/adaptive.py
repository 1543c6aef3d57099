"""Adaptive thinking: answer fast first, and reason only where the fast answer is unsure.

The answer confidence is the geometric mean of the probabilities of the answer's tokens (VideoAuto-R1, arXiv 2601.05175,
gates its second answer in this way). Below a threshold the clip is asked again, slowly. The threshold is chosen on
validation clips, never on test clips, and kept beside the model.

A policy that answers once pays for both answers of such a clip; one that answers twice (`two_answers`) continues from
the first, so its slow tokens contain the fast ones.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mer_r1.data.check import Progress
from mer_r1.data.claim import check_claim, weights_digest
from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import read_object, write_atomically
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.two_answers import TWICE
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError, brief
from mer_r1.evaluation.predict import evaluate_model, predict
from mer_r1.evaluation.records import Record, read_records, taxonomy_in
from mer_r1.evaluation.summary import Summary, save_summary, saved_records, summarise

if TYPE_CHECKING:
    from mer_r1.model.generation import Sampling
    from mer_r1.model.omni import Omni

GATE_FILE = "think_auto.json"
CANDIDATES = 21
"""Thresholds that are tried: from never to always reasoning, in equal shares of the validation clips."""


@dataclass(frozen=True)
class Gate:
    """Threshold of the answer confidence below which the model reasons.

    Attributes:
        threshold: the model reasons where its fast answer is less confident; in [0, inf).
        chosen_on: manifest, split and number of clips that it was chosen on.
        share: share of those clips with reasoning.
        f1: mean F1 on those clips.
        tokens: mean generated tokens on those clips.
    """

    threshold: float
    chosen_on: dict[str, Any]
    share: float
    f1: float
    tokens: float


@dataclass(frozen=True)
class Point:
    """Result of one threshold: share of clips with reasoning, mean F1 and mean generated tokens."""

    threshold: float
    share: float
    f1: float
    tokens: float


def is_unsure(fast: Record, threshold: float) -> bool:
    """Whether slow thinking follows a fast answer: below the threshold, and always after an answer without words."""
    return not fast.labels or fast.sureness is None or fast.sureness < threshold


def both_tokens(fast: Record, slow: Record) -> int:
    """Tokens generated for a clip with a fast answer and reasoning."""
    return slow.tokens if slow.form == TWICE else fast.tokens + slow.tokens


def pairs(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """(Fast, slow) records of each clip and draw that has both, scored."""
    slow = {
        (record.id, record.draw): record for record in records if record.mode == ThinkingMode.SLOW and record.scores
    }
    fast = [record for record in records if record.mode == ThinkingMode.FAST and record.scores]
    return [(record, slow[record.id, record.draw]) for record in fast if (record.id, record.draw) in slow]


def at_threshold(both: Sequence[tuple[Record, Record]], threshold: float) -> Point:
    """Result of a threshold on clips with records of both modes, from `pairs`."""
    return _point(both, [is_unsure(fast, threshold) for fast, _ in both], threshold)


def oracle(both: Sequence[tuple[Record, Record]]) -> Point:
    """Upper bound: slow only where it scores higher than fast, which no gate can know."""
    return _point(both, [_f1(slow) > _f1(fast) for fast, slow in both], math.nan)


def curve(both: Sequence[tuple[Record, Record]]) -> list[Point]:
    """Results of thresholds from never to always reasoning, in steps of equal shares of the clips."""
    sure = sorted(fast.sureness or 0.0 for fast, _ in both)
    places = [round(step * (len(sure) - 1) / (CANDIDATES - 2)) for step in range(CANDIDATES - 1)]
    # Above the last one every clip is reasoned about.
    thresholds = sorted({0.0, *(sure[place] for place in places), sure[-1] + 1.0}) if sure else []
    return [at_threshold(both, threshold) for threshold in thresholds]


def choose_threshold(records: Sequence[Record], chosen_on: Mapping[str, Any]) -> Gate:
    """The threshold with the highest mean F1 on validation clips; of equally good ones the one with the fewest tokens.

    Args:
        records: records of both modes on the same clips.
        chosen_on: manifest and split, kept with the result.

    Raises:
        UserError: if no clip has a scored record in both modes.
    """
    both = pairs(records)
    if not both:
        raise UserError("a threshold needs clips with gold labels and records of both modes; got none")
    best = max(curve(both), key=lambda point: (round(point.f1, 6), -point.tokens))
    return Gate(best.threshold, {**chosen_on, "clips": len(both)}, best.share, best.f1, best.tokens)


def write_gate(gate: Gate, folder: Path | str) -> Path:
    """Write a gate into a model's folder, for its weights of now; returns the file."""
    file = Path(folder) / GATE_FILE
    gate = replace(gate, chosen_on={**gate.chosen_on, "weights": weights_digest(folder)})
    write_atomically(file, json.dumps(asdict(gate), indent=2) + "\n")
    return file


def read_gate(folder: Path | str) -> Gate:
    """The gate in a model's folder.

    Raises:
        UserError: it is missing, cannot be read, or was chosen for other weights.
    """
    file = Path(folder) / GATE_FILE
    if not file.exists():
        raise UserError(f"no {GATE_FILE} in {folder}: choose a threshold with `mer-r1 threshold`, or give --threshold")
    try:
        gate = Gate(**read_object(file))
        facts = {"weights": gate.chosen_on.get("weights")}
        if not (type(gate.threshold) in (int, float) and math.isfinite(gate.threshold)):
            raise ValueError(f"expected a number as threshold, got {brief(gate.threshold)}")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a threshold file: {error}; `mer-r1 threshold` writes one") from error
    check_claim(file, facts, {"weights": weights_digest(folder)}, "choose it again with `mer-r1 threshold`")
    return gate


def choose_by_confidence(records: Sequence[Record], threshold: float) -> list[Record]:
    """One record per clip: the fast one where it is sure, else the slow one with the tokens and seconds of both.

    Args:
        records: fast records of all clips, and slow records at least of the unsure ones.
        threshold: see `Gate`.
    """
    slow = {record.id: record for record in records if record.mode == ThinkingMode.SLOW}
    chosen = []
    for fast in (record for record in records if record.mode == ThinkingMode.FAST):
        if fast.error is None and is_unsure(fast, threshold) and fast.id in slow:
            second = slow[fast.id]
            fast = replace(second, tokens=both_tokens(fast, second), seconds=fast.seconds + second.seconds)
        chosen.append(fast)
    return chosen


def write_auto_summary(
    out_dir: Path | str, manifest: Path, split: str, threshold: float, seed: int = 0, wheels: Path | str | None = None
) -> Summary:
    """As `summary.write_summary`, for adaptive thinking."""
    records, told = saved_records(out_dir, manifest, split, taxonomy := taxonomy_in(out_dir, wheels))
    return save_summary(out_dir, summarise_auto(records, threshold, seed, taxonomy=taxonomy), told)


def summarise_auto(
    records: Sequence[Record], threshold: float, seed: int = 0, resamples: int = 2000, taxonomy: Taxonomy | None = None
) -> Summary:
    """Results of adaptive thinking, as mode "auto", beside those of the fast answers.

    The arguments are those of `choose_by_confidence` and `summarise`.

    Raises:
        UserError: if there is no fast record.
    """
    fast = [record for record in records if record.mode == ThinkingMode.FAST]
    if not fast:
        raise UserError("no fast answers among the records: adaptive thinking begins with them")
    chosen = [replace(record, mode=ThinkingMode.FAST.value) for record in choose_by_confidence(records, threshold)]
    summary = summarise(fast, seed=seed, resamples=resamples, taxonomy=taxonomy)
    auto = summarise(chosen, seed=seed, resamples=resamples, taxonomy=taxonomy)
    summary["modes"]["auto"] = auto["modes"][ThinkingMode.FAST.value]
    return summary


def evaluate_auto(
    model: str,
    manifest: Path,
    out: Path,
    sampling: "Sampling",
    threshold: float,
    progress: Progress | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Predict every clip fast, and those with an unsure fast answer slowly too; returns the file of records.

    `options` are further arguments of `evaluate_model`, which explains the others.
    """
    fast_only: dict[str, Any] = {"progress": progress, "overwrite": overwrite}
    file = evaluate_model(model, manifest, out, [ThinkingMode.FAST], sampling, **fast_only, **options)
    fast = [record for record in read_records(file) if record.mode == ThinkingMode.FAST]
    unsure = {record.id for record in fast if record.error is None and is_unsure(record, threshold)}
    # The fast predictions stay part of the total.
    tell = progress and (lambda more, total: progress(more, len(fast) + total))
    return evaluate_model(model, manifest, out, [ThinkingMode.SLOW], sampling, only=unsure, progress=tell, **options)


def predict_auto(
    omni: "Omni", clips: Sequence[Clip], taxonomy: Taxonomy, sampling: "Sampling", threshold: float, **options: Any
) -> Iterator[Record]:
    """One record per clip, in order: the fast one where it is sure, else the slow one (tokens and seconds of both).

    `options` are further arguments of `predict`, which explains the others.
    """
    fast = list(predict(omni, clips, [ThinkingMode.FAST], taxonomy, sampling, **options))
    again = [c for c, r in zip(clips, fast, strict=True) if r.error is None and is_unsure(r, threshold)]
    slow = list(predict(omni, again, [ThinkingMode.SLOW], taxonomy, sampling, **options))
    yield from choose_by_confidence([*fast, *slow], threshold)


def _point(both: Sequence[tuple[Record, Record]], slowly: Sequence[bool], threshold: float) -> Point:
    asked = list(zip(both, slowly, strict=True))
    f1 = math.fsum(_f1(slow if think else fast) for (fast, slow), think in asked)
    tokens = sum(both_tokens(fast, slow) if think else fast.tokens for (fast, slow), think in asked)
    count = max(len(both), 1)
    return Point(threshold, sum(slowly) / count, f1 / count, tokens / count)


def _f1(record: Record) -> float:
    return record.scores["f1"] if record.scores else math.nan
