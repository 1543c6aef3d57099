"""Training data of the audio tower: the audio of generated scenes, with description and vocal pattern.

Like `stills` for the vision tower: the speakers are in no split of the corpus and say sentences of the training split.
Audio costs an eighth of a clip.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mer_r1.lab.scenes.clip import script, sound
from mer_r1.lab.scenes.story.world import world
from mer_r1.lab.tiny.stills import in_processes

MANNERS: tuple[str, ...] = tuple(world().valence["voice"])
"""Names of the vocal patterns."""
_PER_SEED = 8
_KEY = 4_000_037


class Sound(NamedTuple):
    """A waveform (S,) float32 at 16 kHz, the description of its scene, and the index of its pattern in `MANNERS`."""

    waveform: npt.NDArray[np.float32]
    description: str
    manner: int


def draw_sounds(count: int, seed: int, workers: int = 2) -> Iterator[Sound]:
    """Draw audio clips; the same seed gives the same clips, and hardly two share a speaker."""
    return in_processes(_draw, [(seed, number) for number in range(count)], workers)


def _draw(job: tuple[int, int]) -> Sound:
    seed, number = job
    # Each seed of the corpus has its own pool of speakers, so many seeds give many speakers.
    other = int(np.random.SeedSequence([seed, _KEY, number // _PER_SEED]).generate_state(1)[0])
    drawn = script(other, "train", number)
    return Sound(sound(drawn), drawn.texts.description, MANNERS.index(drawn.scene.voice.name))
