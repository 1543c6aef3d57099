"""Manifests: the one form in which every other part of the project takes a data set.

One JSON object per line and clip, media paths relative to the manifest's folder, so that a folder can be moved or
shared as it is. Reading is strict and stops at the first invalid row, with its line; `check.check_manifest` covers all
rows and all files and reports everything that is wrong. docs/data.md describes the format.
"""

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from mer_r1.data.clip import KEYS, SPLITS, Clip, manifest_rows, parse_row
from mer_r1.data.jsonl import write_atomically
from mer_r1.data.workers import uncollected
from mer_r1.errors import UserError, printable


def read_manifest(
    path: Path | str, *, allow_absolute: bool = False, splits: Collection[str] | None = None
) -> list[Clip]:
    """Read a manifest. Media files are not opened; `check.check_manifest` does that.

    Args:
        path: JSONL file, UTF-8, with or without a byte order mark; empty lines are skipped.
        allow_absolute: whether media paths may be absolute. `..` is never allowed.
        splits: splits to keep; None keeps all rows.

    Returns:
        The clips, in the file's order.

    Raises:
        UserError: naming file and line: the file cannot be read, a row is invalid, an id is repeated, or the wanted
            splits have no rows.
    """
    for split in splits or ():
        if split not in SPLITS:
            raise UserError(f"splits: got {split!r}, expected some of {', '.join(SPLITS)}")
    path = Path(path)
    clips = []
    with uncollected():  # no clip is part of a cycle
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
    """Write a manifest that `read_manifest` reads back; atomic, so that a kill leaves the old file or none.

    Media paths become relative to the manifest's folder; the same clips give the same bytes.

    Args:
        path: the manifest.
        clips: its rows.
        absolute: whether to write absolute paths, for media elsewhere; reading them needs `allow_absolute`.

    Raises:
        UserError: a clip could not be read back: a file outside the folder, a repeated id, a field of the wrong type.
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
    write_atomically(path, b"".join(lines))


def _line(clip: Clip, folder: Path, absolute: bool) -> bytes:
    row = {name: getattr(clip, name) for name in KEYS}
    row |= {name: _written(row[name], folder, absolute) for name in ("video", "audio")}
    if clip.section is not None:
        raise UserError(f"clip {printable(str(clip.id))}: a section of a recording, expected whole files in a manifest")
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
    return Path(os.path.abspath(file) if absolute else os.path.relpath(file, folder)).as_posix()
