"""Documents and messages of lmms-eval: clips from our manifests, with video and audio as separate parts.

lmms-eval loads data with Hugging Face's `load_dataset`, which does not read local manifests. So each task loads a file
with one empty row under its own configuration name, and `process_docs` replaces it by the documents: from `NAME.jsonl`
in the folder `MER_R1_DATA` or in a folder inside it, where `mer-r1 prepare` writes it.
"""

import hashlib
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from mer_r1.benchmarks.mer_unibench.gold import TEST_SPLITS, read_gold
from mer_r1.benchmarks.mer_unibench.sets import SETS
from mer_r1.benchmarks.mme_emotion import run as mme
from mer_r1.benchmarks.mme_emotion.judging.evidence import judge_sound
from mer_r1.benchmarks.mme_emotion.tasks import TASKS
from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import write_atomically
from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.thinking import question
from mer_r1.emotions.wheels import Taxonomy, load
from mer_r1.errors import UserError, printable

logger = logging.getLogger(__name__)

DATA, WHEELS, ABSOLUTE = "MER_R1_DATA", "MER_R1_WHEELS", "MER_R1_ALLOW_ABSOLUTE"
"""Environment variables: folder of the manifests; folder of the official wheels; "1" allows absolute media paths."""

MAX_SOUND_SECONDS = 300.0
"""Limit of the audio that is extracted from a video: what Qwen2.5-Omni takes in one piece."""

Document = dict[str, Any]
"""A clip in lmms-eval: `set` (or task), `id`, `question`, `video` and `audio` (absolute paths or None), `gold`
(words, a sentiment value, or MME-Emotion's gold text) and `candidates` (MME-Emotion's labels to choose from, or None).
"""


def process_docs(dataset: Any) -> Any:
    """Hook of the YAML files: a `datasets.Dataset` of the documents of a task, in place of the one with the empty row.

    Raises:
        SystemExit: the documents cannot be made; the message is one line. lmms-eval would retry after any other
            error five times, and print its own traceback after the line.
    """
    from datasets import Dataset

    try:
        wheels()  # a wrong folder should fail before any model runs
        return Dataset.from_list(documents(str(dataset.config_name)))
    except UserError as error:
        raise SystemExit(f"mer-r1: {error}") from error


def documents(name: str) -> list[Document]:
    """The documents of one set of MER-UniBench or one task of MME-Emotion, in the order of the manifest.

    Args:
        name: canonical name of the set (`meld`) or name of the task (`ER-Lab`).

    Raises:
        UserError: no such set; or its manifest is missing, cannot be read, or has no rows of the set.
    """
    found = _mme_documents(name) if name in TASKS else _unibench_documents(name)
    missing = [path for doc in found for path in (doc["video"], doc["audio"]) if path and not Path(path).is_file()]
    if missing:
        logger.warning(
            "%s: %d media files are missing, such as %s; models give blank answers for these clips",
            name,
            len(missing),
            printable(missing[0]),
        )
    return found


def doc_to_messages(doc: Document) -> list[dict[str, Any]]:
    """Hook for chat models: one user turn with the video, then the audio, then the question.

    The audio is a part of its own, as in our training and prediction (`model.prompts.conversation`). If the clip has no
    audio file, the audio of its video is extracted once. A silent clip has no such part.
    """
    parts: list[dict[str, Any]] = []
    if doc["video"]:
        parts.append({"type": "video", "url": doc["video"]})
    audio = doc["audio"] or (doc["video"] and audio_of(Path(doc["video"])))
    if audio:
        parts.append({"type": "audio", "url": str(audio)})
    parts.append({"type": "text", "text": doc["question"]})
    return [{"role": "user", "content": parts}]


def doc_to_visual(doc: Document) -> list[str]:
    """Hook for lmms-eval's simple models, which take one file per clip: the video with its own audio.

    Raises:
        UserError: the clip has no video.
    """
    # Never two files: in a batch these models take the i-th file for the i-th clip.
    if not doc["video"]:
        raise UserError(
            f"{doc['set']}, clip {doc['id']!r:.80}: no video, expected one: simple models take nothing else"
        )
    return [doc["video"]]


