"""Remarks: scenes that are told and not shown, with the words that a generous listener would use for them.

A large language model has read what a trembling voice and a fallen face mean long before it sees or hears anything. The
tiny policy's base stage gives its language model a substitute: the subtitle and the description of scenes that nobody
rendered, with broad labels. The sentences are those of the training split.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mer_r1.lab.scenes.story.sentences import sample_sentence
from mer_r1.lab.scenes.story.texts import write_texts
from mer_r1.lab.scenes.story.world import sample_scene

_KEY = 3_000_017


class Remark(NamedTuple):
    """What is said in a scene, what could be seen and heard in it, what people say of it, and emotions they name."""

    subtitle: str
    told: str
    remark: str
    broad_labels: list[str]


def draw_remarks(count: int, seed: int) -> Iterator[Remark]:
    """Draw remarks; the same seed gives the same ones, and none is a scene of the corpus.

    Args:
        count: how many.
        seed: of the scenes and of the choice of words.
    """
    for number in range(count):
        rng = np.random.default_rng([seed, _KEY, number])
        scene = sample_scene(rng)
        subtitle = sample_sentence(scene.theme, "train", rng)
        texts = write_texts(scene, bool(rng.random() < 0.5), rng)
        yield Remark(subtitle, texts.description, texts.remark, texts.broad_labels)
