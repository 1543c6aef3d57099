"""Writing a corpus of built-in scenes: many processes, one result.

`out/scenes.json` says which run the folder belongs to, `out/clips/` fills up with finished clips, and the manifest
comes last: a folder with a manifest is complete. The same call continues an interrupted run; any other call on a
folder that is not empty is refused.
"""

import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mer_r1.errors import UserError
from mer_r1.lab.scenes.clip import clip_id, record, save, script
from mer_r1.lab.scenes.story.sentences import SPLITS, Split

logger = logging.getLogger(__name__)

FORMAT = 4
"""Raised whenever the same seed would give other clips, or other rows."""
DEFAULT_SPLITS: Mapping[str, float] = {"train": 0.8, "val": 0.06, "test": 0.14}
RUN_FILE, MANIFEST = "scenes.json", "manifest.jsonl"
_CHUNK = 4


@dataclass(frozen=True)
class Job:
    """One clip to be made, as workers are told."""

    seed: int
    split: Split
    index: int
    folder: str

    @property
    def path(self) -> Path:
        """Where the clip goes."""
        return Path(self.folder) / f"{clip_id(self.split, self.index)}.mp4"


def write_scenes(
    out: str | Path,
    clips: int,
    seed: int = 0,
    splits: Mapping[str, float] | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Write `clips` generated scenes and their manifest.

    Args:
        out: Folder to write: `clips/*.mp4`, `manifest.jsonl`, `scenes.json`. New, empty, or of the same run.
        clips: How many clips over all splits, at least 1.
        seed: The same seed gives the same manifest and the same decoded clips, however many workers there are.
        splits: Split -> share of the clips (the shares are scaled to sum 1); default train 0.80, val 0.06, test 0.14.
        workers: Processes; all usable cores if not given.
        progress: Called with the number of clips that have just been finished (those of an earlier run at once).

    Returns:
        `out`, `manifest`, `clips`, `seed`, `splits` (split -> count), `written` and `kept` (from an interrupted run).

    Raises:
        UserError: A bad number, an unknown split, or a folder with something else in it.
    """
    out = Path(out)
    counts = split_counts(clips, splits or DEFAULT_SPLITS)
    if seed < 0 or (workers is not None and workers < 1):
        raise UserError(f"scenes: expected seed >= 0 and workers >= 1, got seed {seed} and workers {workers}")
    run = {"format": FORMAT, "clips": clips, "seed": seed, "splits": counts}
    _claim(out, run)
    jobs = [Job(seed, split, index, str(out / "clips")) for split, count in counts.items() for index in range(count)]
    finished = {job for job in jobs if job.path.exists()}
    missing = [job for job in jobs if job not in finished]
    kept = len(finished)
    progress = progress or (lambda done: None)
    # Drawing a row is cheap; drawing those of finished clips again saves keeping them beside the clips.
    rows = {job: script(job.seed, job.split, job.index).row() for job in finished}
    if kept:
        logger.info("scenes: %d of %d clips are there already", kept, len(jobs))
        progress(kept)
    for job, row in _make(missing, workers or _usable_cores()):
        rows[job] = row
        progress(1)
    _write_atomically(out / MANIFEST, "".join(json.dumps(rows[job], ensure_ascii=False) + "\n" for job in jobs))
    summary = {"clips": clips, "seed": seed, "splits": counts, "written": len(missing), "kept": kept}
    return {"out": str(out), "manifest": str(out / MANIFEST), **summary}


def split_counts(clips: int, shares: Mapping[str, float]) -> dict[Split, int]:
    """How many clips each split gets: largest remainders, so that the counts sum to `clips`.

    Raises:
        UserError: No clips, an unknown split, or a share that is negative or not a number.

    >>> split_counts(10, {"train": 0.8, "val": 0.06, "test": 0.14})
    {'train': 8, 'val': 1, 'test': 1}
    """
    if clips < 1:
        raise UserError(f"scenes: expected at least 1 clip, got {clips}")
    unknown = [name for name in shares if name not in SPLITS]
    total = sum(shares.values())
    if unknown or not all(share >= 0 for share in shares.values()) or not 0 < total < float("inf"):
        raise UserError(f"scenes: expected shares >= 0 of the splits {', '.join(SPLITS)}, got {dict(shares)}")
    exact = {name: clips * shares.get(name, 0.0) / total for name in SPLITS}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(SPLITS, key=lambda name: (counts[name] - exact[name], SPLITS.index(name)))
    for name in by_remainder[: clips - sum(counts.values())]:
        counts[name] += 1
    return counts


def _claim(out: Path, run: Mapping[str, Any]) -> None:
    """Make the folder ours, or recognise it as ours from an earlier call."""
    run_file = out / RUN_FILE
    if out.exists() and not out.is_dir():
        raise UserError(f"scenes: {out} is a file; expected a new or empty folder")
    if run_file.is_file():
        try:
            earlier = json.loads(run_file.read_text(encoding="utf-8"))
        except ValueError:
            earlier = None
        if earlier != run:
            raise UserError(
                f"scenes: {out} holds another run ({earlier}); expected a new or empty folder, or {dict(run)}"
            )
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"scenes: {out} is not empty and holds no {RUN_FILE}; expected a new or empty folder")
    (out / "clips").mkdir(parents=True, exist_ok=True)
    for leftover in (out / "clips").glob(".*.mp4"):
        leftover.unlink()
    _write_atomically(run_file, json.dumps(run, indent=1) + "\n")


def _make(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Render and save every clip; yields each with its manifest row as soon as its file is there."""
    if workers == 1 or len(jobs) <= _CHUNK:
        yield from map(_make_one, jobs)
        return
    # Fresh processes: a forked copy of a process with threads (torch, numba) may hang.
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(jobs)), initializer=_one_thread) as pool:
        yield from pool.imap_unordered(_make_one, jobs, chunksize=_CHUNK)


def _make_one(job: Job) -> tuple[Job, dict[str, Any]]:
    drawn = script(job.seed, job.split, job.index)
    save(record(drawn), job.path)
    return job, drawn.row()


def _one_thread() -> None:
    """Each worker is one process on one core."""
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_atomically(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
