"""Acting: cues become facial actions and head movement over time, and the prosody of the voice.

A strength scales a pattern: an evident smile is the full pattern, a faint one about a third of it. An expression rises
within the first third of a clip, holds, and may fall again; the mouth's speech movement, blinks, slow head movement and
small random errors are added. `acting.json` holds the patterns at full strength.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mer_r1.data.jsonl import read_object
from mer_r1.lab.scenes.face.renderer import Pose
from mer_r1.lab.scenes.story.world import Scene
from mer_r1.lab.scenes.voice.lip_sync import MOUTH_FPS
from mer_r1.lab.scenes.voice.speech import Prosody

SCALES = {"faint": 0.35, "moderate": 0.75, "evident": 1.05}
"""Strength -> share of the full pattern."""
SCALE_NOISE = 0.06
FASTEST = 1.5
_FACTORS = ("range", "tempo")
_MOVES = ("gaze_x", "gaze_y", "yaw", "pitch", "roll", "nod", "shake", "blush", "tears")
Array = npt.NDArray[np.float64]


def prosody(scene: Scene, rng: np.random.Generator) -> Prosody:
    """The prosody of the scene's voice pattern and its modifier."""
    tables = _tables()
    level = SCALES[scene.voice.strength] + SCALE_NOISE * rng.standard_normal()
    values = _scaled(tables["voice"][scene.voice.name], level)
    if scene.modifier:
        extra = _scaled(tables["modifiers"][scene.modifier.name], 0.4 + 0.6 * SCALES[scene.modifier.strength])
        values = {
            name: value * extra[name] if name in _FACTORS else value + extra[name] for name, value in values.items()
        }
    return Prosody(
        pitch=values["pitch"] + 0.3 * rng.standard_normal(),
        range=float(np.clip(values["range"], 0.2, 2.2)),
        loudness=float(np.clip(values["loudness"] + 0.5 * rng.standard_normal(), -10.0, 10.0)),
        tempo=float(np.clip(values["tempo"] * np.exp(0.03 * rng.standard_normal()), 0.65, FASTEST)),
        tremor=float(np.clip(values["tremor"], 0.0, 1.0)),
        breath=float(np.clip(values["breath"], 0.0, 1.0)),
        pauses=round(values["pauses"]),
    )


def poses(scene: Scene, mouth: Array, n_frames: int, fps: int, rng: np.random.Generator) -> list[Pose]:
    """Face and head of every frame.

    `mouth` is the speech movement, (T, 4) at `MOUTH_FPS`: jaw open, wide, round, lips closed; each in [0, 1].
    """
    times = (np.arange(n_frames) + 0.5) / fps
    seconds = n_frames / fps
    actions: dict[str, Array] = {}
    moves = {name: np.zeros(n_frames) for name in _MOVES}
    level = SCALES[scene.face.strength] + SCALE_NOISE * rng.standard_normal()
    _add(actions, moves, _tables()["face"][scene.face.name], level * _envelope(times, seconds, rng))
    for sign in scene.signs:
        envelope = (0.25 + 0.75 * SCALES[sign.strength]) * _envelope(times, seconds, rng)
        side = 1.0 if rng.random() < 0.5 else -1.0
        _add(actions, moves, _tables()["signs"][sign.name], envelope, side)
    _add_speech(actions, mouth, times)
    _add_blinks(actions, times, rng)
    _add_wandering(moves, times, rng)
    return _as_poses(actions, moves)


def _scaled(pattern: Mapping[str, float], level: float) -> dict[str, float]:
    """A voice pattern at a level: offsets scale linearly, factors in their logarithm."""
    values = {name: level * pattern.get(name, 0.0) for name in ("pitch", "loudness", "tremor", "breath", "pauses")}
    for name in _FACTORS:
        values[name] = float(pattern.get(name, 1.0) ** level)
    return values


def _envelope(times: Array, seconds: float, rng: np.random.Generator) -> Array:
    """0 to 1 over time: an early rise, a hold, and in half of the clips a partial fall at the end."""
    onset = rng.uniform(-0.3, 0.2) * seconds
    rise = rng.uniform(0.1, 0.2) * seconds
    up = np.clip((times - onset) / rise, 0.0, 1.0)
    fall = rng.uniform(0.0, 0.5) if rng.random() < 0.5 else 0.0
    down = np.clip((times - 0.85 * seconds) / (0.15 * seconds), 0.0, 1.0)
    flicker = 1.0 + 0.05 * np.sin(2 * np.pi * (rng.uniform(0.3, 0.8) * times + rng.random()))
    return up * up * (3.0 - 2.0 * up) * (1.0 - fall * down) * flicker


