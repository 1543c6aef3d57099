"""Ledger of paid replies: one row per item, written as it arrives, never lost and never paid twice.

A stage appends one JSON line per item as soon as its reply has arrived, and may be killed at any moment. So a
half-written last line is dropped with a warning, and of several rows of one item the last one counts. The same reader
accepts the reference's own files, which are JSON arrays.
"""

import json
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mer_r1.data.jsonl import append_line, object_of, read_lines, repair_end, write_atomically
from mer_r1.errors import UserError

Row = dict[str, Any]


def read_rows(path: Path | str) -> list[Row]:
    """Objects of a JSON array (`.json`) or of JSON lines (anything else), in the file's order.

    Raises:
        UserError: the file cannot be read, is neither, or holds anything but objects.
    """
    path = Path(path)
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix != ".json" and not content.lstrip().startswith(b"["):
        return list(read_lines(path, object_of))
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error!s:.100})") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON array of objects, got {type(rows).__name__}")
    for index, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: item {index}: expected an object, got {row!r:.60}")
    return rows


def write_array(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON array atomically: the form of the reference's own files."""
    write_atomically(path, json.dumps(list(rows), ensure_ascii=False, indent=2) + "\n")


class Ledger:
    """The rows of one stage by key, and the file they are appended to.

    Attributes:
        path: JSON lines.
        rows: key -> the last row with that key, in order of first appearance.
    """

    def __init__(self, path: Path, key: Callable[[Row], Hashable]) -> None:
        """Read the existing rows; a half-written last line is cut off, so that the next row starts on a new line.

        Args:
            path: the file; it may be missing.
            key: gives the key of a row; rows with equal keys are of one item.

        Raises:
            UserError: a line is not a row of this stage.
        """
        self.path, self._key = path, key
        self.rows: dict[Hashable, Row] = {}
        self._lock = threading.Lock()
        if path.exists():
            repair_end(path, object_of)
            for number, row in enumerate(read_rows(path), start=1):
                try:
                    self.rows[key(row)] = row
                except (KeyError, TypeError) as error:
                    raise UserError(f"{path} row {number}: no row of this stage, it lacks {error}") from error

    def add(self, row: Row) -> None:
        """Append a row and keep it; safe from several threads."""
        line = json.dumps(row, ensure_ascii=False)
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                append_line(file, line)
            self.rows[self._key(row)] = row
