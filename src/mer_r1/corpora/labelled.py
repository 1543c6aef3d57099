"""The eight sets of MER-UniBench whose gold is in an `.npz`: one reader, and the tables of six of them.

An entry of the label file maps a clip's name to `emo`, its one emotion word or the word's index, and `val`, its
sentiment. Discrete sets use the first, sentiment sets the second. Names, order and rules are those of the loaders in
the AffectGPT release. MER2023 and MER2024 use this reader too; their tables are in `mer`.

- MELD (seven emotions, television dialogue) and IEMOCAP (four classes, acted dialogue): gold is an index. IEMOCAP comes
  as one corpus of five sessions; the benchmark tests on the fifth, and its "happy" includes the clips that annotators
  called excited (1636 of the 5531 clips of the four classes).
- CMU-MOSI and CMU-MOSEI (English video blogs), CH-SIMS and CH-SIMS v2 (Chinese films and series): gold is a number, 0
  for neutral; the benchmark asks only whether it is above 0 and leaves out the zeros. CH-SIMS is subtitled in English
  translation, as in the reference.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from mer_r1.corpora.folder import Folder
from mer_r1.corpora.layout import DataSet, Part
from mer_r1.data.clip import Clip
from mer_r1.errors import UserError, printable


def labelled_clips(
    data: DataSet, folder: Folder, part: str, wanted: Callable[[str], bool] | None = None
) -> Iterator[Clip]:
    """Read clips of a data set whose gold is in an `.npz`.

    Args:
        data: a discrete or a sentiment set.
        folder: its folder.
        part: name of the part.
        wanted: whether to take a clip of this name; None takes all.

    Raises:
        UserError: a file is missing or not as expected, or a clip has no valid gold.
    """
    chosen = data.part(part)
    subtitles = folder.table(data.subtitles[0], [data.subtitles[1]])
    file = printable(folder.root / data.labels)
    for name, label in folder.corpus(data.labels, chosen.key).items():
        if wanted is not None and not wanted(name):
            continue
        where = f"{file}: {name!r:.80}"
        sentiment = {"sentiment": _value(label, where)} if data.kind == "sentiment" else {}
        labels = None if sentiment else (_word(data, label, where),)
        subtitle = data.subtitle(folder, subtitles, name)
        video, audio = folder.media(name, data.video, data.audio, data.suffixes)
        meta = {"dataset": data.name, "part": part, **sentiment}
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


def iemocap_clips(data: DataSet, folder: Folder, part: str) -> Iterator[Clip]:
    """Read clips of IEMOCAP: the fifth session is the test part.

    Raises:
        UserError: see `labelled_clips`; or a name holds no session.
    """

    def wanted(name: str) -> bool:
        session = name[4:5]
        if session not in tuple("12345"):
            raise UserError(f"IEMOCAP: the name {name!r:.80} tells no session, expected one like Ses05F_impro01_F000")
        return (session == "5") == (part == "test")

    yield from labelled_clips(data, folder, part, wanted)


def _parts(n_test: int) -> dict[str, Part]:
    counts = {"test": n_test, "val": None, "train": None}
    return {name: Part(name, count, f"{name}_corpus") for name, count in counts.items()}


DIALOGUE_SETS = (
    DataSet(
        name="meld",
        title="MELD",
        kind="discrete",
        folder="meld-process",
        read=labelled_clips,
        parts=_parts(2610),
        video=("subvideo",),
        audio=("subaudio",),
        vocabulary=("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise"),
        indexed=True,
    ),
    DataSet(
        name="iemocap",
        title="IEMOCAP (four classes)",
        kind="discrete",
        folder="iemocap-process",
        read=iemocap_clips,
        parts={"test": Part("test", 1241, "whole_corpus"), "train": Part("train", 5531 - 1241, "whole_corpus")},
        labels="label_4way.npz",
        video=("subvideo-tgt",),
        audio=("subaudio",),
        suffixes=(".avi", ".mp4"),
        vocabulary=("happy", "sad", "neutral", "anger"),
        indexed=True,
        others=("iemocapfour",),
    ),
)


def _sentiment_set(name: str, title: str, clips: int, video: str, audio: str, others: tuple[str, ...] = ()) -> DataSet:
    folder, parts = f"{name}-process", _parts(clips)
    return DataSet(
        name, title, "sentiment", folder, labelled_clips, parts, video=(video,), audio=(audio,), others=others
    )


SENTIMENT_SETS = (
    _sentiment_set("cmumosi", "CMU-MOSI", 686, "subvideo", "subaudio", ("mosi",)),
    _sentiment_set("cmumosei", "CMU-MOSEI", 4659, "subvideo_new", "subaudio", ("mosei",)),
    _sentiment_set("sims", "CH-SIMS", 457, "video", "audio", ("chsims",)),
    _sentiment_set("simsv2", "CH-SIMS v2", 1034, "video_new", "audio", ("chsimsv2",)),
)
