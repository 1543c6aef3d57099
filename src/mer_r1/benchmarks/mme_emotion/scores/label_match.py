"""Recognition without a judge, for quick work: the answer's words against gold and candidate labels.

This is NOT the benchmark's score. No model reads anything: the words inside `<answer>` are compared with the candidate
labels of the item's question, by spelling first, then by base word and wheel label ("thrilled" is "excitement"), then
by the sectors of the emotion wheels; the closest candidate is what the answer states. Reasoning cannot be scored so.

A task with one gold label asks for one emotion, so the first known word decides (`recognition`). `any_hit` also accepts
the later words, since a judge may be that lenient. Tasks with several gold labels follow the judge's rule: C of the K
gold labels named, extra words are free.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mer_r1.benchmarks.mme_emotion.scores.audit import intervals
from mer_r1.benchmarks.mme_emotion.tasks import TASKS, Task
from mer_r1.emotions.answers import answer_words
from mer_r1.emotions.thinking import parse
from mer_r1.emotions.wheels import Taxonomy

SHORT_ANSWER_WORDS = 6
"""Most words of an answer without tags that is read as a label; a longer one is prose."""

_SAME_SPELLING, _SAME_BASE, _SAME_LABEL = 3.0, 2.0, 1.5
_MOST_WHEELS = 0.5
_INTENSITY = {
    "strongly": "strong",
    "weakly": "weak",
    "slight": "weak",
    "slightly": "weak",
    "mild": "weak",
    "mildly": "weak",
}
_SENTIMENT = ("very", "strong", "weak", "positive", "negative", "neutral")


@dataclass(frozen=True)
class LabelItem:
    """One answer to be matched.

    Attributes:
        task: name of its task.
        response: the model's answer, with or without tags.
        gold: gold labels, at least one.
        candidates: labels offered by the question; None without any.
    """

    task: str
    response: str
    gold: tuple[str, ...]
    candidates: tuple[str, ...] | None = None


def gold_labels(gold: Any) -> tuple[str, ...]:
    """Gold labels of a `ground_truth` field: a list, or a text with commas between them.

    >>> gold_labels("fear, sadness,anxiety")
    ('fear', 'sadness', 'anxiety')
    """
    parts = gold if isinstance(gold, list | tuple) else str(gold).split(",")
    return tuple(text for part in parts if (text := str(part).strip()))


def stated_words(response: str) -> tuple[str, ...]:
    """Labels of an answer: those inside its tags, or a short answer without tags as a whole."""
    answer = parse(response).answer
    if not answer and "<" not in response and len(response.split()) <= SHORT_ANSWER_WORDS:
        answer = response
    return answer_words(answer) or ()


def match(item: LabelItem, taxonomy: Taxonomy) -> tuple[float, float, bool]:
    """Score of one answer.

    Returns:
        Recognition in [0, 1]: for tasks with one gold label whether the first known word is right, else the share of
        gold labels that some word names; then whether any word hits (0 or 1); then whether any word is known.
    """
    task = TASKS[item.task]
    stated = [found for word in stated_words(item.response) if (found := _meant(word, item, task, taxonomy))]
    gold = {_plain(label, task) for label in item.gold}
    named = gold.intersection(set().union(*stated))
    recognition = len(named) / len(gold) if task.fraction else float(bool(stated and named & stated[0]))
    return recognition, float(bool(named)), bool(stated)


def label_report(items: Iterable[LabelItem], taxonomy: Taxonomy, seed: int = 0) -> dict[str, Any]:
    """Label-match recognition of each task and of all items.

    Returns:
        `method`, a description; `tasks` -> TASK and `overall`, each with `n`, `n_unread` (answers without a known
        word: counted as 0), `recognition` and `any_hit`, each with `mean`, `low`, `high`.
    """
    values: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in TASKS}
    for item in items:
        values[item.task].append(match(item, taxonomy))
    tasks = {name: _entry(rows, seed) for name, rows in values.items() if rows}
    everything = [row for rows in values.values() for row in rows]
    method = "label match, no judge: not the benchmark's score"
    return {"method": method, "tasks": tasks, "overall": _entry(everything, seed)}


def _entry(rows: Sequence[tuple[float, float, bool]], seed: int) -> dict[str, Any]:
    columns = {"recognition": [row[0] for row in rows], "any_hit": [row[1] for row in rows]}
    counts = {"n": len(rows), "n_unread": sum(not understood for *_, understood in rows)}
    return counts | intervals(columns, seed)


def _meant(word: str, item: LabelItem, task: Task, taxonomy: Taxonomy) -> set[str]:
    """The label(s) a word stands for: the closest candidates, or, without candidates, every gold label close enough."""
    text = _plain(word, task)
    if task.about == "sentiment":  # the exact polarity and intensity, as in the judge's rule
        return {text} if text else set()
    labels = [_plain(label, task) for label in (item.candidates or item.gold)]
    near = {label: _closeness(text, label, taxonomy if task.about == "emotion" else None) for label in labels}
    best = max(near.values(), default=0.0)
    if item.candidates:
        closest = {label for label, value in near.items() if value == best > _MOST_WHEELS}
        return closest if len(closest) == 1 else set()  # a word as close to two candidates states neither
    if best <= _MOST_WHEELS:  # a word with a meaning that is no gold label
        return set() if taxonomy.base(text) is None else {text}
    return {label for label, value in near.items() if value > _MOST_WHEELS}


def _closeness(word: str, label: str, taxonomy: Taxonomy | None) -> float:
    """From 3 (same spelling) down to the share of wheels, of those that know both, on which both share a sector."""
    if word == label:
        return _SAME_SPELLING
    if taxonomy is None:
        return 0.0
    if (base := taxonomy.base(word)) is not None and base == taxonomy.base(label):
        return _SAME_BASE
    if (name := taxonomy.label(word)) is not None and name == taxonomy.label(label):
        return _SAME_LABEL
    places = [(taxonomy.sector(word, wheel), taxonomy.sector(label, wheel)) for wheel in taxonomy.wheels]
    known = [(a, b) for a, b in places if a is not None and b is not None]
    return sum(a == b for a, b in known) / len(known) if known else 0.0


def _plain(label: str, task: Task) -> str:
    """A label in lower case with single blanks; of a sentiment ("Strongly positive!") polarity and intensity only."""
    words = re.findall(r"[\w'-]+", label.lower().replace("_", " "))
    if task.about == "sentiment":
        words = [_INTENSITY.get(word, word) for word in words]
        words = sorted({word for word in words if word in _SENTIMENT}, key=_SENTIMENT.index)
        return " ".join(words)
    if task.about == "emotion":
        words = [task.merged.get(word, word) for word in words]
    return " ".join(words)
