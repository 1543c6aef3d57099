"""Reads a data set's folder and writes its manifest.

`DATA_SETS` is the table of all data sets. `read_set` reads clips, `prepare` writes them: one manifest, or two for the
paper's training, a cold-start part with reasoning texts and the rest for reinforcement learning. Differences from the
expected data set (counts, missing media, missing rows) are returned as warnings.
"""

import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mer_r1.corpora.folder import Folder
from mer_r1.corpora.labelled import DIALOGUE_SETS, SENTIMENT_SETS
from mer_r1.corpora.layout import DataSet, Part, letters
from mer_r1.corpora.mer import MER_SETS, OPEN_SETS, TRAINING_SETS
from mer_r1.corpora.mme_emotion import MME_EMOTION
from mer_r1.corpora.tables import DEFAULT_ENCODING
from mer_r1.data.clip import Clip, path_problem
from mer_r1.data.manifest import write_manifest
from mer_r1.errors import UserError, printable

DATA_SETS: dict[str, DataSet] = {
    data.name: data for data in (*MER_SETS, *DIALOGUE_SETS, *SENTIMENT_SETS, *OPEN_SETS, *TRAINING_SETS, MME_EMOTION)
}
"""Canonical name -> data set."""
NAMED_IN_WARNINGS = 3


@dataclass
class Loaded:
    """One part of a data set, read.

    Attributes:
        data: the data set.
        part: name of the part.
        folder: its folder, and what is missing there.
        clips: the clips, in the order of the data set's own files.
        warnings: differences from the expected data set, one line each.
    """

    data: DataSet
    part: str
    folder: Folder
    clips: list[Clip]
    warnings: list[str]

    @property
    def expected(self) -> int | None:
        """Expected number of clips of the part; None if it is not known."""
        return self.data.parts[self.part].clips


def named(name: str) -> DataSet:
    """Look up a data set by its name; case, blanks and punctuation are ignored ("OV-MERD+" is ovmerdplus).

    Raises:
        UserError: no such data set.

    >>> named("CH-SIMS v2").name
    'simsv2'
    """
    wanted = letters(name)
    for data in DATA_SETS.values():
        if wanted in (letters(data.name), *data.others):
            return data
    raise UserError(f"data set: got {name!r:.60}, expected one of {', '.join(DATA_SETS)}")


def expected_files(data: DataSet) -> list[str]:
    """Files and folders of a data set that `prepare` looks for, as texts for display.

    >>> expected_files(named("meld"))[:2]
    ['label.npz (test_corpus, val_corpus, train_corpus)', 'transcription-engchi-polish.csv (name, english)']
    """
    if data.kind == "questions":
        return ["TASK.json, such as ER_Lab.json", "TASK/*.mp4"]
    keys = dict.fromkeys(part.key for part in data.parts.values())
    of_npz = data.labels.endswith(".npz")
    found = [f"{data.labels} ({', '.join(keys) if of_npz else 'name, openset'})"]
    if not of_npz:
        found += [f"{name} (name, reason)" for name in data.files]
    if data.name == "emer":
        found.append("track3_train_ovmerd.csv (name, reason); or final-EMER-reason.csv; or gt-eng.csv")
    found.append(f"{data.subtitles[0]} (name, {data.subtitles[1]})")
    found += [f"{folder}/*{suffix}" for folder in data.video for suffix in data.suffixes[:1]]
    return found + [f"{folder}/*.wav" for folder in data.audio]


def read_set(
    name: str,
    root: Path | str,
    split: str | None = None,
    *,
    allow_pickle: bool = False,
    encoding: str = DEFAULT_ENCODING,
) -> Loaded:
    """Read one part of a data set.

    Args:
        name: name of the data set, see `named`.
        root: its folder, or the folder that holds it under the release's name.
        split: name of the part; None takes the benchmark's own (or the training part).
        allow_pickle: whether to read `.npz` labels that hold pickles (`data.npz.read_npz`).
        encoding: encoding of the tables.

    Raises:
        UserError: no such data set, part or folder; a file is missing or not as expected; no clips at all.
    """
    data, root = named(name), Path(root)
    if not root.is_dir():
        raise UserError(f"{printable(root)}: no folder, expected the data of {data.title} ({data.folder})")
    if (root / data.folder).is_dir():
        root = root / data.folder
    part = split or _first_part(data, root)
    data.part(part)
    _require_files(data, root, part)
    folder = Folder(root, allow_pickle, encoding)
    clips = list(data.read(data, folder, part))
    if not clips:
        raise UserError(f"{printable(root)}: no clips in the part {part!r} of {data.title}")
    return Loaded(data, part, folder, clips, _warnings(data.parts[part], len(clips), folder))


