"""Training data of the vision tower: rendered faces with their facial actions as numbers.

A large model's vision tower is pretrained on hundreds of millions of images. The tiny one learns from images of people
who are in no split of the corpus; targets are the strength of each facial action, the direction of head and gaze, blush
and tears, and the name of the expression.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from mer_r1.data.workers import worker_pool
from mer_r1.lab.scenes import acting
from mer_r1.lab.scenes.face.appearance import sample_framing, sample_identity
from mer_r1.lab.scenes.face.renderer import ACTIONS, Pose, face_renderer
from mer_r1.lab.scenes.story.world import sample_scene, world

MOVES = ("yaw", "pitch", "roll", "gaze_x", "gaze_y", "blush", "tears")
TARGETS: tuple[str, ...] = (*ACTIONS, *MOVES)
"""Columns of the targets."""
PATTERNS: tuple[str, ...] = tuple(world().valence["face"])
"""Names of the expressions."""
_DEGREES = 15.0
_PER_PERSON = 4
_KEY = 2_000_003
_CHUNK = 8
Item = TypeVar("Item")
Drawn = TypeVar("Drawn")


class Stills(NamedTuple):
    """Images and their targets.

    Attributes:
        images: (N, size, size, 3) uint8.
        targets: (N, K) in the order of `TARGETS`: actions 0..1.2, angles in units of 15 degrees, gaze -1..1, blush and
            tears 0..1.
        patterns: (N,) index into `PATTERNS`.
    """

    images: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.float32]
    patterns: npt.NDArray[np.int64]


def draw_stills(count: int, seed: int, size: int = 128, workers: int = 2) -> Stills:
    """Draw images of faces (4 per person, so `count` is rounded up); the same seed gives the same images."""
    jobs = [(seed, number, size) for number in range(-(-count // _PER_PERSON))]
    return Stills(*(np.concatenate(parts) for parts in zip(*in_processes(_person, jobs, workers), strict=True)))


def mirrored() -> tuple[list[int], npt.NDArray[np.float32]]:
    """How targets change when the image is mirrored: the source column of each column, and its sign."""
    names = [name.replace("Left", "#").replace("Right", "Left").replace("#", "Right") for name in TARGETS]
    signs = np.array([-1.0 if name in ("yaw", "roll", "gaze_x") else 1.0 for name in TARGETS], dtype=np.float32)
    return [TARGETS.index(name) for name in names], signs


def in_processes(draw: Callable[[Item], Drawn], jobs: Iterable[Item], workers: int) -> Iterator[Drawn]:
    """Map a function over jobs in `workers` processes; results keep the order of the jobs."""
    if workers < 2:
        yield from map(draw, jobs)
        return
    with worker_pool(workers, "fork") as pool:
        yield from pool.map(draw, jobs, chunksize=_CHUNK)


def _person(job: tuple[int, int, int]) -> Stills:
    seed, number, size = job
    rng = np.random.default_rng([seed, _KEY, number])
    identity, framing = sample_identity(rng), sample_framing(rng)
    poses, patterns = [], []
    for _ in range(_PER_PERSON):
        mouth = np.tile(rng.beta(0.5, 1.5, 4), (150, 1))  # the mouth at a random moment of speech
        scene = sample_scene(rng)
        poses.append(acting.poses(scene, mouth, 6, 2, rng)[int(rng.integers(2, 5))])
        patterns.append(PATTERNS.index(scene.face.name))
    images = face_renderer(size).render(identity, framing, poses, rng)
    return Stills(images, np.array([_target(pose) for pose in poses], np.float32), np.array(patterns))


def _target(pose: Pose) -> list[float]:
    scales = [_DEGREES if name in ("yaw", "pitch", "roll") else 1.0 for name in MOVES]
    moves = [getattr(pose, name) / scale for name, scale in zip(MOVES, scales, strict=True)]
    return [*(float(pose.actions.get(name, 0.0)) for name in ACTIONS), *moves]