def _add(
    actions: dict[str, Array], moves: dict[str, Array], pattern: Mapping[str, float], envelope: Array, side: float = 1.0
) -> None:
    two_sided = _tables()["two_sided"]
    for name, value in pattern.items():
        if name in moves:
            sided = side if name in ("gaze_x", "yaw", "roll", "shake") else 1.0
            moves[name] = moves[name] + sided * value * envelope
            continue
        for one in (f"{name}Left", f"{name}Right") if name in two_sided else (name,):
            actions[one] = actions.get(one, np.zeros(len(envelope))) + value * envelope


def _add_speech(actions: dict[str, Array], mouth: Array, times: Array) -> None:
    """Add the mouth's speech movement to the expression, sampled at the middle of each frame."""
    places = np.clip((times * MOUTH_FPS).astype(int), 0, len(mouth) - 1)
    jaw, wide, narrow, closed = mouth[places].T
    held = actions.get("jawOpen", np.zeros(len(times)))
    actions["jawOpen"] = held * (1.0 - 0.5 * closed) + 0.5 * jaw
    for side in ("Left", "Right"):
        for name, value in (("mouthStretch", 0.25 * wide), ("mouthPress", 0.3 * closed), ("mouthLowerDown", 0.3 * jaw)):
            actions[name + side] = actions.get(name + side, np.zeros(len(times))) + value
    actions["mouthPucker"] = actions.get("mouthPucker", np.zeros(len(times))) + 0.6 * narrow


def _add_blinks(actions: dict[str, Array], times: Array, rng: np.random.Generator) -> None:
    seconds = times[-1] + times[0]
    count = rng.poisson(0.35 * seconds)
    blink = np.zeros(len(times))
    for start in rng.uniform(0.0, seconds, size=count):
        blink = np.maximum(blink, np.clip(1.0 - np.abs(times - start) / 0.12, 0.0, 1.0))
    for name in ("eyeBlinkLeft", "eyeBlinkRight"):
        actions[name] = np.maximum(actions.get(name, np.zeros(len(times))), blink)


def _add_wandering(moves: dict[str, Array], times: Array, rng: np.random.Generator) -> None:
    """Add random head position, slow drift, the rhythm of nods and shakes, and eye movement."""
    for name, held, drift in (("yaw", 3.5, 1.5), ("pitch", 2.0, 1.0), ("roll", 1.5, 0.8)):
        phase, rate = rng.random(), rng.uniform(0.2, 0.6)
        moves[name] = moves[name] + held * rng.standard_normal() + drift * np.sin(2 * np.pi * (rate * times + phase))
    for name, axis in (("nod", "pitch"), ("shake", "yaw")):
        beat = np.sin(2 * np.pi * (rng.uniform(1.1, 1.7) * times + rng.random()))
        moves[axis] = moves[axis] + moves[name] * beat
    for name in ("gaze_x", "gaze_y"):
        moves[name] = moves[name] + 0.08 * rng.standard_normal() + 0.04 * rng.standard_normal(len(times))


def _as_poses(actions: Mapping[str, Array], moves: Mapping[str, Array]) -> list[Pose]:
    names = list(actions)
    curves = np.clip(np.array([actions[name] for name in names]).T, 0.0, 1.2).tolist()
    limits = {name: 30.0 for name in ("yaw", "pitch", "roll")}
    held = {
        name: np.clip(moves[name], -limits.get(name, 1.0), limits.get(name, 1.0)).tolist()
        for name in ("yaw", "pitch", "roll", "gaze_x", "gaze_y", "blush", "tears")
    }
    return [
        Pose(**{name: values[frame] for name, values in held.items()}, actions=dict(zip(names, curve, strict=True)))
        for frame, curve in enumerate(curves)
    ]


@lru_cache(maxsize=1)
def _tables() -> Mapping[str, Any]:
    return read_object(Path(__file__).with_name("acting.json"))
