"""One clip, and how a line of a manifest is parsed into one.

A manifest is foreign data: every field is checked for its type, unknown keys are errors (most often a misspelt one),
and no path may lead out of the manifest's folder, by `..`, by a link or by being absolute. All problems of a line are
found at once, so that `mer-r1 check` can list them.
"""

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mer_r1.errors import UserError, printable

SPLITS = ("train", "val", "test")
KEYS = ("id", "video", "audio", "subtitle", "labels", "reasoning", "split", "meta")
MAX_ID_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Clip:
    """One sample: video, audio and words of a person, and the annotated emotions.

    Attributes:
        id: unique within a manifest.
        video: video file, which also gives the audio unless `audio` is given.
        audio: audio file, where the audio is not in the video file.
        subtitle: spoken words; "" if unknown.
        labels: gold emotion words; None without annotation.
        reasoning: reasoning text for the cold start (SFT); None without one.
        split: "train", "val", "test" or None.
        meta: further fields of the clip, as JSON values.
        section: (first, last) seconds of a longer recording that the clip is; None for whole files. Not in manifests.
    """

    id: str
    video: Path | None = None
    audio: Path | None = None
    subtitle: str = ""
    labels: tuple[str, ...] | None = None
    reasoning: str | None = None
    split: str | None = None
    meta: dict[str, Any] = field(default_factory=dict, hash=False)
    section: tuple[float, float] | None = None


def parse_row(line: bytes, folder: Path, allow_absolute: bool = False) -> tuple[Clip | None, str | None, list[str]]:
    """Parse one line of a manifest.

    Args:
        line: its bytes.
        folder: the manifest's folder; relative paths start there and may not leave it.
        allow_absolute: whether paths may be absolute.

    Returns:
        The clip (None if there is any problem), its id if it has a valid one, and all problems: each names the field,
        the value found and what was expected.
    """
    return _parse(line, _Paths(folder, allow_absolute))


def _parse(line: bytes, paths: "_Paths") -> tuple[Clip | None, str | None, list[str]]:
    row = _json_object(line)
    if isinstance(row, str):
        return None, None, [row]
    values, wrong = _fields(row, paths)
    unknown = row.keys() - _PARSERS.keys() and [key for key in row if key not in _PARSERS]
    problems = [f"unknown key {_quoted(key)}{printable(nearest(key, KEYS))}" for key in unknown]
    problems += wrong
    if not problems and not ("video" in values or "audio" in values or values.get("subtitle", "").strip()):
        problems.append("video, audio and subtitle are all empty, expected at least one of them")
    return None if problems else Clip(**values), values.get("id"), problems


def _fields(row: Mapping[str, Any], paths: "_Paths") -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    problems = []
    for name, parse in _PARSERS.items():
        if (value := row.get(name)) is not None:
            try:
                values[name] = parse(value) if parse else paths.of(value)
            except UserError as error:
                problems.append(f"{name}: {error}")
            except RecursionError:
                problems.append(f"{name}: nested too deeply")
        elif name == "id":
            problems.append(f"id: got {'null' if 'id' in row else 'nothing'}, expected a unique text")
    return values, problems


def path_problem(text: str, folder: Path, allow_absolute: bool = False) -> str | None:
    """Why a path is refused; None if it is allowed.

    Args:
        text: the path as written.
        folder: the folder that it must stay in, links resolved.
        allow_absolute: whether it may be absolute, and then lie anywhere.
    """
    if not text.strip():
        return "an empty path"
    if "://" in text:
        return "an address, expected a path to a local file"
    path = Path(text)
    if ".." in path.parts:
        return "a path with '..', expected one that stays in the manifest's folder"
    if path.is_absolute():
        return None if allow_absolute else "an absolute path, expected one relative to the manifest's folder"
    try:
        real, root = os.path.realpath(folder / path), os.path.realpath(folder)
        os.fsencode(real)
    except (ValueError, OSError) as error:
        return f"not a possible file name ({error})"
    # A link inside the folder that an absolute path could reach anyway is no escape.
    if allow_absolute or real == root or real.startswith(root.rstrip(os.sep) + os.sep):
        return None
    return "a link that leads out of the manifest's folder"


def manifest_rows(path: Path, allow_absolute: bool = False) -> Iterator[tuple[int, str | None, Clip | None, list[str]]]:
    """Parse a manifest row by row.

    Yields:
        Line number from 1, id if it is valid, the clip (None if there is any problem) and all problems of the row.

    Raises:
        UserError: if the file cannot be read.
    """
    lines_of: dict[str, int] = {}
    paths = _Paths(path.parent, allow_absolute)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.isspace():
                    continue
                clip, clip_id, problems = _parse(line, paths)
                if clip_id is not None and lines_of.setdefault(clip_id, number) != number:
                    clip = None
                    first = lines_of[clip_id]
                    problems.append(f"id: got {clip_id!r} again, expected unique ids (first in line {first})")
                yield number, clip_id, clip, problems
    except OSError as error:
        made = "; mer-r1 scenes or mer-r1 prepare makes one" if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"{printable(path)}: the manifest cannot be read ({error.strerror}){made}") from None


