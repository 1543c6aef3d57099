"""Whatever answers questions about clips, slowly or fast: a checkpoint, a served model, an engine in this process.

A benchmark hands groups of clips to a `ClipModel` and gets one record for each clip and mode. The groups are always
cut at the same places, so that an interrupted run asks again in the same company: padding and sampling inside a group
cannot make its result differ from that of a run in one go. `settings` is everything that decides the answers; a folder
of records remembers it and takes no others.

Here is the model that runs in this process with PyTorch (`Checkpoint`). `endpoint` asks a server, `vllm.engine` runs
vLLM.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.evaluation.llm.chat import Decoding
from mer_r1.evaluation.records import Record, rescore

_EDGE = 1 << 20  # bytes of a file's beginning and end that its fingerprint looks at
_WEIGHTS = ("*.safetensors", "*.json")


class ClipModel(Protocol):
    """Whatever answers questions about clips."""

    @property
    def name(self) -> str:
        """How records and tables name the model."""

    @property
    def batch_size(self) -> int:
        """How many clips are answered together."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides its answers, as JSON values; no credentials, no addresses."""

    def answer(self, clips: Sequence[Clip], modes: Sequence[ThinkingMode]) -> Iterator[Record]:
        """One record for each mode and clip: all clips in the first mode, then all in the second.

        Args:
            clips: at most `batch_size`; one that cannot be read gets a record with its error.
            modes: slow, fast or both.

        Raises:
            UserError: nothing can be asked at all.
        """


def fingerprint(model: str) -> str | None:
    """Short hash of a local model folder, so that records of retrained weights are not mixed; None for a hub name.

    Of each file of weights and settings its name, its size, and its first and last MiB are looked at.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE))
            file.seek(max(size - _EDGE, 0))
            digest.update(file.read(_EDGE))
    return digest.hexdigest()


def answered(
    clip: Clip, mode: ThinkingMode, completion: str, taxonomy: Taxonomy, stamp: dict[str, Any], **measured: Any
) -> Record:
    """The record of a completion: parsed, mapped onto the wheels, scored against the clip's labels.

    Args:
        clip: what was asked about.
        mode: how.
        completion: the raw text, prefilled part included.
        taxonomy: wheels.
        stamp: `model`, `seed`, `versions` and `commit`.
        measured: `seconds` and `tokens`.
    """
    return rescore([Record(clip.id, mode.value, completion, gold=_gold(clip), **measured, **stamp)], taxonomy)[0]


def unanswered(clip: Clip, mode: ThinkingMode, error: str, stamp: dict[str, Any]) -> Record:
    """The record of a clip that could not be asked about, or got no answer."""
    return Record(clip.id, mode.value, "", gold=_gold(clip), error=error, **stamp)


def stamp_of(name: str, decoding: Decoding, **others: str) -> dict[str, Any]:
    """What a record says about where it came from: model, seed, commit, our version, and `others` by package."""
    from importlib import metadata

    from mer_r1.evaluation.records import commit

    versions = {"mer-r1": metadata.version("mer-r1"), **others}
    return {"model": name, "seed": decoding.seed or 0, "versions": versions, "commit": commit()}


def _gold(clip: Clip) -> list[str] | None:
    return list(clip.labels) if clip.labels is not None else None
