"""Notes of the media layer, counted: what was not read of how many clips."""

import re
from collections import Counter
from collections.abc import Iterable

_NUMBER = re.compile(r"(?<![\w.])\d+(\.\d+)?(e[+-]?\d+)?")


def count_notes(noted: Iterable[tuple[str, object]]) -> dict[str, int]:
    """Number of clips with each note, the most frequent first; numbers within a note are replaced by "…".

    Args:
        noted: (clip id, its `Media.notes`), any number of times per clip; anything but a list of texts is ignored.

    >>> count_notes([("a", ["cut to the first 4 s of 45 s"]), ("a", ["cut to the first 4 s of 45 s"]), ("b", [])])
    {'cut to the first … s of … s': 1}
    """
    lists = ((clip, notes) for clip, notes in noted if isinstance(notes, list | tuple))
    found = {(clip, _NUMBER.sub("…", note)) for clip, notes in lists for note in notes if isinstance(note, str)}
    return dict(Counter(sorted(note for _, note in found)).most_common())