def prepare(
    name: str,
    root: Path | str,
    out: Path | str | None = None,
    *,
    split: str | None = None,
    split_sft: int | None = None,
    seed: int = 0,
    allow_pickle: bool = False,
    encoding: str = DEFAULT_ENCODING,
    absolute: bool = False,
    drop_missing: bool = False,
) -> dict[str, Any]:
    """Write the manifest of one part of a data set.

    Args:
        name: name of the data set.
        root: its folder, or the folder that holds it under the release's name.
        out: path of the manifest, in the media's folder or above it; None writes `NAME.jsonl` into that folder.
        split: name of the part; see `read_set`.
        split_sft: clips for the cold start: writes two manifests, these (`…-sft.jsonl`) and the rest (`…-rl.jsonl`).
        seed: seed of that choice; it chooses the same names for every order of rows.
        allow_pickle: see `read_set`.
        encoding: encoding of the tables.
        absolute: write absolute paths; the manifest may then lie anywhere, and reading it needs `allow_absolute`.
        drop_missing: whether to leave out clips without a video file.

    Returns:
        A summary as JSON values: `dataset`, `part`, `root`, `manifests` (path -> rows), `clips`, `expected`,
        `missing_video` and `missing_audio` (names), `gold` (word -> clips), `warnings`.

    Raises:
        UserError: see `read_set`; or the manifest cannot be written there.
    """
    loaded = read_set(name, root, split, allow_pickle=allow_pickle, encoding=encoding)
    clips = loaded.clips
    if drop_missing and loaded.folder.no_video:
        clips = [clip for clip in clips if clip.video is not None and clip.video.is_file()]
        loaded.warnings.append(f"{len(loaded.clips) - len(clips)} clips without a video file are left out")
    path = Path(out) if out is not None else loaded.folder.root / f"{loaded.data.name}.jsonl"
    if not absolute:
        _require_above(path, clips)
    manifests = {path: clips}
    if split_sft is not None:
        stages = zip(("sft", "rl"), split_clips(clips, split_sft, seed), strict=True)
        manifests = {path.with_name(f"{path.stem}-{stage}{path.suffix}"): part for stage, part in stages}
    for target, chosen in manifests.items():
        write_manifest(target, chosen, absolute=absolute)
    return {
        "dataset": loaded.data.name,
        "part": loaded.part,
        "root": str(loaded.folder.root),
        "manifests": {str(target): len(chosen) for target, chosen in manifests.items()},
        "clips": len(loaded.clips),
        "expected": loaded.expected,
        "missing_video": loaded.folder.no_video,
        "missing_audio": loaded.folder.no_audio,
        "gold": _gold_counts(clips),
        "warnings": loaded.warnings,
    }


def split_clips(clips: Sequence[Clip], n_sft: int, seed: int = 0) -> tuple[list[Clip], list[Clip]]:
    """Split training clips into a cold-start part and the rest; in the paper 5 k clips for SFT, the others for RL.

    Args:
        clips: the training clips.
        n_sft: number of clips for SFT, drawn uniformly from those with reasoning text and labels.
        seed: seed of the draw.

    Returns:
        Both parts in the order of `clips`; clips without labels are in neither.

    Raises:
        UserError: fewer clips have both, or none is left for RL.
    """
    able = sorted(clip.id for clip in clips if clip.reasoning and clip.labels)
    usable = [clip for clip in clips if clip.labels]
    if not 0 < n_sft <= len(able):
        raise UserError(f"--split-sft {n_sft}: {len(able)} of {len(clips)} clips have a reasoning text and labels")
    chosen = set(random.Random(seed).sample(able, n_sft))
    rest = [clip for clip in usable if clip.id not in chosen]
    if not rest:
        raise UserError(f"--split-sft {n_sft}: nothing is left for RL, expected fewer than {len(usable)}")
    return [clip for clip in usable if clip.id in chosen], rest


def _first_part(data: DataSet, root: Path) -> str:
    """The default part; of EMER, the first release in the folder."""
    present = (name for name, part in data.parts.items() if data.name == "emer" and (root / part.key).is_file())
    return next(present, next(iter(data.parts)))


def _require_files(data: DataSet, root: Path, part: str) -> None:
    """Raise an error that names all missing files at once."""
    if data.kind == "questions":
        return
    wanted = [data.labels, data.subtitles[0], *data.files]
    if data.name == "emer":
        key = data.parts[part].key
        wanted = [key, data.labels, data.subtitles[0]] if part == "mer2025" else [key]
    missing = [name for name in wanted if not (root / name).is_file()]
    if missing:
        raise UserError(
            f"{printable(root)}: no {' and no '.join(missing)} in it; {data.title} ({data.folder}) needs "
            f"{'; '.join(expected_files(data))}"
        )


def _require_above(path: Path, clips: Iterable[Clip]) -> None:
    """Raise an error if a manifest at `path` cannot name the media relative to its own folder."""
    # One file per folder is enough: a single linked file is found when the row is written.
    files = {file.parent: file for clip in clips for file in (clip.video, clip.audio) if file is not None}
    for file in files.values():
        problem = path_problem(Path(os.path.relpath(file, path.parent)).as_posix(), path.parent)
        if problem:
            raise UserError(
                f"{printable(path)}: this manifest cannot name {printable(file)} ({problem}): write it into the data "
                "set's folder (leave --out away) or above it, or pass --absolute"
            )


def _warnings(part: Part, found_clips: int, folder: Folder) -> list[str]:
    found = []
    if part.clips is not None and (found_clips < part.clips if part.at_least else found_clips != part.clips):
        least = "at least " if part.at_least else ""
        found.append(f"{found_clips} clips, expected {least}{part.clips}: results do not compare with published ones")
    for names, what, then in (
        (folder.no_video, "a video file", "their rows are kept and will fail; --drop-missing leaves them out"),
        (folder.no_audio, "a sound file", "the sound of the video is heard instead"),
    ):
        if names:
            listed = ", ".join(printable(name) for name in names[:NAMED_IN_WARNINGS])
            more = ", ..." if len(names) > NAMED_IN_WARNINGS else ""
            found.append(f"{len(names)} of {found_clips} clips without {what} ({listed}{more}): {then}")
    return found + [f"{what}: {count}" for what, count in folder.notes.items()] + folder.remarks


def _gold_counts(clips: Iterable[Clip]) -> dict[str, int]:
    """Number of clips of each gold: words, or the sign of the sentiment."""
    counts: Counter[str] = Counter()
    for clip in clips:
        if (value := clip.meta.get("sentiment")) is not None:
            counts["positive" if value > 0 else "negative" if value < 0 else "neutral"] += 1
        counts.update(clip.labels or ())
    return dict(counts.most_common())
