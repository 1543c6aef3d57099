"""Checks all rows and all files of a manifest, in parallel, and reports everything that is wrong.

`read_manifest` stops at the first invalid row; this check covers all of them. A decoder is a large C library fed with
foreign bytes: if it crashes a worker process, the clip that caused it is named and the check continues.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mer_r1.data.clip import Clip, manifest_rows
from mer_r1.data.media.container import MediaLimits
from mer_r1.data.media.digests import reread
from mer_r1.data.media.notes import count_notes
from mer_r1.data.media.read import read_media
from mer_r1.data.workers import WorkerDiedError, available_cores, in_workers
from mer_r1.errors import UserError, printable

SECONDS_PER_CLIP, SECONDS_PER_BYTE = 0.005, 0.25e-6
"""What reading a clip takes: a small one, and each byte of it (30 s of 1080p in 5.7 MB take 1.4 s)."""
WORTH_A_WORKER = 1.0
"""Seconds of reading that are worth another process, which takes 0.3 s to start."""

Progress = Callable[[int, int], Any]
"""Called with the number of clips done since the last call, and the number of all clips."""


@dataclass(frozen=True)
class Probe:
    """Result of reading one clip.

    Attributes:
        problem: why it cannot be used; None if it can.
        notes: `Media.notes`.
        has_picture: whether there are frames.
        has_sound: whether there is a waveform.
        seconds: length of the part that was read.
    """

    problem: str | None = None
    notes: tuple[str, ...] = ()
    has_picture: bool = False
    has_sound: bool = False
    seconds: float = 0.0


def probe_clip(clip: Clip, limits: MediaLimits | None = None) -> Probe:
    """Read one clip's media in this process."""
    try:
        media = read_media(clip.video, clip.audio, limits)
    except UserError as error:
        return Probe(problem=str(error))
    return Probe(None, media.notes, media.frames is not None, media.waveform is not None, media.seconds)


def probe_clips(
    clips: Sequence[Clip],
    limits: MediaLimits | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Probe]:
    """Read the media of clips in parallel.

    Args:
        clips: the clips.
        limits: see `read_media`.
        workers: number of processes; up to 1 reads in this process. None starts one per `WORTH_A_WORKER` seconds that
            the files are likely to take, at least one and at most one per core: a crash ends it, not this process.
        progress: callback, called with (1, number of clips) for each clip done.

    Returns:
        One probe per clip, in order.
    """
    here = len(clips) <= 1 or (workers is not None and workers <= 1)
    workers = _workers_that_pay(clips) if workers is None else workers
    advance = (lambda: progress(1, len(clips))) if progress else (lambda: None)
    if here:
        probes = []
        for clip in clips:
            probes.append(probe_clip(clip, limits))
            advance()
        return probes
    found = _in_processes(dict(enumerate(clips)), limits, workers, advance)
    # A crashed worker ends its whole pool: read the remaining clips one at a time to find the one that causes it.
    for index in range(len(clips)):
        if index not in found:
            alone = _in_processes({index: clips[index]}, limits, 1, advance)
            if index not in alone:
                advance()
            found[index] = alone.get(index, Probe(problem="reading it crashes the decoder"))
    return [found[index] for index in range(len(clips))]


