"""The interface of everything that answers questions about clips: a checkpoint, a served model, vLLM in this process.

A benchmark passes batches of clips to a `ClipModel` and gets one record per clip and mode. Batches are cut at fixed
places, so that a resumed run sees the same batch composition: padding and sampling within a batch cannot make its
result differ from that of an uninterrupted run. `settings` holds everything that decides the answers; a folder of
records keeps it and accepts no others.

`answerers.checkpoint` runs a checkpoint with PyTorch, `answerers.endpoint` asks a server, `answerers.vllm` runs vLLM.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.evaluation.records import Record

_EDGE = 1 << 20  # bytes of a file's beginning and end that enter its fingerprint
_WEIGHTS = ("*.safetensors", "*.json")


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


def fingerprint(model: str) -> str | None:
    """Short hash of a local model folder, so that records of retrained weights are not mixed; None for a hub name.

    It covers name, size, and first and last MiB of each file of weights and settings.
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
