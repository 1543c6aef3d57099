"""The one exception that users see, for an input that they can correct, and how its message names files and values."""

import errno
import re
import reprlib
from pathlib import Path

LONGEST = 2000
"""Characters of a message; what lies between its beginning and its end is left out."""
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE}
_STORAGE_TEXT = re.compile(
    r"os error (?:5|27|28|30|122)\b|No space left|inline_container|disk is full|readonly database"
)
_FULL = "; what was written before stays: free some space and run the same command again"
_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother, _brief.maxlong = 2, 80, 80, 80


class UserError(ValueError):
    """An expected error. Its message is one line: what was wrong, where, and what was expected.

    The command line prints the message without a traceback and exits with status 2.
    """

    def __init__(self, message: object) -> None:
        """Make one bounded line of the message, which may quote a file or a library."""
        line = re.sub(r"\s*[\r\n]\s*", " ", str(message)).strip()
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 500]} … {line[-500:]}")


def printable(path: Path | str) -> str:
    r"""A path for a message: one line, valid UTF-8, for every file name.

    >>> printable("a\nb\udcff.mp4")
    'a\\nb\\udcff.mp4'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(path))


def brief(value: object) -> str:
    """A value for a message: like `repr`, with bounded work and length however large the value is.

    >>> brief({"sizes": [1] * 99})
    "{'sizes': [1, 1, 1, 1, 1, 1, ...]}"
    """
    return printable(_brief.repr(value))[:200]


def system_problem(error: BaseException | None) -> str | None:
    """What the disk or the system refused, one line, if that is behind an exception; None for any other.

    Every library has its own exception for a full disk, so its causes and its words are searched.
    """
    while error is not None:
        if isinstance(error, OSError) and (error.filename is not None or error.errno in _STORAGE):
            where = "" if error.filename is None else f"{printable(error.filename)}: "
            return where + str(error.strerror) + (_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else "")
        if "DataLoader worker" in (said := str(error)):
            return f"a worker process died (is there enough memory?): {said}"
        if _STORAGE_TEXT.search(said):
            return f"cannot write: {said}{_FULL}"
        error = error.__cause__ or error.__context__
    return None