def audio_of(video: Path) -> Path | None:
    """A WAV file (mono, 16 kHz) with the audio of a video, extracted once into the user's cache folder.

    Returns:
        The file; None where the video is silent or cannot be read, which is logged.

    Raises:
        UserError: the cache folder cannot be written; otherwise every clip would silently lose its audio.
    """
    try:
        stat = video.stat()
        key = hashlib.sha256(f"{video.absolute()}\n{stat.st_mtime_ns}\n{stat.st_size}".encode()).hexdigest()[:32]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        target = cache / "mer-r1" / "sounds" / f"{key}.wav"
        if target.is_file():
            return target
        wav = judge_sound(video, None, MAX_SOUND_SECONDS)
    except (UserError, OSError) as error:
        logger.warning("%s: the question is asked without audio: %s", printable(video), error)
        return None
    try:
        write_atomically(target, wav)
    except OSError as error:
        raise UserError(
            f"{printable(target.parent)}: cannot write the audio of videos there ({error.strerror})"
        ) from None
    return target


def wheels() -> Taxonomy:
    """The official wheels in the folder `MER_R1_WHEELS`, else the built-in ones, with a warning.

    Raises:
        UserError: the folder does not hold the official wheels.
    """
    return _wheels_in(os.environ.get(WHEELS, ""))


@lru_cache(maxsize=1)
def _wheels_in(folder: str) -> Taxonomy:
    if not folder:
        logger.warning(
            "%s is not set: scores use the built-in wheels and are not comparable with published numbers", WHEELS
        )
    return load(Path(folder).expanduser() if folder else None)


def _unibench_documents(name: str) -> list[Document]:
    if name not in SETS:
        raise UserError(f"data set: got {name!r:.60}, expected one of {', '.join((*SETS, *TASKS))}")
    path = _manifest(name)
    clips = [clip for clip in read_manifest(path, allow_absolute=_absolute()) if clip.split in TEST_SPLITS]
    gold = read_gold([path])
    if name not in gold:
        raise UserError(f"{printable(path)}: its rows are of {', '.join(gold)}, expected {name}")
    for note in gold[name].notes:
        logger.warning("%s: %s", name, note)
    if len(clips) != SETS[name].clips:
        expected = SETS[name].clips
        logger.warning("%s: %d clips, the benchmark has %d: not its published set", name, len(clips), expected)
    return [_document(clip, name, clip.id, question(clip.subtitle), gold[name].values[clip.id]) for clip in clips]


def _mme_documents(task: str) -> list[Document]:
    path = _manifest(mme.DATASET)
    clips = [clip for clip in mme.benchmark_clips(path, _absolute()) if clip.meta["task"] == task]
    if not clips:
        raise UserError(f"{printable(path)}: no rows of the task {task}")
    return [
        _document(
            clip, task, mme.clip_name(clip), mme.question_of(clip), mme.gold_text(clip), clip.meta.get("candidates")
        )
        for clip in clips
    ]


def _document(clip: Clip, name: str, clip_id: str, text: str, gold: Any, candidates: Any = None) -> Document:
    video, audio = (str(path.absolute()) if path else None for path in (clip.video, clip.audio))
    about = {"set": name, "id": clip_id, "question": text, "video": video, "audio": audio}
    return about | {"gold": gold, "candidates": candidates}


def _manifest(name: str) -> Path:
    # The manifest of a data set in the folder `MER_R1_DATA`.
    root = os.environ.get(DATA)
    if not root:
        raise UserError(f"{DATA} is not set, expected the folder that holds {name}.jsonl (`mer-r1 prepare` writes it)")
    folder = Path(root).expanduser()
    found = sorted(folder.glob(f"{name}.jsonl")) + sorted(folder.glob(f"*/{name}.jsonl"))
    if len(found) != 1:
        places = " and ".join(printable(path) for path in found) or "none"
        raise UserError(
            f"{DATA}={printable(folder)}: expected one {name}.jsonl in it or one folder below, found {places}"
        )
    return found[0]


def _absolute() -> bool:
    return os.environ.get(ABSOLUTE) == "1"
