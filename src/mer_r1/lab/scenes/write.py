"""Write a corpus of generated scenes in parallel; the result does not depend on the number of processes.

`out/scenes.json` identifies the run, `out/clips/` collects finished clips, and the manifest is written last: a folder
with a manifest is complete. The same call resumes an interrupted run; any other call on a folder that is not empty is
an error. Rendering needs the extra `scenes`, which is imported only when clips are made.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mer_r1.data.claim import claim
from mer_r1.data.jsonl import write_atomically
from mer_r1.data.workers import available_cores, in_workers
from mer_r1.errors import UserError
from mer_r1.lab.scenes.story.sentences import PERSONS, SPLITS, Split

if TYPE_CHECKING:
    from mer_r1.lab.scenes.clip import Script

logger = logging.getLogger(__name__)

FORMAT = 5
"""Version of the corpus; raise it when the same seed gives other clips or rows."""
DEFAULT_SPLITS: Mapping[str, float] = {"train": 0.8, "val": 0.06, "test": 0.14}
MISSING = 0.3
"""Share of the training clips that lack a channel or two; clips of the other splits are complete."""
RUN_FILE, MANIFEST = "scenes.json", "manifest.jsonl"
_FEW = 4


@dataclass(frozen=True)
class ClipJob:
    """One clip to render."""

    seed: int
    split: Split
    index: int
    folder: str
    missing: float
    people: int

    @property
    def path(self) -> Path:
        """File of the clip."""
        from mer_r1.lab.scenes.clip import clip_id

        return Path(self.folder) / f"{clip_id(self.split, self.index)}.mp4"

    def script(self) -> "Script":
        """The content of the clip's row."""
        from mer_r1.lab.scenes.clip import script

        return script(self.seed, self.split, self.index, self.missing, self.people)


def write_scenes(
    out: str | Path,
    clips: int,
    seed: int = 0,
    splits: Mapping[str, float] | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
    missing: float = MISSING,
    people: int = PERSONS["train"],
) -> dict[str, Any]:
    """Write `clips` generated scenes and their manifest.

    Args:
        out: output folder (`clips/*.mp4`, `manifest.jsonl`, `scenes.json`): new, empty, or of the same run.
        clips: number of clips over all splits, at least 1.
        seed: the same seed gives the same manifest and the same decoded clips.
        splits: split -> share of the clips (normalised to sum 1); default train 0.80, val 0.06, test 0.14.
        workers: number of processes; None uses all usable cores.
        progress: callback called with the number of newly finished clips (clips of an earlier run in one call).
        missing: share in [0, 1] of the training clips without picture, sound, or subtitle, or with one medium alone.
        people: number of persons in the training split, at least 1.

    Returns:
        `out`, `manifest`, `clips`, `seed`, `splits` (split -> count), `written` and `kept` (from an interrupted run).

    Raises:
        UserError: if a number or split is invalid, or the folder holds anything else.
    """
    out = Path(out)
    counts = split_counts(clips, splits or DEFAULT_SPLITS)
    _check(seed, workers, missing, people)
    run = {"format": FORMAT, "clips": clips, "seed": seed, "splits": counts, "missing": missing, "people": people}
    _claim(out, run)
    of_split = {split: (missing, people) if split == "train" else (0.0, PERSONS[split]) for split in counts}
    folder = str(out / "clips")
    jobs = [
        ClipJob(seed, split, index, folder, *of_split[split])
        for split, count in counts.items()
        for index in range(count)
    ]
    # Drawing a row is cheap, so rows of finished clips are drawn again instead of being saved.
    rows = {job: job.script().row() for job in jobs if job.path.exists()}
    unmade = [job for job in jobs if job not in rows]
    kept = len(rows)
    if kept:
        logger.info("scenes: %d of %d clips exist already", kept, len(jobs))
        progress(kept)
    for job, row in _make(unmade, workers or available_cores()):
        rows[job] = row
        progress(1)
    write_atomically(out / MANIFEST, "".join(json.dumps(rows[job], ensure_ascii=False) + "\n" for job in jobs))
    summary = {"clips": clips, "seed": seed, "splits": counts, "written": len(unmade), "kept": kept}
    return {"out": str(out), "manifest": str(out / MANIFEST), **summary}


def split_counts(clips: int, shares: Mapping[str, float]) -> dict[Split, int]:
    """Number of clips per split, by the largest remainder method; the counts sum to `clips`.

    Raises:
        UserError: if `clips` is less than 1, a split is unknown, or a share is negative or not a number.

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


def _check(seed: int, workers: int | None, missing: float, people: int) -> None:
    if people < 1:
        raise UserError(f"scenes: expected at least 1 person, got {people}")
    if seed < 0 or (workers is not None and workers < 1):
        raise UserError(f"scenes: expected seed >= 0 and workers >= 1, got seed {seed} and workers {workers}")
    if not 0 <= missing <= 1:
        raise UserError(f"scenes: expected a share of incomplete clips in [0, 1], got {missing}")


def _claim(out: Path, run: Mapping[str, Any]) -> None:
    """Create the folder for a run, or check that it belongs to the same run."""
    if out.exists() and not out.is_dir():
        raise UserError(f"scenes: {out} is a file; expected a new or empty folder")
    claim(out, run, name=RUN_FILE, advice="expected a new or empty folder")
    (out / "clips").mkdir(parents=True, exist_ok=True)
    for leftover in (out / "clips").glob(".*.mp4*"):
        leftover.unlink()


def _make(jobs: Sequence[ClipJob], workers: int) -> Iterator[tuple[ClipJob, dict[str, Any]]]:
    """Render and save every clip; yields each with its manifest row once its file is written."""
    if workers == 1 or len(jobs) <= _FEW:
        yield from ((job, _make_one(job)) for job in jobs)
        return
    yield from in_workers(_make_one, jobs, min(workers, len(jobs)), prepare=_one_thread)


def _make_one(job: ClipJob) -> dict[str, Any]:
    from mer_r1.lab.scenes.clip import record, save

    drawn = job.script()
    save(record(drawn), job.path)
    return drawn.row()


def _one_thread() -> None:
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
