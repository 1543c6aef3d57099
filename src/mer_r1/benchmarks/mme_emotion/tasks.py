"""The eight tasks of MME-Emotion and their differences.

All facts follow the public code of the benchmark (FunAudioLLM/MME-Emotion, commit 0c265d8), where every task has
scripts of its own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from mer_r1.errors import UserError

Key = TypeVar("Key")
Entry = TypeVar("Entry")

MERGED = MappingProxyType(
    {"angry": "anger", "disgusted": "disgust", "happy": "happiness", "sad": "sadness", "surprised": "surprise"}
)
"""Gold labels that ER-Wild spells in two ways: its category table counts them together."""


@dataclass(frozen=True)
class Task:
    """One task of the benchmark.

    Attributes:
        name: as the benchmark writes it; judged files are named after it.
        about: subject of the last step of an answer: "emotion", "sentiment" or "intent".
        meaning: display name.
        fraction: whether the last step is rated C/K (C of the K gold labels are among the predicted ones) instead of
            0/1 or 1/1.
        has_refusal: whether the worked examples of step extraction hold a refused answer.
        extractor_tries: requests until an extraction counts as failed, the first one included.
        judge_tries: likewise for the judge.
        merged: spelling of a gold label -> category in the category table.
        has_categories: whether the reference prints a category table.
    """

    name: str
    about: str
    meaning: str
    fraction: bool = False
    has_refusal: bool = True
    extractor_tries: int = 10
    judge_tries: int = 20
    merged: Mapping[str, str] = field(default_factory=dict, hash=False)
    has_categories: bool = True


_ALL = (
    Task("ER-Lab", "emotion", "emotion, recorded in a laboratory", has_refusal=False),
    Task("ER-Wild", "emotion", "emotion, in the wild", has_refusal=False, extractor_tries=5, merged=MERGED),
    Task("ML-ER", "emotion", "emotions, several labels", fraction=True, judge_tries=5, has_categories=False),
    Task("FG-ER", "emotion", "fine-grained emotions", fraction=True, judge_tries=5, has_categories=False),
    Task("Noise-ER", "emotion", "emotion, under noise"),
    Task("IR", "intent", "intent"),
    Task("SA", "sentiment", "sentiment"),
    Task("FG-SA", "sentiment", "sentiment with its intensity"),
)

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})
"""Name -> task, in the order in which the reference pools them for the overall score."""


def task_named(name: object) -> Task:
    """The task of that name; upper and lower case, "-", "_" and blanks do not matter.

    Raises:
        UserError: no such task.

    >>> task_named("fg_sa").name
    'FG-SA'
    """
    found = _BY_KEY.get(_key(name)) if isinstance(name, str) else None
    if found is None:
        raise UserError(f"task: got {name!r:.60}, expected one of {', '.join(TASKS)}")
    return found


def grouped(items: Iterable[Entry], key: Callable[[Entry], Key]) -> dict[Key, list[Entry]]:
    """Items by their key, in the order of their first ones."""
    groups: dict[Key, list[Entry]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _key(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")


_BY_KEY = {_key(name): task for name, task in TASKS.items()}
