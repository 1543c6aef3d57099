"""Read judged items: the reference's files or our own records, in one form for scoring.

The reference keeps one JSON array per task, named after it (`ER-Lab.json`), with `video_id`, `ground_truth`,
`model_response`, `step` and `score`, the judge's raw reply or null. Our records hold the same fields and name
their task, mode, judge and repetition.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mer_r1.benchmarks.mme_emotion.tasks import TASKS, grouped, task_named
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.ledger import Row, read_rows

logger = logging.getLogger(__name__)

JUDGED_FILE = "judged.jsonl"
GIVEN = "given"
"""Mode of answers from elsewhere, whose mode is unknown."""
MODES = ("slow", "fast", GIVEN)


@dataclass(frozen=True)
class Judged:
    """One item as a judge left it.

    Attributes:
        id: id of its clip; "#3" for the third item of a file without ids.
        gold: gold label, usually a text.
        score: raw reply of the judge, null on failure; may be anything.
        step: the extracted steps; None if the file does not hold them.
        mode: "slow", "fast" or "given".
        judge: name of the judge; "" if unknown.
        repeat: repetition, from 0.
        error: why there is no reply; None if there is one or the reason is unknown.
    """

    task: str
    id: str
    gold: Any
    score: Any
    step: str | None = None
    mode: str = GIVEN
    judge: str = ""
    repeat: int = 0
    error: str | None = None


def read_judged(paths: Sequence[Path]) -> list[Judged]:
    """Items of judged files and folders, in the reference's order of tasks.

    Args:
        paths: files (`TASK.json`, or our `judged.jsonl`), or folders with either; a folder may hold one folder each for
            `slow` and `fast`.

    Raises:
        UserError: a file cannot be read or names no task, or a task comes from two files.
    """
    found: list[Judged] = []
    source: dict[tuple[str, str], Path] = {}
    for path in task_files(paths):
        items = _items(read_rows(path), path)
        for pair in {(item.mode, item.task) for item in items}:
            if pair in source:
                raise UserError(f"{path}: task {pair[1]} was already read from {source[pair]}, expected it once")
            source[pair] = path
        found += items
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: no judged items, expected files named {', '.join(TASKS)}")
    order = {name: index for index, name in enumerate(TASKS)}
    return sorted(found, key=lambda item: order[item.task])  # stable: the files' own order within a task


def first_judgements(items: Iterable[Judged], judge: str | None = None) -> list[Judged]:
    """The items that are scored: the first repetition of one judge; None takes the first judge in the items.

    Raises:
        UserError: that judge has judged none of them.
    """
    items = list(items)
    judges = list(dict.fromkeys(item.judge for item in items))
    if judge is not None and judge not in judges:
        raise UserError(f"judge: got {judge!r}, the judged items are by {', '.join(map(repr, judges))}")
    chosen = judge if judge is not None else next(iter(judges), "")
    return [item for item in items if item.repeat == 0 and item.judge == chosen]


def by_mode(items: Iterable[Judged]) -> dict[str, list[Judged]]:
    """Items by mode, slow first."""
    groups = grouped(items, lambda item: item.mode)
    return {mode: groups[mode] for mode in MODES if mode in groups}


def task_files(paths: Sequence[Path]) -> list[Path]:
    """Files among `paths` and in the folders among them: `judged.jsonl`, or those named after tasks.

    Raises:
        UserError: no path is given, or a folder holds no such file.
    """
    if not paths:
        raise UserError("judged files: got none, expected a folder or files named after their tasks")
    files: list[Path] = []
    for path in paths:
        files += _folder_files(path) if path.is_dir() else [path]
    return files


def _folder_files(folder: Path) -> list[Path]:
    if (folder / JUDGED_FILE).is_file():
        return [folder / JUDGED_FILE]
    files: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".json", ".jsonl"):
            (files if task_of(path) else others).append(path)
        elif path.is_dir() and path.name in MODES:
            files += _folder_files(path)
    if not files:
        raise UserError(f"{folder}: nothing of a task in it, expected {JUDGED_FILE} or files such as ER-Lab.json")
    if others:
        logger.warning("%s: not named after a task and left out: %s", folder, ", ".join(path.name for path in others))
    return files


def task_of(path: Path) -> str | None:
    """The task that a file is named after; None for other names."""
    try:
        return task_named(path.stem).name
    except UserError:
        return None


def _items(rows: Sequence[Row], path: Path) -> list[Judged]:
    named = task_of(path)
    if named is None and not all("task" in row for row in rows):
        raise UserError(f"{path}: which task? Expected the name to be one of {', '.join(TASKS)}")
    items = [_item(row, number, path, row.get("task", named)) for number, row in enumerate(rows, start=1)]
    if not all("task" in row and "mode" in row for row in rows):
        return items
    # Our own records: an item that was judged again after a failure counts once, the last time.
    return list({(item.task, item.id, item.mode, item.judge, item.repeat): item for item in items}.values())


def _item(row: Row, number: int, path: Path, task: object) -> Judged:
    try:
        name = task_named(task).name
    except UserError as error:
        raise UserError(f"{path}: item {number}: {error}") from error
    # The mode of a file from elsewhere is that of its folder, if that says one.
    mode = row.get("mode", path.parent.name if path.parent.name in MODES else GIVEN)
    if mode not in MODES:
        raise UserError(f"{path}: item {number}: mode: got {mode!r:.40}, expected one of {', '.join(MODES)}")
    repeat = row.get("repeat", 0)
    if not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 0:
        raise UserError(f"{path}: item {number}: repeat: got {repeat!r:.40}, expected a number from 0")
    step = row.get("step")
    error_text = row.get("error")
    return Judged(
        task=name,
        id=str(row.get("video_id", f"#{number}")),
        gold=row.get("ground_truth"),
        score=row.get("score"),
        step=step if isinstance(step, str) else None,
        mode=mode,
        judge=str(row.get("judge") or ""),
        repeat=repeat,
        error=None if error_text is None else str(error_text),
    )