def _workers_that_pay(clips: Sequence[Clip]) -> int:
    size = sum(_size(path) for clip in clips for path in (clip.video, clip.audio) if path is not None)
    seconds = SECONDS_PER_CLIP * len(clips) + SECONDS_PER_BYTE * size
    return max(1, min(available_cores(), int(seconds / WORTH_A_WORKER)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


def _in_processes(
    clips: dict[int, Clip], limits: MediaLimits | None, workers: int, advance: Callable[[], Any]
) -> dict[int, Probe]:
    """Probes by index; incomplete if a worker crashed."""
    found: dict[int, Probe] = {}
    with suppress(WorkerDiedError):
        for (index, _), probe in in_workers(partial(_probe_item, probe_clip, limits), clips.items(), workers):
            found[index] = probe
            advance()
    return found


def _probe_item(probe: Callable[..., Probe], limits: MediaLimits | None, item: tuple[int, Clip]) -> Probe:
    return probe(item[1], limits)


@dataclass
class CheckReport:
    """All problems of a manifest, and a summary of its content.

    Attributes:
        n_rows: rows that are not empty lines.
        n_ok: rows without any problem.
        problems: (line, id or None, problem) in the file's order. A row may have several.
        counts: problems of each kind: row, id, file, labels.
        notes: number of clips with each note that is no problem, such as "no sound".
        splits: rows of each split ("none" without one).
        channels: number of readable clips with picture (video), sound (audio), subtitle, labels and reasoning.
        seconds: total, shortest, median and longest length of the readable clips with media.
    """

    n_rows: int = 0
    n_ok: int = 0
    problems: list[tuple[int, str | None, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def check_manifest(
    path: Path | str,
    *,
    is_known: Callable[[str], bool] | None = None,
    workers: int | None = None,
    limits: MediaLimits | None = None,
    progress: Progress | None = None,
    allow_absolute: bool = False,
    content: bool = False,
) -> CheckReport:
    """Check every row and every file of a manifest, in parallel.

    Args:
        path: the manifest.
        is_known: whether a label is on a wheel; a row with none that is becomes a problem, single labels a note.
        workers: number of processes; see `probe_clips`.
        limits: how much of each file is read.
        progress: callback, called for each clip whose files have been read.
        allow_absolute: see `read_manifest`.
        content: whether to read all files whole and compare them with their kept digests (`media.digests`).

    Raises:
        UserError: only if the manifest itself cannot be read.
    """
    report, counts, notes, valid_rows = CheckReport(), Counter[str](), Counter[str](), []
    for number, clip_id, clip, wrong in manifest_rows(Path(path), allow_absolute):
        report.n_rows += 1
        report.problems += [(number, clip_id, problem) for problem in wrong]
        counts.update("id" if problem.startswith("id:") else "row" for problem in wrong)
        if clip is not None:
            valid_rows.append((number, clip))
    clips = [clip for _, clip in valid_rows]
    probes = probe_clips(clips, limits, workers, progress)
    for (number, clip), probe in zip(valid_rows, probes, strict=True):
        unplaced = _unplaced(clip, is_known)
        problems = [("file", text) for text in _file_problems(clip, probe, content)]
        if unplaced and len(unplaced) == len(clip.labels or ()):
            problems.append(("labels", f"labels: no wheel has any of {', '.join(unplaced)}"))
        elif unplaced:
            notes["a gold label is on no wheel"] += 1
        report.problems += [(number, clip.id, text) for _, text in problems]
        counts.update(kind for kind, _ in problems)
        report.n_ok += not problems
    report.problems.sort(key=lambda problem: problem[0])
    report.counts, report.notes = dict(counts), dict(notes)
    _describe(report, clips, probes)
    return report


def _describe(report: CheckReport, clips: Sequence[Clip], probes: Sequence[Probe]) -> None:
    noted = count_notes((clip.id, probe.notes) for clip, probe in zip(clips, probes, strict=True))
    report.notes = dict(Counter(report.notes | noted).most_common())
    report.splits = dict(Counter(clip.split or "none" for clip in clips))
    readable = [(clip, probe) for clip, probe in zip(clips, probes, strict=True) if probe.problem is None]
    report.channels = {
        "picture": sum(probe.has_picture for _, probe in readable),
        "sound": sum(probe.has_sound for _, probe in readable),
        "subtitle": sum(bool(clip.subtitle.strip()) for clip, _ in readable),
        "labels": sum(clip.labels is not None for clip, _ in readable),
        "reasoning": sum(bool(clip.reasoning) for clip, _ in readable),
    }
    lengths = [probe.seconds for _, probe in readable if probe.has_picture or probe.has_sound]
    if lengths:
        report.seconds = {
            "total": sum(lengths),
            "shortest": min(lengths),
            "median": statistics.median(lengths),
            "longest": max(lengths),
        }


def _file_problems(clip: Clip, probe: Probe, content: bool) -> Iterator[str]:
    if probe.problem:
        yield probe.problem
    for path in (clip.video, clip.audio) if content else ():
        with suppress(OSError, ValueError):  # reported by its probe
            if path is not None and reread(path):
                yield f"{printable(path)}: another content than before, under the same size and time"


def _unplaced(clip: Clip, is_known: Callable[[str], bool] | None) -> list[str]:
    return [label for label in clip.labels or () if is_known and not is_known(label)]
