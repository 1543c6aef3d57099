"""The interface of everything that answers questions about clips: a checkpoint, a served model, vLLM in this process.

A benchmark passes batches of clips to a `ClipModel` and gets one record per clip and mode. Batches are cut at fixed
places, so that a resumed run sees the same batch composition: padding and sampling within a batch cannot make its
result differ from that of an uninterrupted run. `settings` holds everything that decides the answers; a folder of
records keeps it and accepts no others.

`answerers.checkpoint` runs a checkpoint with PyTorch, `answerers.endpoint` asks a server, `answerers.vllm` runs vLLM;
`answerers.spread` runs any of them in several processes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.evaluation.answerers.spread import Answers, Turn
from mer_r1.evaluation.records import Record


class ClipModel(Protocol):
    """Answers questions about clips."""

    @property
    def name(self) -> str:
        """The model's name in records and tables."""

    @property
    def batch_size(self) -> int:
        """Number of clips that are answered together."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides its answers, as JSON values; no credentials, no addresses."""

    def answer(self, clips: Sequence[Clip], modes: Sequence[ThinkingMode]) -> Iterator[Record]:
        """One record per mode and clip: all clips in the first mode, then all in the second.

        Args:
            clips: at most `batch_size`; one that cannot be read gets a record with its error.
            modes: slow, fast or both.

        Raises:
            UserError: the model cannot be asked at all.
        """


def ask_groups(
    groups: Iterable[Sequence[Clip]],
    modes: Sequence[ThinkingMode],
    known: Mapping[tuple[str, str], str | None],
    answers: Answers,
    items: Mapping[str, str],
) -> Iterator[Record]:
    """Records of the clips and modes that have no answer yet, group by group.

    A group that was interrupted is asked again as a whole, in all modes, so that padding and sampling see the same
    rows, and only its missing records are kept. Clips that failed are asked again.

    Args:
        groups: clips that are answered together, the same ones in every run.
        modes: slow, fast or both.
        known: clip id and mode -> error, None for an answer; of the records there are.
        answers: asks the model, here or in several processes (`spread.spread`).
        items: key of each clip, for its records (`claim.item_keys`).
    """
    for found in answers(_turns(groups, modes, known)):
        for record in found:
            if known.get((record.id, record.mode), "") is not None:
                yield replace(record, item=items[record.id])


def _turns(
    groups: Iterable[Sequence[Clip]], modes: Sequence[ThinkingMode], known: Mapping[tuple[str, str], str | None]
) -> Iterator[Turn]:
    for group in groups:
        missing = [[clip for clip in group if (clip.id, mode.value) not in known] for mode in modes]
        broken_off = [mode for mode, clips in zip(modes, missing, strict=True) if clips]
        if any(0 < len(clips) < len(group) for clips in missing):
            broken_off = list(modes)
        turns: list[Turn] = [(group, broken_off)] if broken_off else []
        for mode in modes:
            failed = [clip for clip in group if known.get((clip.id, mode.value)) is not None]
            turns += [(failed, [mode])] if failed and mode not in broken_off else []
        yield from turns
