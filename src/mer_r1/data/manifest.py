"""Manifests: what a data set is to everything else.

One JSON object a line, one line a clip, media paths relative to the manifest's folder, so that a folder can be moved or
handed on as it is. Reading is strict and stops at the first broken row, with its place; `check_manifest` goes through
all rows and all files and reports everything that is wrong. docs/data.md describes the format.
"""

import json
import logging
import os
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

from mer_r1.data.clip import SPLITS, Clip, manifest_rows, parse_row
from mer_r1.errors import UserError, printable

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
            raise UserError(f"{printable(path)}:{number}: {problems[0]}")
        clips.append(clip)
    if not clips:
        raise UserError(f"{printable(path)}: no rows in it, expected one JSON object a line")
    if splits is None:
        return clips
    chosen = [clip for clip in clips if clip.split in splits]
    if not chosen:
        raise UserError(f"{printable(path)}: none of its {len(clips)} rows is of the split {' or '.join(splits)}")
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
            raise UserError(f"clip {printable(str(clip.id))} cannot be written to {printable(path)}: {problems[0]}")
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
        raise UserError(f"clip {printable(str(clip.id))}: not JSON values ({error})") from None
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
