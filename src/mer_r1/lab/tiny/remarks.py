"""Captions: scenes as text only (subtitle, description, remark) with broad labels, for the tiny language model.

A large language model knows from text what a trembling voice or a sad face means. The tiny language model learns it
from captions of scenes that are never rendered. The sentences are those of the training split.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mer_r1.lab.scenes.clip import draw_missing, shown_in
from mer_r1.lab.scenes.story.sentences import sample_sentence
from mer_r1.lab.scenes.story.texts import write_texts
from mer_r1.lab.scenes.story.world import sample_scene
from mer_r1.lab.scenes.write import MISSING

_KEY = 3_000_017


class Caption(NamedTuple):
    """A scene as text: its subtitle, a description of its cues, an annotator's remark, and broad labels."""

    subtitle: str
    description: str
    remark: str
    broad_labels: list[str]


def draw_captions(count: int, seed: int) -> Iterator[Caption]:
    """Draw captions; the same seed gives the same captions, and none is of a scene of the corpus."""
    for number in range(count):
        rng = np.random.default_rng([seed, _KEY, number])
        scene = sample_scene(rng)
        subtitle = sample_sentence(scene.theme, "train", rng)
        lacks = draw_missing(MISSING, rng)
        texts = write_texts(scene, bool(rng.random() < 0.5), rng, shown_in(lacks))
        yield Caption("" if "subtitle" in lacks else subtitle, texts.description, texts.remark, texts.broad_labels)
