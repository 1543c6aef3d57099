"""The eight sets of MER-UniBench whose gold is in an `.npz`: one loop, and two ways of reading the gold.

An entry of the label file maps a clip's name to `emo`, its one emotion word or the word's index, and `val`, its
sentiment. Discrete sets use the first, sentiment sets the second. Names, order and rules are those of the loaders in
the AffectGPT release.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from mer_r1.corpora.folder import Folder
from mer_r1.corpora.layout import DataSet
from mer_r1.data.clip import Clip
from mer_r1.errors import UserError, shown


def labelled_clips(
    data: DataSet, folder: Folder, part: str, wanted: Callable[[str], bool] | None = None
) -> Iterator[Clip]:
    """Clips of a data set whose gold is in an `.npz`.

    Args:
        data: a discrete or a sentiment set.
        folder: where it is.
        part: name of the part.
        wanted: which names to take; all if None.

    Raises:
        UserError: a file is missing or not as expected, or a clip's gold is none.
    """
    chosen = data.part(part)
    subtitles = folder.table(data.subtitles[0], [data.subtitles[1]])
    file = shown(folder.root / data.labels)
    for name, label in folder.corpus(data.labels, chosen.key).items():
        if wanted is not None and not wanted(name):
            continue
        where = f"{file}: {name!r:.80}"
        meta: dict[str, Any] = {"dataset": data.name, "part": part}
        labels = None
        if data.kind == "sentiment":
            meta["sentiment"] = _value(label, where)
        else:
            labels = (_word(data, label, where),)
        subtitle = data.subtitle(folder, subtitles, name)
        video, audio = folder.media(name, data.video, data.audio, data.suffixes)
        yield Clip(name, video, audio, subtitle, labels, None, chosen.split, meta)


def _word(data: DataSet, label: dict[str, Any], where: str) -> str:
    """The emotion word of `emo`."""
    emotion = label.get("emo")
    if isinstance(emotion, str) and emotion in data.vocabulary:
        return emotion
    if data.indexed and type(emotion) is int and 0 <= emotion < len(data.vocabulary):
        return data.vocabulary[emotion]
    indices = f", or 0 to {len(data.vocabulary) - 1}" if data.indexed else ""
    raise UserError(f"{where}: emo: got {emotion!r:.40}, expected one of {', '.join(data.vocabulary)}{indices}")


def _value(label: dict[str, Any], where: str) -> float:
    """The sentiment of `val`."""
    value = label.get("val")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: val: got {value!r:.40}, expected a number (above 0 is positive)")
    return float(value)
