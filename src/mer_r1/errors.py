"""The one exception that users are meant to see: an input they can put right. And how it names a file."""

from pathlib import Path


class UserError(ValueError):
    """An expected error. Its message is one line: what was wrong, where, and what was expected.

    The command line prints the message without a traceback and exits with status 2.
    """


def printable(path: Path | str) -> str:
    r"""A path as it may be printed: one line, valid UTF-8, whatever bytes its name holds.

    >>> printable("a\nb\udcff.mp4")
    'a\\nb\\udcff.mp4'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(path))
