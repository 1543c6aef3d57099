"""JSON files: one object, or JSON lines whose writer may have been killed in the middle of the last one."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from mer_r1.errors import UserError, printable

logger = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: if the file cannot be read or holds no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{printable(path)} is no JSON: {error!s:.100}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises as `read_json` does, and if it holds no object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{printable(path)}: expected an object, name -> value, got {type(content).__name__}")
    return content


def write_atomically(path: Path | str, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file whole or not at all: beside its place first, then moved there.

    After a kill or on a full disk, the old file or none is there, never half of one.

    Args:
        path: the file; its folder is created.
        content: text (UTF-8), bytes, or a function that writes to the path it is given.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if callable(content):
            content(partial)
        else:
            partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:  # in the words of the file that was meant, a full disk names none
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def append_line(file: IO[Any], line: str) -> None:
    """Append one line to a file open for appending, whole or not at all: after a full disk the next one starts anew.

    Nothing is buffered, so that a kill costs at most this line (`repair_end`).
    """
    number, left = file.fileno(), (line + "\n").encode("utf-8", "replace")
    begin, length = os.fstat(number).st_size, len(left)
    try:
        while left:
            left = left[os.write(number, left) :]
    except OSError as error:
        with suppress(OSError):
            if os.fstat(number).st_size == begin + length - len(left):  # no other process has written meanwhile
                os.ftruncate(number, begin)
        raise OSError(error.errno, error.strerror, file.name) from error


def object_of(line: bytes, what: str = "a row") -> dict[str, Any]:
    """Parse the JSON object of one line.

    Args:
        line: UTF-8, without its line end.
        what: name of the object in the error message.

    Raises:
        UserError: it is no JSON object.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"expected {what} as one JSON object, got {line[:60].decode('utf-8', 'replace')!r}") from error
    if not isinstance(row, dict):
        raise UserError(f"expected {what} as one JSON object, got {row!r:.60}")
    return row


def read_lines(path: Path, parse: Callable[[bytes], Parsed]) -> Iterator[Parsed]:
    """Parse every line of a file; blank lines are skipped.

    A last line without a line end that cannot be parsed is dropped with a warning: its writer was killed.

    Args:
        path: file of JSON lines.
        parse: parser of one line; its UserError gets file and line in front.

    Raises:
        UserError: the file, or a line other than such a last one, cannot be read.
    """
    try:
        content = path.read_bytes()
        content.decode("utf-8")
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        if error.end < len(content):  # else a kill may have cut a character in two
            raise UserError(f"{printable(path)}: expected UTF-8 text: {error}") from error
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            parsed = parse(line)
        except UserError as error:
            if number == len(lines):
                logger.warning("%s: line %d was only half written and is dropped", printable(path), number)
                return
            raise UserError(f"{printable(path)} line {number}: {error}") from error
        yield parsed


def repair_end(path: Path, parse: Callable[[bytes], object]) -> None:
    """Cut off a half-written last line, or add its missing line end, before lines are appended.

    Args:
        path: file of JSON lines.
        parse: parser of one line, as in `read_lines`.
    """
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return
    try:
        parse(content[end:])
    except UserError:
        logger.warning("%s: a half-written last line was dropped", printable(path))
        with path.open("r+b") as file:
            file.truncate(end)
    else:
        with path.open("ab") as file:
            file.write(b"\n")
