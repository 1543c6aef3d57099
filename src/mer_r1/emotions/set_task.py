"""A question whose answer is a set of words, whatever the words are about. Emotions are one instance.

The method compares sets of words. A task is a question, the form of a completion, and categories that say which words
mean the same. Rewards (`rl.rewards.reward_function`), confidences (`rl.anchors.category_tokens`) and scores
(`metrics.wheel_scores`) take the categories as a `wheels.Taxonomy`: a partition of words stands for an emotion wheel,
its categories for the sectors.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mer_r1.emotions.thinking import TEXT, WORDINGS, Parsed, format_completion, parse, question
from mer_r1.emotions.wheels import EmotionWheel, Taxonomy, load
from mer_r1.errors import UserError, printable


@dataclass(frozen=True)
class SetTask:
    """What is asked, and which words of an answer mean the same. The defaults are emotion recognition.

    Attributes:
        question: wording of the question about emotions, "full" or "short" (`thinking.question`), or another question
            with {text} where the text of a row (`subtitle` in its manifest) stands.
        categories: partition -> category -> its words besides its name; None for emotion words, whose categories are
            the sectors of emotion wheels.

    Raises:
        ValueError: a question without {text}.
        UserError: categories as `taxonomy_of` refuses them.
    """

    question: str = "full"
    categories: Mapping[str, Mapping[str, list[str]]] | None = None

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        if self.question not in WORDINGS and TEXT not in self.question:
            raise ValueError(
                f"question: got {self.question!r:.80}, expected {' or '.join(WORDINGS)}, or a text with {TEXT} in it"
            )
        if self.categories is not None:
            taxonomy_of(self.categories)

    @property
    def facts(self) -> dict[str, Any]:
        """What a folder of records says of the task: the fields of another one than emotions as `task`."""
        if self.question in WORDINGS and self.categories is None:
            return {}
        return {"task": {"question": self.question, "categories": self.categories}}

    def asked(self, text: str | None) -> str:
        """The question about one row's text."""
        return question(text, self.question)

    def parse(self, completion: str) -> Parsed:
        """The reasoning and the words of a completion."""
        return parse(completion)

    def taxonomy(self, wheels: str | Path | None = None) -> Taxonomy:
        """The categories; those of emotions are the official wheels in a folder, or the built-in ones without it.

        Raises:
            UserError: wheels for another task than emotions.
        """
        if self.categories is None:
            return load(wheels)
        if wheels is not None:
            raise UserError(
                f"wheels={wheels}: emotion wheels, but the model answers another question, with the categories of "
                f"{', '.join(self.categories)}"
            )
        return taxonomy_of(self.categories)


def read_task(file: str | Path) -> SetTask:
    """A task from a JSON file with the fields of `SetTask`.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        return SetTask(**json.loads(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError, UserError) as error:
        raise UserError(f"{printable(file)}: {error}; expected the question and the categories of a task") from None


def taxonomy_of(categories: Any) -> Taxonomy:
    """Categories of any words as a taxonomy: one wheel per partition, on both rings the same sectors.

    Args:
        categories: partition -> category -> its words besides its name.

    Raises:
        UserError: another structure, a word of two categories of a partition, or one that no answer can hold.

    >>> taxonomy_of({"allergen": {"milk": ["dairy"], "egg": []}}).sector("Dairy", "allergen")
    'milk'
    """
    forms: dict[str, tuple[str, ...]] = {}
    wheels = []
    for partition, members in _checked(categories).items():
        words = [(word, name) for name, further in members.items() for word in {name: 0, **dict.fromkeys(further)}]
        if doubled := [word for word, count in Counter(word for word, _ in words).items() if count > 1]:
            raise UserError(f"categories: {doubled[0]!r} is in two categories of {partition!r}")
        for word, name in words:  # a label names its partition, so that categories of two may have the same name
            forms[word] = (*forms.get(word, ()), f"{partition}: {name}")
        places = {f"{partition}: {name}": name for name in members}
        wheels.append(EmotionWheel(partition, "the task", places, places))
    labels = {label: (label,) for labels in forms.values() for label in labels}
    return Taxonomy(tuple(wheels), forms, labels, task=", ".join(wheel.name for wheel in wheels))


def _checked(categories: Any) -> Mapping[str, Mapping[str, list[str]]]:
    expected = 'expected {"partition": {"category": ["word", ...], ...}}'
    if not isinstance(categories, Mapping) or not categories or "words" in categories:  # "words" is `rl.anchors`' own
        raise UserError(f"categories: {expected}, with another name than 'words', got {categories!r:.80}")
    for partition, members in categories.items():
        if not isinstance(members, Mapping) or len(members) < 2:
            raise UserError(f"categories of {partition!r}: {expected} with at least two, got {members!r:.80}")
        for name, words in members.items():
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise UserError(f"category {name!r}: expected a list of words, got {words!r:.80}")
            for word in (name, *words):
                if parse(format_completion("", [word])).labels != (word,):
                    raise UserError(f"category {name!r}: {word!r} is not in lower case with single spaces")
    return categories
