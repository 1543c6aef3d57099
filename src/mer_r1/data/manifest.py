"""Manifests: what a data set is to everything else.

One JSON object a line, one line a clip, media paths relative to the manifest's folder, so that a folder can be moved or
handed on as it is. Reading is strict and stops at the first broken row, with its place; `check_manifest` goes through
all rows and all files and reports everything that is wrong. docs/data.md describes the format.
"""

import json
import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from mer_r1.data.check import CheckReport, Progress, check_manifest, probe_clips
from mer_r1.data.clip import SPLITS, Clip, manifest_rows, parse_row
from mer_r1.data.media.read import MediaLimits
from mer_r1.emotions.thinking import format_completion, question
from mer_r1.errors import UserError, shown

__all__ = [
    "CheckReport",
    "Clip",
    "check_manifest",
    "conversation",
    "read_manifest",
    "to_rows",
    "usable_clips",
    "write_manifest",
]

logger = logging.getLogger(__name__)


def read_manifest(
    path: Path | str, *, allow_absolute: bool = False, splits: Collection[str] | None = None
) -> list[Clip]:
    """Read a manifest. Whether the media files can be read is `check_manifest`'s matter.

    Args:
        path: JSONL file, UTF-8, with or without a byte order mark; empty lines are skipped.
        allow_absolute: whether media paths may be absolute. `..` is never allowed.
        splits: only rows of these splits; None gives all rows.

    Returns:
        The clips, in the file's order.

    Raises:
        UserError: naming file and line: the file cannot be read, a row is broken, an id is there twice, or the wanted
            splits have no rows.
    """
    for split in splits or ():
        if split not in SPLITS:
            raise UserError(f"splits: got {split!r}, expected some of {', '.join(SPLITS)}")
    path = Path(path)
    clips = []
    for number, _, clip, problems in manifest_rows(path, allow_absolute):
        if clip is None:
            raise UserError(f"{shown(path)}:{number}: {problems[0]}")
        clips.append(clip)
    if not clips:
        raise UserError(f"{shown(path)}: no rows in it, expected one JSON object a line")
    if splits is None:
        return clips
    chosen = [clip for clip in clips if clip.split in splits]
    if not chosen:
        raise UserError(f"{shown(path)}: none of its {len(clips)} rows is of the split {' or '.join(splits)}")
    return chosen


def write_manifest(path: Path | str, clips: Iterable[Clip], *, absolute: bool = False) -> None:
    """Write a manifest that `read_manifest` reads back, whole or not at all.

    Media paths become relative to the manifest's folder; the same clips give the same bytes.

    Args:
        path: the manifest.
        clips: its rows.
        absolute: write absolute paths, for media that lie elsewhere; reading them needs `allow_absolute`.

    Raises:
        UserError: if a clip could not be read back: a file outside the folder, an id twice, a field of the wrong type.
    """
    path = Path(path)
    lines, seen = [], set()
    for clip in clips:
        line = _line(clip, path.parent, absolute)
        _, _, problems = parse_row(line, path.parent, absolute)
        if clip.id in seen:
            problems.append("id: it is there twice, expected unique ids")
        if problems:
            raise UserError(f"clip {shown(str(clip.id))} cannot be written to {shown(path)}: {problems[0]}")
        seen.add(clip.id)
        lines.append(line + b"\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(lines)
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def conversation(
    clip: Clip,
    style: Literal["full", "short"] = "full",
    *,
    has_picture: bool | None = None,
    has_sound: bool | None = None,
) -> list[dict[str, Any]]:
    """The prompt of a clip in TRL's conversational form: what is shown, what is heard, then the question.

    Picture and sound are separate parts (not audio-in-video), each only where the clip has it.

    Args:
        clip: the clip.
        style: wording of the question, see `thinking.question`.
        has_picture: whether the files hold a picture (`Media.frames is not None`). None goes by the row: yes if it
            names a video.
        has_sound: likewise for sound. None goes by the row: yes if it names an audio or a video file.
    """
    parts: list[dict[str, Any]] = []
    if clip.video is not None if has_picture is None else has_picture:
        parts.append({"type": "video"})
    if (clip.audio is not None or clip.video is not None) if has_sound is None else has_sound:
        parts.append({"type": "audio"})
    parts.append({"type": "text", "text": question(clip.subtitle, style)})
    return [{"role": "user", "content": parts}]


def to_rows(
    clips: Iterable[Clip], style: Literal["full", "short"] = "full", *, completions: bool = False
) -> list[dict[str, Any]]:
    """Rows for `datasets.Dataset.from_list`: columns prompt, labels, clip_id and, for SFT, completion.

    Args:
        clips: annotated clips.
        style: wording of the question.
        completions: add the slow completion (reasoning, then gold labels) that SFT learns.

    Raises:
        UserError: a clip without labels, or, with `completions`, without a reasoning text.
    """
    rows = []
    for clip in clips:
        if clip.labels is None:
            raise UserError(f"clip {clip.id}: labels: got null, training needs gold labels")
        row = {"prompt": conversation(clip, style), "labels": list(clip.labels), "clip_id": clip.id}
        if completions:
            if not clip.reasoning:
                raise UserError(f"clip {clip.id}: reasoning: got nothing, SFT needs a reasoning text")
            text = format_completion(clip.reasoning, clip.labels)
            row["completion"] = [{"role": "assistant", "content": text}]
        rows.append(row)
    return rows


def usable_clips(
    clips: Sequence[Clip],
    *,
    broken: Literal["error", "drop"] = "error",
    limits: MediaLimits | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Clip], dict[str, str]]:
    """Read every clip's media once and keep those that can be read; for trainers, before they start.

    Args:
        clips: the clips.
        broken: "error" stops if there is any broken clip, "drop" leaves them out and logs how many.
        limits: see `read_media`.
        workers: processes; all cores if None, 1 reads here.
        progress: told of each clip.

    Returns:
        The clips that can be read, and of each other one its id and its problem.

    Raises:
        UserError: with `broken="error"`, the number of broken clips and the first problem; or if none is left.
    """
    if broken not in ("error", "drop"):
        raise UserError(f"broken: got {broken!r}, expected 'error' or 'drop'")
    kept, dropped = [], {}
    for clip, probe in zip(clips, probe_clips(clips, limits, workers, progress), strict=True):
        if probe.problem is None:
            kept.append(clip)
        else:
            dropped[clip.id] = probe.problem
    if dropped and (broken == "error" or not kept):
        first = next(iter(dropped))
        raise UserError(
            f"{len(dropped)} of {len(clips)} clips have broken media, the first is {first}: {dropped[first]}"
        )
    if dropped:
        logger.warning("%d of %d clips dropped: their media cannot be read", len(dropped), len(clips))
    return kept, dropped


def _line(clip: Clip, folder: Path, absolute: bool) -> bytes:
    row = {
        "id": clip.id,
        "video": _written(clip.video, folder, absolute),
        "audio": _written(clip.audio, folder, absolute),
        "subtitle": clip.subtitle,
        "labels": None if clip.labels is None else list(clip.labels),
        "reasoning": clip.reasoning,
        "split": clip.split,
        "meta": clip.meta,
    }
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"clip {shown(str(clip.id))}: not JSON values ({error})") from None
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # a file name that is not UTF-8 is written with escapes
        return json.dumps(row, allow_nan=False).encode("ascii")


def _written(file: Path | None, folder: Path, absolute: bool) -> str | None:
    if file is None:
        return None
    if absolute:
        return Path(os.path.abspath(file)).as_posix()
    return Path(os.path.relpath(file, folder)).as_posix()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
