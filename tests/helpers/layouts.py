"""Small copies of every data set's folder, as the public releases lay them out, with made contents.

`write_set` writes one data set, `write_unibench` all nine of MER-UniBench; given media files are copied under the names
that the release gives them, so that a whole evaluation can run on them.
"""

import csv
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NINE = ("mer2023", "mer2024", "meld", "iemocap", "cmumosi", "cmumosei", "sims", "simsv2", "ovmerdplus")
OTHERS = ("ovmerd", "mercaptionplus", "emer", "mme-emotion")

SIX = ("happy", "angry", "sad", "worried", "surprise", "neutral")
OPEN = ("[happy, surprised]", "[sad, lonely]", "['angry', 'frustrated']", "[]", "[nervous]")
SAYING = ("Well, that is great.", "Leave me, alone!", "", 'No "way".', "你好")
REASON = "The corners of the mouth rise, and the voice is bright, so the person is glad."

# folder, label file, entry -> names, video folder, its ending, audio folder, subtitle table
NPZ_SETS: dict[str, tuple[str, str, dict[str, str], str, str, str, str]] = {
    "mer2023": (
        "mer2023-dataset-process",
        "label-6way.npz",
        {"train_corpus": "sample_9{:07d}", "test1_corpus": "sample_{:08d}", "test2_corpus": "sample_5{:07d}"},
        "video",
        ".mp4",
        "audio",
        "transcription-engchi-polish.csv",
    ),
    "mer2024": (
        "mer2024-dataset-process",
        "label-6way.npz",
        {"train_corpus": "sample_9{:07d}", "test1_corpus": "samplenew_{:08d}", "test2_corpus": "samplenew_5{:07d}"},
        "video",
        ".avi",
        "audio",
        "transcription_merge.csv",
    ),
    "meld": (
        "meld-process",
        "label.npz",
        {"train_corpus": "train_dia0_utt{}", "val_corpus": "dev_dia0_utt{}", "test_corpus": "test_dia0_utt{}"},
        "subvideo",
        ".mp4",
        "subaudio",
        "transcription-engchi-polish.csv",
    ),
    "iemocap": (
        "iemocap-process",
        "label_4way.npz",
        {"whole_corpus": "Ses05F_impro01_F{:03d}"},
        "subvideo-tgt",
        ".avi",
        "subaudio",
        "transcription-engchi-polish.csv",
    ),
    **{
        name: (
            f"{name}-process",
            "label.npz",
            {"train_corpus": "train-{}", "val_corpus": "val-{}", "test_corpus": "-3g5yACwYnA_{}"},
            video,
            ".mp4",
            audio,
            "transcription-engchi-polish.csv",
        )
        for name, video, audio in (
            ("cmumosi", "subvideo", "subaudio"),
            ("cmumosei", "subvideo_new", "subaudio"),
            ("sims", "video", "audio"),
            ("simsv2", "video_new", "audio"),
        )
    },
}


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_unibench(root: Path, n: int = 3, videos: Sequence[Path] = (), sounds: Sequence[Path] = ()) -> Path:
    """All nine sets below `root`, each under its own folder, with `n` clips in the tested part."""
    for name in NINE:
        write_set(root, name, n, videos, sounds)
    return root


def write_set(root: Path, name: str, n: int = 3, videos: Sequence[Path] = (), sounds: Sequence[Path] = ()) -> Path:
    """One data set with `n` clips in each part; returns its folder.

    `videos` and `sounds` are taken in turn; without them the media files are there, but empty.
    """
    if name in NPZ_SETS:
        return _npz_set(root, name, n, videos, sounds)
    return {
        "ovmerdplus": _ovmerdplus,
        "ovmerd": _mer2025,
        "mercaptionplus": _mer2025,
        "emer": _mer2025,
        "mme-emotion": _mme_emotion,
    }[name](root, name, n, videos, sounds)


def add_media(
    folder: Path, names: Sequence[str], videos: Sequence[Path], sounds: Sequence[Path], places: tuple[str, str, str]
) -> None:
    """Media of clips: `places` is the video folder, the ending of its files, and the audio folder ("" for none)."""
    video, ending, audio = places
    for index, name in enumerate(names):
        for given, target in ((videos, folder / video / f"{name}{ending}"), (sounds, folder / audio / f"{name}.wav")):
            if target.suffix == ".wav" and not audio:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if given:
                shutil.copy(given[index % len(given)], target)
            else:
                target.touch()


