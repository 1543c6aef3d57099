"""The data sets of the MER challenges: MER2023, MER2024, OV-MERD, OV-MERD+, and for training MER-Caption+ and EMER.

MER2023 and MER2024 have one emotion word per clip. The open-set ones have a string such as "[happy, surprised]", parsed
as in the reference, oddities included, because scores depend on them; a clip whose string holds no word gets the word
"neutral", as there. In the training sets, words that an `<answer>` cannot hold are left out and counted.
"""

from collections.abc import Iterator
from typing import Any

from mer_r1.corpora.folder import Folder
from mer_r1.corpora.labelled import labelled_clips
from mer_r1.corpora.layout import DataSet, Part
from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import format_completion
from mer_r1.emotions.wheels import parse_labels
from mer_r1.errors import UserError, printable

WITHOUT_WORD = "neutral"
"""Gold of a clip whose label string holds no word (the reference's rule). It is on no wheel: the clip is not scored."""
SIX_EMOTIONS = ("neutral", "angry", "happy", "sad", "worried", "surprise")
MER2025_SUBTITLES = ("subtitle_chieng.csv", "english")


def ovmerdplus_clips(data: DataSet, folder: Folder, part: str) -> Iterator[Clip]:
    """Read clips of OV-MERD+: the names are those of the subtitle table.

    Raises:
        UserError: a file is missing or not as expected, or a name has no label string.
    """
    subtitles = folder.table(data.subtitles[0], [data.subtitles[1]])
    words = _open_set(folder, data.labels)
    extra = len(words.keys() - subtitles.keys())
    if extra:
        folder.notes[f"names of {data.labels} that {data.subtitles[0]} lacks (left out)"] += extra
    for name in subtitles:
        if name not in words:
            raise UserError(f"{printable(folder.root / data.labels)}: no row for {name!r:.80} of {data.subtitles[0]}")
        yield _clip(data, folder, part, name, words[name], data.subtitle(folder, subtitles, name))


def mer2025_clips(data: DataSet, folder: Folder, part: str) -> Iterator[Clip]:
    """Read clips of one pair of MER2025 tables: words from the track 2 table, descriptions from the track 3 table.

    OV-MERD needs no descriptions: they are used if the table exists.

    Raises:
        UserError: a file is missing or not as expected.
    """
    words = _open_set(folder, data.labels)
    described = data.labels.replace("track2", "track3")
    reasons = folder.table(described, ["reason"]) if data.kind == "training" or folder.has(described) else {}
    subtitles = folder.table(data.subtitles[0], [data.subtitles[1]])
    for name, labels in words.items():
        reason = reasons.get(name, {}).get("reason")
        subtitle = data.subtitle(folder, subtitles, name)
        yield _clip(data, folder, part, name, labels, subtitle, reason)


def emer_clips(data: DataSet, folder: Folder, part: str) -> Iterator[Clip]:
    """Read clips of EMER in one of its releases: the MER2025 tables of OV-MERD (its later name), v2, or v1.

    v1 has one emotion word per clip; v2 has descriptions alone, and takes its words from `track2_train_ovmerd.csv` or
    `ovlabel.csv` if one of them is in the folder.

    Raises:
        UserError: a file is missing or not as expected.
    """
    if part == "mer2025":
        yield from mer2025_clips(data, folder, part)
    elif part == "v1":
        rows = folder.table(data.parts[part].key, ["emotions", "subtitles", "reasons"], key="names")
        for name, row in rows.items():
            labels = [row["emotions"]] if row["emotions"] else [WITHOUT_WORD]
            yield _clip(data, folder, part, name, labels, row["subtitles"], row["reasons"])
    else:
        yield from _emer_v2(data, folder, part)


def _emer_v2(data: DataSet, folder: Folder, part: str) -> Iterator[Clip]:
    label_file = next((name for name in (data.labels, "ovlabel.csv") if folder.has(name)), None)
    words = _open_set(folder, label_file) if label_file else {}
    subtitles = folder.table(data.subtitles[0], [data.subtitles[1]]) if folder.has(data.subtitles[0]) else {}
    for name, row in folder.table(data.parts[part].key, ["english"]).items():
        subtitle = data.subtitle(folder, subtitles, name)
        yield _clip(data, folder, part, name, words.get(name), subtitle, row["english"])


def _open_set(folder: Folder, file: str) -> dict[str, list[str]]:
    """Read a table with the columns `name` and `openset`: name -> words."""
    words = {}
    for name, row in folder.table(file, ["openset"]).items():
        try:
            words[name] = parse_labels(row["openset"])
        except UserError as error:
            raise UserError(f"{printable(folder.root / file)}: {name!r:.80}: openset: {error}") from None
        if not words[name]:
            folder.notes[f"clips whose label string holds no word (their gold is '{WITHOUT_WORD}')"] += 1
            words[name] = [WITHOUT_WORD]
    return words


