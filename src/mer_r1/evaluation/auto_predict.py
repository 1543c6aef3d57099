"""Asking a model in both ways where it pays (`adaptive`): everything fast, and the unsure clips once more, slowly."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.evaluation.adaptive import gated, is_unsure
from mer_r1.evaluation.predict import evaluate_model, predict
from mer_r1.evaluation.records import Record, read_records
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Omni


def evaluate_auto(
    model: str, manifest: Path, out: Path, sampling: Sampling, threshold: float, split: str = "test", **how: Any
) -> Path:
    """Predict every clip fast, and slowly those whose fast answer is unsure; returns the file of records.

    Args:
        model: folder or hub name.
        manifest: JSONL manifest.
        out: folder of the records.
        sampling: length, temperature, seed.
        threshold: of `adaptive.Gate`.
        split: rows of this split, or "all".
        how: handed on to `evaluate_model`.
    """
    file = evaluate_model(model, manifest, out, [ThinkingMode.FAST], sampling, split, **how)
    fast = [record for record in read_records(file) if record.mode == ThinkingMode.FAST and record.error is None]
    unsure = {record.id for record in fast if is_unsure(record, threshold)}
    return evaluate_model(model, manifest, out, [ThinkingMode.SLOW], sampling, split, only=unsure, **how)


def predict_auto(
    omni: Omni, clips: Sequence[Clip], taxonomy: Taxonomy, sampling: Sampling, threshold: float, **how: Any
) -> Iterator[Record]:
    """One record a clip, in order: the fast one where it is sure, else the slow one (tokens and seconds of both).

    Args:
        omni: the model.
        clips: what to ask about.
        taxonomy: wheels.
        sampling: length, temperature, seed.
        threshold: of `adaptive.Gate`.
        how: handed on to `predict`.
    """
    fast = list(predict(omni, clips, [ThinkingMode.FAST], taxonomy, sampling, **how))
    again = [c for c, r in zip(clips, fast, strict=True) if r.error is None and is_unsure(r, threshold)]
    slow = list(predict(omni, again, [ThinkingMode.SLOW], taxonomy, sampling, **how))
    yield from gated([*fast, *slow], threshold)
