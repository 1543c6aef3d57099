"""Filling the feature cache ahead of training: any number of processes and GPUs, resumable after a kill.

Process r of n takes the clips r, r + n, ..., decodes them, runs the towers and writes each entry atomically. The
processes do not communicate, so they may be started here, or by `torchrun` on several machines that share a disk (each
then knows its share from RANK and WORLD_SIZE). A restarted run computes the missing entries only. The size is estimated
beforehand, from a sample of the clips, and compared with the free disk space.
"""

import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

from mer_r1.data.clip import Clip
from mer_r1.data.media.read import read_media
from mer_r1.data.workers import end_with_parent
from mer_r1.errors import UserError
from mer_r1.model.features import FeatureCache, Progress
from mer_r1.model.omni import load
from mer_r1.model.prompts import media_tensors, num_tokens

logger = logging.getLogger(__name__)

SAMPLE = 16
"""Clips that the estimate decodes, at most."""
ENTRY_OVERHEAD = 4096
"""Bytes of an entry beside its vectors: header, grids, the file system's block (estimate)."""
STALE_SECONDS = 3600.0
"""A half-written entry of this age is the leftover of a kill."""


@dataclass(frozen=True)
class Estimate:
    """What filling will take.

    Attributes:
        clips: number of clips, broken ones included.
        missing: number of entries to compute.
        tokens: mean vectors per clip in the sample, of `sampled` clips.
        size: bytes of the missing entries, and `free` those of the disk.
        broken: a message for each clip whose file is missing or empty.
    """

    clips: int
    missing: int
    tokens: float
    sampled: int
    size: int
    free: int
    broken: list[str] = field(default_factory=list)


def estimate(cache: FeatureCache, clips: Sequence[Clip]) -> Estimate:
    """Count the missing entries and estimate their size from a sample, spread evenly over the missing clips.

    The cache's model needs no towers.
    """
    broken: list[str] = []
    missing = list(cache.missing(clips, broken).values())
    counts = []
    for clip in missing[:: max(1, len(missing) // SAMPLE)][:SAMPLE]:
        try:
            media = read_media(clip.video, clip.audio, cache.omni.settings.limits())
        except UserError:
            continue  # reported when the cache is filled
        counts.append(sum(num_tokens(cache.omni, media_tensors(cache.omni, media)).values()))
    tokens = sum(counts) / len(counts) if counts else 0.0
    text = cache.omni.model.config.get_text_config()
    each = tokens * text.hidden_size * cache.omni.model.dtype.itemsize + ENTRY_OVERHEAD
    free = shutil.disk_usage(cache.folder).free
    return Estimate(len(clips), len(missing), tokens, len(counts), int(len(missing) * each), free, broken)


def require_room(expected: Estimate) -> None:
    """Refuse to start if the disk is too small.

    Raises:
        UserError: if less than 1.1 times the estimated size is free.
    """
    if expected.size * 1.1 > expected.free:
        raise UserError(
            f"the features need about {expected.size / 1e6:,.2f} MB and {expected.free / 1e6:,.2f} MB are free: "
            "give a folder on a larger disk (--features-dir)"
        )


def torchrun_rank() -> tuple[int, int] | None:
    """Rank of this process and number of processes if `torchrun` started it, else None."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def device_of(rank: int) -> str:
    """The device of a process: the GPUs in turn, or the CPU."""
    import torch

    local = int(os.environ.get("LOCAL_RANK", rank))
    return f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def fill_share(
    model: str,
    folder: Path,
    clips: Sequence[Clip],
    rank: int,
    world: int,
    workers: int = 2,
    progress: Progress | None = None,
    limits: Mapping[str, Any] | None = None,
) -> tuple[int, list[str]]:
    """Fill one process's share: every `world`-th clip, starting at `rank`; `limits` as of `model.omni.load`.

    Returns:
        The number of entries computed, and a message for each clip that cannot be read.
    """
    cache = FeatureCache(load(model, device=device_of(rank), towers=False, limits=limits), folder)
    for path in (*cache.folder.glob("*.partial"), *cache.folder.glob(".tmp*")):  # ours, and of safetensors
        with suppress(FileNotFoundError):  # another process removed it
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
    broken: list[str] = []
    cache.build(clips[rank::world], workers=workers, batch_size=8, progress=progress, broken=broken)
    return cache.tower_passes, broken


def fill(
    model: str,
    folder: Path,
    clips: Sequence[Clip],
    processes: int = 1,
    workers: int = 2,
    progress: Progress | None = None,
    limits: Mapping[str, Any] | None = None,
) -> list[str]:
    """Compute every missing entry, in several processes started here.

    Args:
        model: checkpoint whose towers are used.
        folder: folder of the `FeatureCache`.
        clips: the clips to cache.
        processes: number of processes, each with a copy of the towers, on the GPUs in turn.
        workers: decoding processes of each.
        progress: callback called with the number of clips just done.
        limits: fields of `ClipLimits` that replace the model's own.

    Returns:
        A message for each clip that cannot be read, share by share.

    Raises:
        UserError: if a process failed; its finished entries stay.
    """
    if processes == 1:
        return fill_share(model, folder, clips, 0, 1, workers, progress, limits)[1]
    # A forked process cannot use CUDA; on the CPU, forking saves loading every library again.
    context: Any = multiprocessing.get_context("spawn" if "cuda" in device_of(0) else "fork")
    queue: Any = context.Queue()
    started = [
        context.Process(target=_work, args=(queue, model, folder, list(clips), rank, processes, workers, limits))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    try:
        return _listen(queue, started, progress)
    finally:
        for process in started:
            process.terminate()
            process.join()


def _work(
    queue: Any, model: str, folder: Path, clips: list[Clip], rank: int, world: int, workers: int, limits: Any
) -> None:
    end_with_parent()
    try:
        queue.put((rank, None, fill_share(model, folder, clips, rank, world, workers, queue.put, limits)[1]))
    except UserError as error:
        queue.put((rank, str(error), []))


def _listen(queue: Any, started: list[Any], progress: Progress | None) -> list[str]:
    # A number counts clips done; a tuple is the last message of a process.
    ended: dict[int, list[str]] = {}
    while len(ended) < len(started):
        try:
            received = queue.get(timeout=1.0)
        except Empty:
            for rank, process in enumerate(started):
                if rank not in ended and process.exitcode not in (None, 0):
                    raise UserError(
                        f"process {rank} of {len(started)} ended with {process.exitcode}; finished entries stay: "
                        "run the command again to resume"
                    ) from None
            continue
        if isinstance(received, int):
            if progress:
                progress(received)
            continue
        rank, problem, broken = received
        if problem:
            raise UserError(problem)
        ended[rank] = broken
    return [message for rank in sorted(ended) for message in ended[rank]]
