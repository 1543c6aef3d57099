"""Feature cache: each clip is decoded once and runs through the frozen towers once; entries on disk, memory-mapped.

Two kinds of entries, both safetensors, one file per clip: *inputs* (patches and mel spectrogram, for stages that train
the towers) and *features* (the towers' outputs). An entry's name is a hash of the media files' content, of their
preprocessing and, for features, of the towers' weights: a stale entry is never read.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import write_atomically
from mer_r1.data.media.read import content_key, read_media
from mer_r1.data.workers import end_with_parent
from mer_r1.errors import UserError
from mer_r1.model.absent_towers import AbsentTower, restore_towers
from mer_r1.model.omni import Omni
from mer_r1.model.prompts import media_tensors
from mer_r1.model.tower_outputs import encode_media

logger = logging.getLogger(__name__)

Progress = Callable[[int], Any]
"""Called with the number of clips done since the last call."""


def tower_fingerprint(omni: Omni) -> str:
    """Hash of the towers' weights, in memory or not."""
    digest = hashlib.blake2b(digest_size=8)
    for tower in omni.towers():
        for name, value in tower.weights() if isinstance(tower, AbsentTower) else tower.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def preprocessing_fingerprint(omni: Omni) -> str:
    """Hash of all settings that determine the tower inputs of a clip."""
    processor = omni.processor
    settings = asdict(omni.settings)
    parts = {
        # Settings of texts do not change the tower inputs.
        "settings": {
            name: value for name, value in settings.items() if name not in ("question", "form", "must_reason")
        },
        "video": json.loads(processor.video_processor.to_json_string()),
        "audio": json.loads(processor.feature_extractor.to_json_string()),
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def content_of(clip: Clip) -> str:
    """Digest of a clip's media files.

    Raises:
        UserError: one is missing or empty.
    """
    try:
        return content_key(clip.video, clip.audio)
    except UserError as error:
        raise UserError(f"clip {clip.id}: {error}") from error


class FeatureCache:
    """Tower inputs or tower outputs of clips, on disk.

    Args:
        omni: the model whose preprocessing and towers determine the content.
        folder: folder of the entries; created if absent.
        towers: True keeps tower outputs (the towers must not change any more), False keeps tower inputs.
    """

    def __init__(self, omni: Omni, folder: Path | str, towers: bool = True) -> None:
        self.omni, self.towers = omni, towers
        kind = f"features-{tower_fingerprint(omni)}" if towers else "inputs"
        self.folder = Path(folder) / f"{kind}-{preprocessing_fingerprint(omni)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._keys: dict[tuple[Path | None, Path | None], str] = {}
        self.tower_passes = 0
        """Number of clips run through the towers by this object."""

    def path(self, clip: Clip) -> Path:
        """Path of a clip's entry, present or not.

        Raises:
            UserError: its files are missing or empty.
        """
        media = (clip.video, clip.audio)
        if media not in self._keys:
            self._keys[media] = content_of(clip)
        return self.folder / f"{self._keys[media]}.safetensors"

    def get(self, clip: Clip) -> dict[str, Tensor]:
        """The tensors of a clip, memory-mapped; computed first if the entry is missing or not as it was written."""
        path = self.path(clip)
        found, written = _read(path)
        if written is None or _signature(path, found) != written:
            if written:
                logger.warning("%s is not as it was written and is computed again", path)
            path.unlink(missing_ok=True)
            self.build([clip], workers=0)
            found, _ = _read(path)
        return found

    def missing(self, clips: Iterable[Clip], broken: list[str] | None = None) -> dict[Path, Clip]:
        """Paths of missing entries, each with a clip of that content.

        Args:
            clips: clips to look up.
            broken: list that receives a message for each clip whose files are missing or empty; None raises the first.

        Raises:
            UserError: the files of a clip are missing or empty.
        """
        found: dict[Path, Clip] = {}
        for clip in clips:
            try:
                path = self.path(clip)
            except UserError as error:
                if broken is None:
                    raise
                broken.append(str(error))
                continue
            if _read(path, header_only=True)[1] is None:
                found.setdefault(path, clip)
        return found

    def build(
        self,
        clips: Sequence[Clip],
        workers: int = 2,
        batch_size: int = 32,
        progress: Progress | None = None,
        broken: list[str] | None = None,
    ) -> int:
        """Compute the missing entries; returns their number.

        Args:
            clips: clips that need entries.
            workers: number of decoding processes; 0 decodes in this one.
            batch_size: clips per pass of the towers.
            progress: callback, called with the number of further clips done, those already present included.
            broken: list that receives a message for each clip that cannot be read; None raises the first.

        Raises:
            UserError: a clip's media cannot be read; entries computed before it stay.
        """
        missing = self.missing(clips, broken)
        if missing and self.towers:
            restore_towers(self.omni.model)
        if progress:
            progress(len(clips) - len(missing))
        loader = DataLoader(
            _Decoded(self.omni, list(missing.values())),
            batch_size=batch_size,
            num_workers=min(workers, len(missing)),
            collate_fn=list,
            worker_init_fn=_begin_worker,
            multiprocessing_context="fork" if workers and missing else None,
        )
        paths = iter(missing)
        for batch in loader:
            self._store([next(paths) for _ in batch], batch, broken)
            if progress:
                progress(len(batch))
        return len(missing)

    def _store(self, paths: Iterable[Path], batch: list[dict[str, np.ndarray] | str], broken: list[str] | None) -> None:
        decoded = {
            path: {name: torch.from_numpy(value) for name, value in item.items()}
            for path, item in zip(paths, batch, strict=True)
            if not isinstance(item, str)
        }
        for message in (item for item in batch if isinstance(item, str)):
            if broken is None:
                raise UserError(message)
            broken.append(message)
        tensors = list(decoded.values())
        if not tensors:
            return
        if self.towers:
            self.tower_passes += len(tensors)
            tensors = encode_media(self.omni.model, tensors)
        else:
            tensors = [{name: _halved(value) for name, value in raw.items()} for raw in tensors]
        for path, entry in zip(decoded, tensors, strict=True):
            plain = {name: value.cpu().contiguous() for name, value in entry.items()}
            write_atomically(path, partial(save_file, plain, metadata={"signature": _signature(path, plain)}))


def _signature(path: Path, tensors: dict[str, Tensor]) -> str:
    # Of names, types, shapes and values, and of the place, so that no other clip's entry is taken for this one.
    digest = hashlib.blake2b(f"{path.parent.name}/{path.name}".encode(), digest_size=16)
    for name, value in sorted(tensors.items()):
        digest.update(f" {name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path, header_only: bool = False) -> tuple[dict[str, Tensor], str | None]:
    # The tensors of an entry and the signature in its header; None if there is no sound entry.
    try:
        with safe_open(path, framework="pt") as file:
            names = () if header_only else file.keys()
            return {name: file.get_tensor(name) for name in names}, (file.metadata() or {}).get("signature")
    except (OSError, SafetensorError) as error:
        if path.exists():
            logger.warning("%s cannot be read and is computed again: %s", path, error)
        return {}, None


def _halved(value: Tensor) -> Tensor:
    # Normalised pixels and mel energies lie within a few units: half precision keeps them to about 1e-3.
    return value.half() if value.is_floating_point() and value.dim() > 1 else value


class _Decoded(Dataset):
    """Decodes clips in worker processes; an unreadable clip gives its error message.

    Arrays go through a pipe. Tensors would go through shared memory: if there is no more, the reader waits for ever.
    """

    def __init__(self, omni: Omni, clips: list[Clip]) -> None:
        self.omni, self.clips = omni, clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, np.ndarray] | str:
        clip = self.clips[index]
        try:
            tensors = media_tensors(self.omni, read_media(clip.video, clip.audio, self.omni.settings.limits()))
            return {name: value.numpy() for name, value in tensors.items()}
        except UserError as error:
            return f"clip {clip.id}: {error}"


def _begin_worker(_: int) -> None:
    end_with_parent()
    torch.set_num_threads(1)
