"""The one exception that users see, for an input that they can correct, and how its message names a file."""

from pathlib import Path


class UserError(ValueError):
    """An expected error. Its message is one line: what was wrong, where, and what was expected.

    The command line prints the message without a traceback and exits with status 2.
    """


def printable(path: Path | str) -> str:
    r"""A path for a message: one line, valid UTF-8, for every file name.

    >>> printable("a\nb\udcff.mp4")
    'a\\nb\\udcff.mp4'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(path))