def _clip(
    data: DataSet,
    folder: Folder,
    part: str,
    name: str,
    labels: list[str] | None,
    subtitle: str,
    reason: str | None = None,
) -> Clip:
    if data.kind == "training":
        labels = _trainable(folder, labels)
        reason = _reasoning(folder, reason)
    video, audio = folder.media(name, data.video, data.audio, data.suffixes)
    meta: dict[str, Any] = {"dataset": data.name, "part": part}
    gold = tuple(labels) if labels else None
    return Clip(name, video, audio, subtitle, gold, reason or None, data.part(part).split, meta)


def _trainable(folder: Folder, labels: list[str] | None) -> list[str] | None:
    """The words, each once, that `<answer>` can hold and `thinking.parse` returns."""
    if labels is None:
        folder.notes["clips without open-set labels (neither SFT nor RL can use them)"] += 1
        return None
    kept: dict[str, str] = {}
    for label in labels:
        try:
            format_completion("", [label])
        except UserError:
            folder.notes["words with brackets or separators, which an answer cannot carry (left out)"] += 1
        else:
            kept.setdefault(label.lower(), label)
    if not kept:
        folder.notes[f"clips without a word that an answer can carry (their gold is '{WITHOUT_WORD}')"] += 1
    return list(kept.values()) or [WITHOUT_WORD]


def _reasoning(folder: Folder, reason: str | None) -> str | None:
    """The reasoning text for the cold start; None without one, or if a think block cannot hold it."""
    if not (reason or "").strip():
        folder.notes["clips without a reasoning text (SFT cannot use them)"] += 1
        return None
    try:
        format_completion(reason or "", [WITHOUT_WORD])
    except UserError:
        folder.notes["reasoning texts with think or answer tags (left out)"] += 1
        return None
    return reason


def _six_way(name: str, title: str, parts: dict[str, Part], subtitles: tuple[str, str]) -> DataSet:
    more: dict[str, Any] = {"labels": "label-6way.npz", "subtitles": subtitles, "vocabulary": SIX_EMOTIONS}
    return DataSet(name, title, "discrete", f"{name}-dataset-process", labelled_clips, parts, **more)


MER_SETS = (
    _six_way(
        "mer2023",
        "MER2023",
        {
            "test1": Part("test", 411, "test1_corpus"),
            "test2": Part("test", None, "test2_corpus"),
            "train": Part("train", None, "train_corpus"),
        },
        ("transcription-engchi-polish.csv", "english"),
    ),
    _six_way(
        "mer2024",
        "MER2024",
        {
            "test1": Part("test", 1169, "test1_corpus"),
            "test2": Part("test", 1170, "test2_corpus"),
            "train": Part("train", 5030, "train_corpus"),
        },
        # The reference gives the Chinese text here, and English everywhere else.
        ("transcription_merge.csv", "chinese"),
    ),
)

OPEN_SETS = (
    DataSet(
        name="ovmerdplus",
        title="OV-MERD+",
        kind="open-set",
        folder="ovmerdplus-process",
        read=ovmerdplus_clips,
        parts={"test": Part("test", 532)},
        labels="ovlabel.csv",
        subtitles=("subtitle_eng.csv", "sentence"),
    ),
    DataSet(
        name="ovmerd",
        title="OV-MERD",
        kind="open-set",
        folder="mer2025-dataset",
        read=mer2025_clips,
        parts={"test": Part("test", 332)},
        labels="track2_train_ovmerd.csv",
        subtitles=MER2025_SUBTITLES,
    ),
)

TRAINING_SETS = (
    DataSet(
        name="mercaptionplus",
        title="MER-Caption+",
        kind="training",
        folder="mer2025-dataset",
        read=mer2025_clips,
        parts={"train": Part("train", 31327)},
        labels="track2_train_mercaptionplus.csv",
        subtitles=MER2025_SUBTITLES,
        files=("track3_train_mercaptionplus.csv",),
    ),
    DataSet(
        name="emer",
        title="EMER",
        kind="training",
        folder="mer2025-dataset",
        read=emer_clips,
        parts={
            "mer2025": Part("train", 332, "track3_train_ovmerd.csv"),
            "v2": Part("train", 332, "final-EMER-reason.csv"),
            "v1": Part("train", 100, "gt-eng.csv"),
        },
        labels="track2_train_ovmerd.csv",
        subtitles=MER2025_SUBTITLES,
    ),
)
