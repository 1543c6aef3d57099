"""Clips of a user's own: files, folders, patterns and tables, with the words that belong to them.

Unlike a manifest (`data.manifest`), which is foreign data and strict, these are what a person types: paths may lead
anywhere, and a table may have columns that nobody here knows. Ids are the paths as they were given.
"""

import csv
import difflib
import glob
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import object_of, read_lines
from mer_r1.data.media.container import FORMATS
from mer_r1.data.media.read import check_readable
from mer_r1.data.subtitles import ENDINGS, Cue, beside, read_subtitles
from mer_r1.errors import UserError, printable

MEDIA_ENDINGS = frozenset(ending for _, endings in FORMATS.values() for ending in endings.split())
"""File endings by which media are found in a folder; a file that is named itself may have any."""
TABLES = (".csv", ".tsv", ".jsonl")
COLUMNS = {
    "id": ("id", "name"),
    "video": ("video", "path", "file", "clip"),
    "audio": ("audio", "sound"),
    "subtitle": ("subtitle", "words", "text", "sentence", "transcript"),
}
"""Field of a clip -> names of its column; the first that a table has counts."""


def find_clips(inputs: Sequence[str | Path], subtitle: str = "", audio: Path | None = None) -> list[Clip]:
    """The clips that a user names, each file once.

    Args:
        inputs: media files, folders (searched for media, folders inside included), patterns such as "*.mp4", and tables
            (.csv, .tsv, .jsonl) with a column for the file and one for the words (`COLUMNS`), their paths relative to
            the table's folder.
        subtitle: words of all clips that have none of their own; without it those of an .srt or .vtt file beside a
            clip count later, see `cues_of`.
        audio: audio file that replaces the audio of the only clip.

    Raises:
        UserError: an input that is not there or holds no media, a broken table, or `audio` with several clips.
    """
    clips = [clip for name in inputs for clip in _clips_of(str(name))]
    clips = [clip if clip.subtitle.strip() else replace(clip, subtitle=subtitle) for clip in clips]
    kept: dict[str, Clip] = {}
    for clip in clips:
        kept[clip.id] = kept.get(clip.id, clip) if not clip.subtitle else clip
    found = list(kept.values())
    if audio is not None:
        if len(found) != 1:
            raise UserError(f"--audio goes with exactly one clip, got {len(found)}")
        found = [replace(found[0], audio=audio)]
    return found


def unreadable(clips: Iterable[Clip]) -> dict[str, str]:
    """Clip id -> why its files cannot be opened; only their headers are read."""
    problems = {}
    for clip in clips:
        try:
            check_readable(clip)
        except UserError as error:
            problems[clip.id] = str(error)
    return problems


def cues_of(clip: Clip) -> list[Cue]:
    """What is said when in a clip, by the subtitle file beside it; empty without one.

    Raises:
        UserError: the file cannot be read.
    """
    places = [beside(path) for path in (clip.video, clip.audio) if path is not None]
    file = next(filter(None, places), None)
    return read_subtitles(file) if file else []


def _clips_of(name: str) -> Iterator[Clip]:
    path = Path(name)
    if path.is_dir():
        yield from _in_folder(path)
    elif path.suffix.lower() in TABLES:
        yield from _table(path)
    elif not os.path.lexists(path) and glob.has_magic(name):
        found = sorted(glob.glob(name, recursive=True))
        if not found and set(name) & set("*?"):
            raise UserError(f"{printable(name)}: no file matches")
        if not found:  # the name of a file with brackets in it, which is not there
            yield Clip(name, path)
        for match in found:
            if Path(match).is_dir() or Path(match).suffix.lower() not in (*ENDINGS, ".txt"):
                yield from _clips_of(match)
    else:
        yield Clip(name, path)


def _in_folder(path: Path) -> Iterator[Clip]:
    inside = [Path(folder, file) for folder, _, files in sorted(os.walk(path)) for file in sorted(files)]
    media = [file for file in inside if file.suffix.lower() in MEDIA_ENDINGS and not file.name.startswith(".")]
    if not media:
        raise UserError(f"{printable(path)}: no media file in this folder, expected one of .mp4, .wav ...")
    yield from (Clip(str(file), file) for file in media)


def _table(path: Path) -> Iterator[Clip]:
    """The clips of a table; a row's problem is an error that names the line."""
    rows = list(_json_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path))
    if not rows:
        raise UserError(f"{printable(path)}: no rows in it, expected one per clip")
    columns = _columns(path, dict.fromkeys(key for _, row in rows for key in row))
    seen: dict[str, int] = {}
    for number, row in rows:
        where = f"{printable(path)} line {number}"
        told = {name: _first(row, own, where) for name, own in columns.items()}
        files = {name: path.parent / told[name] for name in ("video", "audio") if told.get(name)}
        if not files and not told.get("subtitle"):
            raise UserError(f"{where}: neither a file nor words, expected one of them")
        identity = told.get("id") or str(next(iter(files.values()), f"{path}:{number}"))
        if identity in seen:
            raise UserError(f"{where}: {printable(identity)} again (first in line {seen[identity]})")
        seen[identity] = number
        yield Clip(identity, files.get("video"), files.get("audio"), told["subtitle"], _gold(row.get("labels")))


def _gold(labels: Any) -> tuple[str, ...] | None:
    known = isinstance(labels, list) and labels and all(isinstance(word, str) for word in labels)
    return tuple(labels) if known else None


def _columns(path: Path, known: Iterable[str]) -> dict[str, list[str]]:
    """Field of a clip -> its columns in the table, as they are spelled there."""
    lower = {column.strip().lower(): column for column in known}
    found = {name: [lower[own] for own in names if own in lower] for name, names in COLUMNS.items()}
    if not (found["video"] or found["audio"]):
        raise UserError(
            f"{printable(path)}: no column for the file, expected one of {', '.join(COLUMNS['video'])} or audio; "
            f"found {printable(', '.join(lower))[:200]}"
        )
    every = [own for names in COLUMNS.values() for own in names]
    for column in lower:
        missing = [own for name, names in COLUMNS.items() if not found[name] for own in names]
        if column not in every and (close := difflib.get_close_matches(column, missing, n=1, cutoff=0.8)):
            raise UserError(f"{printable(path)}: column {printable(column)!r}; did you mean {close[0]!r}?")
    return found


def _first(row: Mapping[str, Any], columns: Iterable[str], where: str) -> str:
    """The first text that a row has in some columns."""
    return next(filter(None, (_text(row.get(column), f"{where}: {column}") for column in columns)), "")


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: got {value!r:.60}, expected text")
    if "://" in value and not value.strip().count(" "):
        raise UserError(f"{where}: got {printable(value)!r:.80}, an address, expected a path to a local file")
    return value.strip()


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from enumerate(read_lines(path, object_of), start=1)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(path)}: expected UTF-8 text: {error}") from None
    head = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max("\t;,", key=head.count), strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        for row in reader:
            if not any(row):
                continue
            if len(row) != len(names):
                raise UserError(
                    f"{printable(path)} line {reader.line_num}: {len(row)} cells, expected {len(names)} as in the "
                    "first line (quote words that hold a comma)"
                )
            yield reader.line_num, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{printable(path)} line {reader.line_num}: {error}") from None
