"""Filling the feature cache ahead of training: many processes, any number of GPUs, on and on after a kill.

Every process takes each n-th clip, decodes it, sends it through the towers, and writes an entry that is whole or
absent. Nothing is agreed upon between processes, so they may be started together here, or by `torchrun` on several
machines that share a disk (each then knows its share from RANK and WORLD_SIZE). Who is started again does what is
missing. How much it will be is said first, from a sample of the clips, and compared with the free disk.
"""

import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

from mer_r1.data.clip import Clip
from mer_r1.data.media.read import read_media
from mer_r1.errors import UserError
from mer_r1.model.features import FeatureCache, Progress
from mer_r1.model.omni import load
from mer_r1.model.prompts import media_tensors, num_tokens

logger = logging.getLogger(__name__)

SAMPLE = 16
"""Clips that the estimate decodes."""
ENTRY_OVERHEAD = 4096
"""Bytes of an entry beside its vectors: header, grids, the file system's block (estimate)."""
STALE_SECONDS = 3600.0
"""A half-written entry of this age was left behind by a kill."""


@dataclass(frozen=True)
class Estimate:
    """What filling will take.

    Attributes:
        clips: asked for, broken ones included.
        missing: entries to make.
        tokens: mean vectors of a clip in the sample.
        sampled: clips in the sample.
        size: bytes that the missing entries will have.
        free: bytes that the disk has.
        broken: a message for each clip whose file is not there or empty.
    """

    clips: int
    missing: int
    tokens: float
    sampled: int
    size: int
    free: int
    broken: list[str] = field(default_factory=list)


def estimate(cache: FeatureCache, clips: Sequence[Clip]) -> Estimate:
    """Count what is missing, and how large it will be, from clips decoded evenly over the missing ones.

    Args:
        cache: the one to be filled; its model may be without towers.
        clips: to be cached.
    """
    broken: list[str] = []
    missing = list(cache.missing(clips, broken).values())
    counts = []
    for clip in missing[:: max(1, len(missing) // SAMPLE)][:SAMPLE]:
        try:
            media = read_media(clip.video, clip.audio, cache.omni.settings.limits())
        except UserError:
            continue  # filling will say so
        counts.append(sum(num_tokens(cache.omni, media_tensors(cache.omni, media)).values()))
    tokens = sum(counts) / len(counts) if counts else 0.0
    text = cache.omni.model.config.get_text_config()
    each = tokens * text.hidden_size * cache.omni.model.dtype.itemsize + ENTRY_OVERHEAD
    free = shutil.disk_usage(cache.folder).free
    return Estimate(len(clips), len(missing), tokens, len(counts), int(len(missing) * each), free, broken)


def require_room(told: Estimate) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        UserError: if less than the estimate and a tenth more is free.
    """
    if told.size * 1.1 > told.free:
        raise UserError(
            f"the features need about {told.size / 1e9:.2f} GB and {told.free / 1e9:.2f} GB are free: "
            "give a folder on a larger disk (--features-dir)"
        )


def torchrun_rank() -> tuple[int, int] | None:
    """This process's rank and the number of processes, where `torchrun` started it; else None."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def device_of(rank: int) -> str:
    """The GPU of a process, in turn; the CPU where there is none."""
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
) -> tuple[int, list[str]]:
    """One process's share: every `world`-th clip from `rank` on.

    Returns:
        Entries made, and a message for each clip that cannot be read.
    """
    cache = FeatureCache(load(model, device=device_of(rank), towers=False), folder)
    _forget_half_written(cache.folder)
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
) -> list[str]:
    """Make every missing entry, in several processes started here.

    Args:
        model: checkpoint whose towers are used.
        folder: of the cache, as `FeatureCache` takes it.
        clips: to be cached.
        processes: each with a copy of the towers, over the GPUs in turn.
        workers: decoding processes of each.
        progress: told how many more are done.

    Returns:
        A message for each clip that cannot be read, in the order of the clips' shares.

    Raises:
        UserError: if a process ended otherwise than well; entries made stay.
    """
    if processes == 1:
        return fill_share(model, folder, clips, 0, 1, workers, progress)[1]
    # A forked process cannot use CUDA; where there is none, forking saves loading every library again.
    context: Any = multiprocessing.get_context("spawn" if "cuda" in device_of(0) else "fork")
    queue: Any = context.Queue()
    started = [
        context.Process(target=_work, args=(queue, model, folder, list(clips), rank, processes, workers))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    try:
        broken = _listen(queue, started, progress)
    finally:
        for process in started:
            if process.is_alive():
                process.terminate()
            process.join()
    return broken


def _work(queue: Any, model: str, folder: Path, clips: list[Clip], rank: int, world: int, workers: int) -> None:
    try:
        broken = fill_share(model, folder, clips, rank, world, workers, queue.put)[1]
    except UserError as error:
        queue.put((rank, str(error), []))
    else:
        queue.put((rank, None, broken))


def _listen(queue: Any, started: list[Any], progress: Progress | None) -> list[str]:
    # Numbers are clips done, tuples are the last words of a process.
    ended: dict[int, list[str]] = {}
    while len(ended) < len(started):
        try:
            said = queue.get(timeout=1.0)
        except Empty:
            for rank, process in enumerate(started):
                if rank not in ended and process.exitcode not in (None, 0):
                    raise UserError(
                        f"process {rank} of {len(started)} ended with {process.exitcode}; what was made stays: "
                        "start again to go on"
                    ) from None
            continue
        if isinstance(said, int):
            if progress:
                progress(said)
            continue
        rank, problem, broken = said
        if problem:
            raise UserError(problem)
        ended[rank] = broken
    return [message for rank in sorted(ended) for message in ended[rank]]


def _forget_half_written(folder: Path) -> None:
    for path in folder.glob("*.partial"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue  # another process was faster