def nearest(key: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """End of a message about an unknown key: the most similar known one.

    >>> nearest("vidoe", KEYS)
    "; did you mean 'video'?"
    """
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"


def _json_object(line: bytes) -> dict[str, Any] | str:
    try:
        row = _DECODER.decode(line.decode("utf-8"))
        if isinstance(row, tuple):
            return _object(row)
        return f'got {_quoted(row)}, expected an object like {{"id": ...}}'
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte {error.start + 1} of the line)"
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg}, column {error.colno})"
    except RecursionError:
        return "not JSON that can be read (nested too deeply)"
    except ValueError as error:
        return f"not JSON that can be read ({printable(str(error))[:200]})"


def _object(pairs: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for key, _ in pairs if [other for other, _ in pairs].count(key) > 1)
        raise UserError(f"the key {twice!r} is there twice")
    return row


def _with_objects(value: Any) -> Any:
    """A value whose objects are still tuples of (key, value), as the decoder makes them fast, with dicts instead."""
    if isinstance(value, tuple):
        row = _object(value)
        return {key: _with_objects(inner) for key, inner in row.items()} if row else row
    if isinstance(value, list):
        return [_with_objects(inner) if type(inner) in _NESTED else inner for inner in value]
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


_NESTED = (tuple, list)
_DECODER = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=_no_constant)


def _id(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"got {_quoted(value)}, expected a unique text")
    if len(value) > MAX_ID_CHARACTERS or not value.isprintable():
        raise UserError(f"got {_quoted(value)}, expected at most {MAX_ID_CHARACTERS} printable characters")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"got {_quoted(value)}, expected a text or null")
    return _unicode(value)


def _labels(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise UserError(f"got {_quoted(value)}, expected a list of emotion words, or null without annotation")
    for label in value:
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"got {_quoted(label)} in the list, expected an emotion word")
        if not label.isascii():
            _unicode(label)
    return tuple(map(sys.intern, value))  # few words, in many rows


def _split(value: Any) -> str:
    if value not in SPLITS:
        raise UserError(f"got {_quoted(value)}, expected one of {', '.join(SPLITS)} or null")
    return SPLITS[SPLITS.index(value)]


def _meta(value: Any) -> dict[str, Any]:
    if not isinstance(value, tuple):
        raise UserError(f"got {_quoted(value)}, expected an object")
    return dict(_with_objects(value))


class _Paths:
    """The paths in a manifest: each folder is resolved once, and listed once for the links in it."""

    def __init__(self, folder: Path, allow_absolute: bool) -> None:
        self.folder, self.allow_absolute = folder, allow_absolute
        self._places: dict[str, _Place | None] = {}

    def of(self, value: Any) -> Path:
        """The path that a row names; raises UserError if it is refused."""
        if not isinstance(value, str):
            raise UserError(f"got {_quoted(value)}, expected a path or null")
        begin = value.rfind("/") + 1
        head, name = value[:begin], value[begin:]
        if head not in self._places:
            allowed = not (os.altsep or path_problem(head or ".", self.folder, self.allow_absolute))
            self._places[head] = _Place(self.folder / head) if allowed else None
        if (place := self._places[head]) and place.has_plainly(name):
            return place.folder / name
        if problem := path_problem(value, self.folder, self.allow_absolute):
            raise UserError(f"got {_quoted(value)}, {problem}")
        return self.folder / value


class _Place:
    """A folder, resolved and allowed, and the names in it that are links."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._prefix, self._looked_at = folder, f"{folder}/", 0
        self._links: frozenset[str] = frozenset()

    def has_plainly(self, name: str) -> bool:
        """Whether a name is that of a file in this folder, present or not, and not of a link."""
        if not (name.isascii() and name.isprintable() and name.strip(" .")):
            return False
        self._looked_at += 1
        if self._looked_at < _FEW_FILES:
            return not os.path.islink(self._prefix + name)
        if self._looked_at == _FEW_FILES:
            with suppress(OSError), os.scandir(self.folder) as entries:
                self._links = frozenset(entry.name.lower() for entry in entries if entry.is_symlink())
        return name.lower() not in self._links


_FEW_FILES = 100
"""Files of a folder that are looked at one by one; for more, the folder is listed, which may be long."""


def _unicode(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"got {_quoted(value)}, expected text without half characters (lone surrogates)") from None
    return value


def _quoted(value: Any) -> str:
    """A value for a message: JSON on one line, cut to 80 characters."""
    text = printable(json.dumps(_with_objects(value), ensure_ascii=False, default=str))
    return text if len(text) <= 80 else f"{text[:77]}..."


_PARSERS: dict[str, Callable[[Any], Any] | None] = {
    "id": _id,
    "video": None,  # a path
    "audio": None,
    "subtitle": _text,
    "labels": _labels,
    "reasoning": _text,
    "split": _split,
    "meta": _meta,
}
