"""MME-Emotion: eight tasks of questions about clips, one JSON array per task, the videos in a folder beside it.

The benchmark's code names the fields `video_id`, `ground_truth` and `label_set`; the name of the question's field is
not documented there. So a few likely names are tried for each field, and an item without an id or a gold label is an
error. Files are found by their task in any spelling (`ER_Lab.json`, `ER-Lab.json`). A task whose file is missing or
empty is reported: the release had an empty `FG_SA.json` for a time.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mer_r1.corpora.folder import Folder
from mer_r1.corpora.layout import DataSet, Part, letters
from mer_r1.data.clip import Clip
from mer_r1.errors import UserError, printable

TASKS = ("ER-Lab", "ER-Wild", "ML-ER", "FG-ER", "Noise-ER", "IR", "SA", "FG-SA")
"""The tasks, in the order in which the benchmark pools them."""
EMOTION_TASKS = frozenset(TASKS[:5])
"""Tasks whose gold is emotion words, which are also the clip's `labels`."""
TASK_CLIPS = 500
"""Least number of items of a task (the benchmark's paper)."""
FIELDS: Mapping[str, tuple[str, ...]] = {
    "video_id": ("video_id", "video", "video_path", "video_name", "id"),
    "gold": ("ground_truth", "answer", "label", "gold"),
    "question": ("question", "prompt", "instruction", "query"),
    "candidates": ("label_set", "labels", "candidates", "options", "choices"),
    "subtitle": ("subtitle", "transcript", "text"),
}
"""Our name of a field -> names that it may have, the documented one first."""


def mme_emotion_clips(data: DataSet, folder: Folder, part: str) -> Iterator[Clip]:
    """Read items of MME-Emotion, of all tasks or of one.

    Yields:
        Clips with `meta` task, video_id, question (if there is one), candidates (likewise) and gold.

    Raises:
        UserError: no task file is there, a file is no JSON array of objects, or an item lacks its id or its gold.
    """
    data.part(part)
    files = _task_files(folder.root)
    wanted = TASKS if part == "all" else (part,)
    if not any(task in files for task in wanted):
        raise UserError(f"{printable(folder.root)}: no {' or '.join(f'{_stem(task)}.json' for task in wanted)} in it")
    for task in wanted:
        rows = _rows(files[task], folder) if task in files else []
        if len(rows) < TASK_CLIPS:
            kept = f"{len(rows)} items" if task in files else f"no {_stem(task)}.json"
            folder.remarks.append(f"task {task}: {kept}, expected at least {TASK_CLIPS}")
        seen: dict[str, dict[str, Any]] = {}
        file = printable(files.get(task, ""))
        for number, row in enumerate(rows, start=1):
            where = f"{file}: item {number}"
            video_id = _field(row, "video_id", where)
            if not isinstance(video_id, str):
                raise UserError(f"{where}: video_id: got {video_id!r:.60}, expected a text")
            if seen.setdefault(video_id, row) is row:
                yield _clip(folder, data, task, files[task].stem, video_id, row, where)
            elif seen[video_id] != row:
                raise UserError(f"{where}: video_id: {video_id!r:.80} is there twice, and the items differ")
            else:
                folder.notes[f"items that are in {files[task].name} again"] += 1


def _clip(folder: Folder, data: DataSet, task: str, stem: str, video_id: str, row: dict[str, Any], where: str) -> Clip:
    gold, words = _gold(row, where)
    meta: dict[str, Any] = {"dataset": data.name, "part": task, "task": task, "video_id": video_id, "gold": gold}
    question = _field(row, "question")
    if isinstance(question, str) and question.strip():
        meta["question"] = question
    if candidates := _candidates(_field(row, "candidates")):
        meta["candidates"] = candidates
    subtitle = _field(row, "subtitle")
    path = Path(video_id)
    has_ending = path.suffix.lower() in (".mp4", ".avi", ".mkv", ".webm", ".mov", ".flv")
    name, endings = (str(path.with_suffix("")), (path.suffix,)) if has_ending else (video_id, data.suffixes)
    video, _ = folder.media(name, (stem, "videos", "video", "."), (), endings)
    labels = tuple(words) if task in EMOTION_TASKS else None
    return Clip(
        f"{task}/{video_id}", video, None, subtitle if isinstance(subtitle, str) else "", labels, None, "test", meta
    )


def _gold(row: dict[str, Any], where: str) -> tuple[str | list[str], list[str]]:
    """The gold label or labels as text, and their words."""
    gold = _field(row, "gold", where)
    golds = [str(word) for word in gold] if isinstance(gold, list) else [str(gold)]
    words = [word.strip() for text in golds for word in text.split(",") if word.strip()]
    if not words or isinstance(gold, dict | bool):
        raise UserError(f"{where}: ground_truth: got {gold!r:.60}, expected a label or a list of labels")
    return golds if isinstance(gold, list) else golds[0], words


def _task_files(root: Path) -> dict[str, Path]:
    """Task -> its file."""
    tasks = {letters(task): task for task in TASKS}
    found: dict[str, Path] = {}
    try:
        files = sorted(root.glob("*.json")) + sorted(root.glob("*/*.json"))
    except OSError as error:
        raise UserError(f"{printable(root)}: cannot be read ({error.strerror})") from None
    for file in files:
        if task := tasks.get(letters(file.stem)):
            found.setdefault(task, file)
    return found


def _rows(file: Path, folder: Folder) -> list[dict[str, Any]]:
    try:
        content = file.read_text(encoding="utf-8-sig")
        rows = json.loads(content) if content.strip() else []
    except OSError as error:
        raise UserError(f"{printable(file)}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{printable(file)}: no JSON ({printable(str(error)):.120})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{printable(file)}: expected a JSON array of objects")
    return rows


def _field(row: Mapping[str, Any], name: str, where: str | None = None) -> Any:
    """A field under the first of its names in the row; required if `where` is given."""
    for key in FIELDS[name]:
        if row.get(key) not in (None, ""):
            return row[key]
    if where is None:
        return None
    found = ", ".join(printable(str(key)) for key in row) or "nothing"
    raise UserError(f"{where}: no {FIELDS[name][0]} (nor {', '.join(FIELDS[name][1:])}), found {found:.200}")


def _candidates(value: Any) -> list[str]:
    """Candidate labels: a list, a mapping's values, or a text with commas."""
    if isinstance(value, str):
        value = value.strip().removeprefix("[").removesuffix("]").split(",")
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return []
    return [word for item in value if (word := str(item).strip().strip("'\"").strip())]


def _stem(task: str) -> str:
    return task.replace("-", "_")


MME_EMOTION = DataSet(
    name="mme-emotion",
    title="MME-Emotion",
    kind="questions",
    folder="MME-Emotion",
    read=mme_emotion_clips,
    parts={
        "all": Part("test", 8 * TASK_CLIPS, at_least=True),
        **{task: Part("test", TASK_CLIPS, at_least=True) for task in TASKS},
    },
    labels="",
    subtitles=("", ""),
    audio=(),
    others=("mmeemotion", "mme"),
)
