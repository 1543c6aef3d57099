"""Sounds of scenes that nobody films, with what was acted: what a pair of ears can learn to hear from.

As `stills` for the eyes: speakers who are in no split of the corpus, saying sentences of the training split, with the
scene's description and the name of the manner of speaking. A sound costs an eighth of a clip.
"""

from collections.abc import Iterator
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mer_r1.lab.scenes.clip import script, sound
from mer_r1.lab.scenes.story.world import world

MANNERS: tuple[str, ...] = tuple(world().valence["voice"])
"""The names of the manners of speaking."""
_PER_SEED = 8
_KEY = 4_000_037
_CHUNK = 8


class Sound(NamedTuple):
    """A waveform (S,) float32 at 16 kHz, the description of its scene, and an index into `MANNERS`."""

    waveform: npt.NDArray[np.float32]
    description: str
    manner: int


def draw_sounds(count: int, seed: int, workers: int = 2) -> Iterator[Sound]:
    """Draw sounds; the same seed gives the same ones, and hardly two share a speaker.

    Args:
        count: how many.
        seed: of scenes and speakers.
        workers: processes.
    """
    jobs = [(seed, number) for number in range(count)]
    if workers < 2:
        yield from map(_draw, jobs)
        return
    with get_context("fork").Pool(workers) as pool:
        yield from pool.imap(_draw, jobs, chunksize=_CHUNK)


def _draw(job: tuple[int, int]) -> Sound:
    seed, number = job
    # A seed of the corpus has a pool of speakers; many seeds have many.
    other = int(np.random.SeedSequence([seed, _KEY, number // _PER_SEED]).generate_state(1)[0])
    drawn = script(other, "train", number)
    return Sound(sound(drawn), drawn.texts.description, MANNERS.index(drawn.scene.voice.name))