def labels_of(name: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Gold as the release pickles it: numpy strings and numbers within a dictionary."""
    if name in ("mer2023", "mer2024"):
        return {clip: {"emo": SIX[i % 6], "val": np.float64(0.0)} for i, clip in enumerate(names)}
    if name in ("meld", "iemocap"):
        return {clip: {"emo": i % (7 if name == "meld" else 4), "val": -10} for i, clip in enumerate(names)}
    return {clip: {"emo": 0, "val": np.float32((1.5, -0.5, 0.0)[i % 3])} for i, clip in enumerate(names)}


def _npz_set(root: Path, name: str, n: int, videos: Sequence[Path], sounds: Sequence[Path]) -> Path:
    place, labels, entries, video, ending, audio, table = NPZ_SETS[name]
    folder = root / place
    folder.mkdir(parents=True, exist_ok=True)
    names = {key: [pattern.format(i) for i in range(n)] for key, pattern in entries.items()}
    if name == "iemocap":  # one corpus of all sessions
        names["whole_corpus"] += [f"Ses01M_script01_1_M{i:03d}" for i in range(n)]
    np.savez_compressed(folder / labels, **{key: labels_of(name, clips) for key, clips in names.items()})
    every = [clip for clips in names.values() for clip in clips]
    said = [(clip, SAYING[i % len(SAYING)], f"第 {i} 句") for i, clip in enumerate(every)]
    write_csv(folder / table, ["name", "english", "chinese"], said)
    add_media(folder, every, videos, sounds, (video, ending, audio))
    return folder


def _ovmerdplus(root: Path, name: str, n: int, videos: Sequence[Path], sounds: Sequence[Path]) -> Path:
    folder = root / f"{name}-process"
    names = [f"samplenew3_{i:08d}" for i in range(n)]
    write_csv(folder / "ovlabel.csv", ["name", "openset"], [(c, OPEN[i % len(OPEN)]) for i, c in enumerate(names)])
    said = [(clip, SAYING[i % len(SAYING)]) for i, clip in enumerate(names)]
    write_csv(folder / "subtitle_eng.csv", ["name", "sentence"], said)
    add_media(folder, names, videos, sounds, ("video", ".mp4", "audio"))
    return folder


def _mer2025(root: Path, name: str, n: int, videos: Sequence[Path], sounds: Sequence[Path]) -> Path:
    table = "mercaptionplus" if name == "mercaptionplus" else "ovmerd"
    folder = root / "mer2025-dataset"
    names = [f"{'samplenew' if table == 'mercaptionplus' else 'sample'}_{i:08d}" for i in range(n)]
    words = [(clip, OPEN[i % len(OPEN)]) for i, clip in enumerate(names)]
    write_csv(folder / f"track2_train_{table}.csv", ["name", "openset"], words)
    write_csv(folder / f"track3_train_{table}.csv", ["name", "reason"], [(clip, f"{REASON} {clip}") for clip in names])
    said = [(clip, f"第 {i} 句", SAYING[i % len(SAYING)]) for i, clip in enumerate(names)]
    write_csv(folder / "subtitle_chieng.csv", ["name", "chinese", "english"], said)
    add_media(folder, names, videos, sounds, ("video", ".mp4", "audio"))
    return folder


def _mme_emotion(root: Path, name: str, n: int, videos: Sequence[Path], sounds: Sequence[Path]) -> Path:
    folder = root / "MME-Emotion"
    folder.mkdir(parents=True, exist_ok=True)
    golds: dict[str, tuple[str, ...]] = {
        "ER_Lab": ("Happiness", "Anger"),
        "ER_Wild": ("happy", "fear"),
        "ML_ER": ("happiness, surprise", "sadness"),
        "FG_ER": ("peace, affection", "doubt"),
        "Noise_ER": ("worried", "sad"),
        "IR": ("questioning", "agreeing"),
        "SA": ("positive", "negative"),
        "FG_SA": ("weak positive", "strong negative"),
    }
    for task, gold in golds.items():
        rows = [
            {
                "video_id": f"{task}-{i}" if task == "ER_Lab" else f"{task}-{i}.mp4",
                "question": f"What does the person show in clip {i}?",
                "label_set": list(gold),
                "ground_truth": gold[i % len(gold)],
            }
            for i in range(n)
        ]
        (folder / f"{task}.json").write_text(json.dumps(rows), encoding="utf-8")
        add_media(folder, [f"{task}-{i}" for i in range(n)], videos, sounds, (task, ".mp4", ""))
    return folder
