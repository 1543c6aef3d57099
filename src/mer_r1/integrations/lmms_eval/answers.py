"""Converts answers that lmms-eval saved (`--log_samples`) to the prediction files of our other commands.

Sets of MER-UniBench become `NAME.jsonl` for `mer-r1 extract` and `mer-r1 score mer-unibench`, tasks of MME-Emotion
become `TASK.json` in the benchmark's own format for `mer-r1 eval mme-emotion --predictions`.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mer_r1.benchmarks.mer_unibench.sets import SETS
from mer_r1.benchmarks.mme_emotion.tasks import TASKS
from mer_r1.data.jsonl import write_atomically
from mer_r1.errors import UserError, printable

logger = logging.getLogger(__name__)


def export_answers(paths: Iterable[Path | str], out: Path | str) -> dict[Path, int]:
    """Write saved answers as prediction files.

    Args:
        paths: lmms-eval's `..._samples_TASK.jsonl` files, or folders that contain them.
        out: folder for the prediction files.

    Returns:
        Each file written -> its number of answers. A clip whose answer is null is in it with an error, and is logged.

    Raises:
        UserError: a file cannot be read or written, a line is not a sample of our tasks, or a clip appears twice.
    """
    rows: dict[str, dict[str, tuple[Any, str | None]]] = {}
    for path in _files(paths):
        for number, line in enumerate(_lines(path), start=1):
            where = f"{printable(path)}:{number}"
            about, text = _sample(line, where)
            own = rows.setdefault(about["set"], {})
            if about["id"] in own:
                raise UserError(f"{where}: an answer about {about['id']!r:.80} again, expected the files of one run")
            own[about["id"]] = (about["gold"], text)
            if text is None:
                logger.warning("%s: no answer about %.80r: kept as an error", where, about["id"])
    written = {}
    for name, answers in rows.items():
        path = Path(out) / f"{name}.{'json' if name in TASKS else 'jsonl'}"
        try:
            write_atomically(path, (_task_file if name in TASKS else _set_file)(answers))
        except OSError as error:
            raise UserError(f"{printable(path)}: cannot be written ({error.strerror})") from error
        written[path] = sum(text is not None for _, text in answers.values())
    return written


def _files(paths: Iterable[Path | str]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.rglob("*_samples_*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{printable(path)}: no *_samples_*.jsonl in it; lmms-eval writes them with --log_samples")
        found += inside
    return found


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{printable(path)}: cannot be read as UTF-8 text ({error})") from None


def _sample(line: str, where: str) -> tuple[dict[str, Any], str | None]:
    # The clip of a line (`set`, `id`, `gold`), and the answer as the model gave it; None where it gave none.
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    values = row.values() if isinstance(row, dict) else ()
    about = next((value for value in values if isinstance(value, dict) and {"set", "id", "gold"} <= value.keys()), None)
    if row is None or about is None or about["set"] not in (*SETS, *TASKS):
        raise UserError(f"{where}: expected a sample of one of our tasks, got {line[:60]!r}")
    # `resps` is missing where it equals the filtered text; lists of one answer come nested or flat.
    text = row.get("resps", row.get("filtered_resps"))
    while isinstance(text, list) and len(text) == 1:
        text = text[0]
    if not isinstance(text, str | None) or not {"resps", "filtered_resps"} & row.keys():
        raise UserError(f"{where}: resps: got {str(text)[:60]!r}, expected one answer")
    return about, text


def _set_file(answers: dict[str, tuple[Any, str | None]]) -> str:
    rows: list[dict[str, Any]] = [{"id": key, "completion": text} for key, (_, text) in answers.items()]
    for row in rows:
        row.update({"error": "lmms-eval saved no answer"} if row["completion"] is None else {})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _task_file(answers: dict[str, tuple[Any, str | None]]) -> str:
    items = [{"video_id": key, "ground_truth": gold, "model_response": text} for key, (gold, text) in answers.items()]
    return json.dumps(items, ensure_ascii=False, indent=1) + "\n"
