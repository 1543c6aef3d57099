"""Adaptive thinking: answer fast first, and reason only where a gate of the fast answer says so (`thinking_gate`).

A policy that answers once pays for both answers of such a clip; one that answers twice (`two_answers`) continues from
the first, so its slow tokens contain the fast ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mer_r1.data.check import Progress
from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers.thinking_gate import Gate, both_tokens
from mer_r1.evaluation.predict import evaluate_model, predict
from mer_r1.evaluation.records import Record, read_records, taxonomy_in
from mer_r1.evaluation.summary import Summary, save_summary, saved_records, summarise

if TYPE_CHECKING:
    from mer_r1.model.generation import Sampling
    from mer_r1.model.omni import Omni


def choose_by_gate(records: Sequence[Record], gate: Gate) -> list[Record]:
    """One record per clip: the fast one, or where the gate reasons the slow one with the tokens and seconds of both.

    Args:
        records: fast records of all clips, and slow records at least of those that the gate reasons about.
        gate: which of them are.
    """
    slow = {record.id: record for record in records if record.mode == ThinkingMode.SLOW}
    chosen = []
    for fast in (record for record in records if record.mode == ThinkingMode.FAST):
        if fast.error is None and gate.reasons(fast) and fast.id in slow:
            second = slow[fast.id]
            fast = replace(second, tokens=both_tokens(fast, second), seconds=fast.seconds + second.seconds)
        chosen.append(fast)
    return chosen


def write_auto_summary(
    out_dir: Path | str,
    manifest: Path,
    split: str,
    gate: Gate,
    seed: int = 0,
    wheels: Path | str | Taxonomy | None = None,
) -> Summary:
    """As `summary.write_summary`, for adaptive thinking."""
    records, told = saved_records(out_dir, manifest, split, taxonomy := taxonomy_in(out_dir, wheels))
    return save_summary(out_dir, summarise_auto(records, gate, seed, taxonomy=taxonomy), told)


def summarise_auto(
    records: Sequence[Record], gate: Gate, seed: int = 0, resamples: int = 2000, taxonomy: Taxonomy | None = None
) -> Summary:
    """Results of adaptive thinking, as mode "auto", beside those of the fast answers.

    The arguments are those of `choose_by_gate` and `summarise`.

    Raises:
        UserError: if there is no fast record, or a slow one is missing.
    """
    fast = [record for record in records if record.mode == ThinkingMode.FAST]
    if not fast:
        raise UserError("no fast answers among the records: adaptive thinking begins with them")
    slow = {record.id for record in records if record.mode == ThinkingMode.SLOW}
    if missing := [r.id for r in fast if r.error is None and gate.reasons(r) and r.id not in slow]:
        raise UserError(f"{len(missing)} clips to reason about have no slow record (first: {missing[0]}); give --model")
    chosen = [replace(record, mode=ThinkingMode.FAST.value) for record in choose_by_gate(records, gate)]
    summary = summarise(fast, seed=seed, resamples=resamples, taxonomy=taxonomy)
    auto = summarise(chosen, seed=seed, resamples=resamples, taxonomy=taxonomy)
    summary["modes"]["auto"] = auto["modes"][ThinkingMode.FAST.value]
    return summary


def evaluate_auto(
    model: str,
    manifest: Path,
    out: Path,
    sampling: "Sampling",
    gate: Gate,
    progress: Progress | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Predict every clip fast, and slowly too where the gate says so; returns the file of records.

    `options` are further arguments of `evaluate_model`, which explains the others.
    """
    fast_only: dict[str, Any] = {"progress": progress, "overwrite": overwrite}
    file = evaluate_model(model, manifest, out, [ThinkingMode.FAST], sampling, **fast_only, **options)
    fast = [record for record in read_records(file) if record.mode == ThinkingMode.FAST]
    again = {record.id for record in fast if record.error is None and gate.reasons(record)}
    # The fast predictions stay part of the total.
    tell = progress and (lambda more, total: progress(more, len(fast) + total))
    return evaluate_model(model, manifest, out, [ThinkingMode.SLOW], sampling, only=again, progress=tell, **options)


def predict_auto(
    omni: "Omni", clips: Sequence[Clip], taxonomy: Taxonomy, sampling: "Sampling", gate: Gate, **options: Any
) -> Iterator[Record]:
    """One record per clip, in order: the fast one, or where the gate reasons the slow one (tokens and seconds of both).

    `options` are further arguments of `predict`, which explains the others.
    """
    fast = list(predict(omni, clips, [ThinkingMode.FAST], taxonomy, sampling, **options))
    again = [c for c, r in zip(clips, fast, strict=True) if r.error is None and gate.reasons(r)]
    slow = list(predict(omni, again, [ThinkingMode.SLOW], taxonomy, sampling, **options))
    yield from choose_by_gate([*fast, *slow], gate)
