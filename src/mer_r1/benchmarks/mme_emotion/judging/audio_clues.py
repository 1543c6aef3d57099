"""Audio clues: descriptions of a clip's audio in words, for judges without audio input.

The benchmark gives its judge a text about the audio of each clip; those texts are not published with its code. Here
they come from a file in the reference's form, a JSON array of `{"video_id": ..., "audio_clue": ...}`, or from an
audio-capable model (`mer-r1 clues`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mer_r1.benchmarks.mme_emotion.judged import task_of
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.ledger import read_rows

Clues = Mapping[tuple[str, str], str]
"""(Task, clip id) -> clue; task "" for a clue that holds in any task."""


def read_clues(paths: Sequence[Path]) -> dict[tuple[str, str], str]:
    """Audio clues of all files; of several clues of one id the last one counts, as in the reference.

    Args:
        paths: JSON arrays in the reference's form, or JSON lines as `mer-r1 clues` writes them (rows without a clue
            are left out). The clues of a file that is named after a task are for that task.

    Raises:
        UserError: a file cannot be read, or an item has no id or no text; names the place.
    """
    clues: dict[tuple[str, str], str] = {}
    for path in paths:
        named = task_of(path) or ""
        for number, row in enumerate(read_rows(path), start=1):
            name, clue = row.get("video_id"), row.get("audio_clue")
            if clue is None and row.get("error"):
                continue
            if not isinstance(name, str) or not isinstance(clue, str):
                raise UserError(f"{path}: item {number}: expected video_id and audio_clue as texts, got {row!r:.80}")
            clues[str(row.get("task", named)), name] = clue
    if not clues:
        raise UserError(f"{', '.join(map(str, paths))}: no audio clue in it")
    return clues


def find_clue(clues: Clues, task: str, name: str) -> str | None:
    """The clue of a clip: the task's own, else the one for any task, else None."""
    return clues.get((task, name), clues.get(("", name)))
