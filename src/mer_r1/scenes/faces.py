"""Faces that act: a real head mesh, 52 facial actions, an identity, a light, a camera -> frames.

Identity is applied once per clip, actions once per frame. Blush is colour, tears are wet
streaks that run down, gaze turns the irises. The same input gives the same frame, bit by bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mer_r1.scenes.head import SHAPES, Array, Head, load_head
from mer_r1.scenes.raster import develop, draw, normals, shade

_BOTH_SIDES = (
    *("browDown", "browOuterUp", "cheekSquint", "eyeBlink", "eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeLookUp"),
    *("eyeSquint", "eyeWide", "mouthDimple", "mouthFrown", "mouthLowerDown", "mouthPress", "mouthSmile"),
    *("mouthStretch", "mouthUpperUp", "noseSneer", "jaw", "mouth"),
)
_MIDDLE = (
    *("browInnerUp", "cheekPuff", "jawForward", "jawOpen", "mouthClose", "mouthFunnel", "mouthPucker", "tongueOut"),
    *("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
)
ACTIONS: tuple[str, ...] = tuple(
    sorted([*_MIDDLE, *(name + side for name in _BOTH_SIDES for side in ("Left", "Right"))])
)
"""The ARKit actions of the head, sorted."""

GAIN = {
    "brow": 2.2,
    "eyeWide": 2.2,
    "noseSneer": 1.6,
    "mouthFrown": 1.5,
    "mouthStretch": 1.3,
    "mouthPress": 1.4,
    "cheek": 1.4,
}
"""Actions that are faint at 128 pixels are acted out more strongly (by prefix); the others are as the mesh has them."""
SKINS = ((236, 196, 172), (222, 178, 148), (198, 150, 116), (164, 114, 82), (122, 82, 58), (92, 62, 46))
HAIRS = ((28, 22, 20), (58, 38, 26), (98, 66, 40), (150, 112, 66), (120, 52, 30), (128, 126, 124), (70, 64, 62))
IRISES = ((70, 44, 28), (96, 66, 36), (64, 92, 120), (70, 104, 76), (54, 60, 70))
FACE_HEIGHT = 2.35
"""Chin to crown in decimetres, about."""
_ENDS = (np.argmax, lambda heights: int(np.argmin(np.abs(heights - 6.14))))


@dataclass(frozen=True)
class Identity:
    """Who is seen: shape weights and colours (RGB, 0..255); `hair_volume` in decimetres."""

    shapes: Mapping[str, float]
    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    iris: tuple[int, int, int]
    cloth: tuple[int, int, int]
    lip_red: float
    hair_volume: float


@dataclass(frozen=True)
class Framing:
    """How somebody is seen, constant over a clip.

    Attributes:
        light: direction to the key light, not normalised.
        ambient: share of light that comes from everywhere, 0..1.
        warmth: colour temperature, -1 (blue) .. 1 (yellow).
        exposure: factor.
        height: share of the frame's height that the head takes.
        offset: shift of the head in shares of the frame, right and down.
        turn: degrees that the camera stands to the side, above, and is tilted.
        background: four corner colours, and blobs (x, y, radius, r, g, b).
        noise: standard deviation of sensor noise, grey levels.
    """

    light: tuple[float, float, float]
    ambient: float
    warmth: float
    exposure: float
    height: float
    offset: tuple[float, float]
    turn: tuple[float, float, float]
    background: tuple[tuple[float, ...], ...]
    noise: float


@dataclass(frozen=True)
class Pose:
    """One frame of acting: head angles in degrees (left, down, tilt), gaze -1..1 (left, up), actions 0..1.2."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    actions: Mapping[str, float] = field(default_factory=dict)
    blush: float = 0.0
    tears: float = 0.0


def sample_identity(rng: np.random.Generator) -> Identity:
    """Draw somebody: a mixture of two origins, sex, age, and features of their own."""
    origins = rng.permutation(["african", "asian", "caucasian"])[:2]
    share, sex, age = rng.beta(0.6, 0.6), rng.choice(["female", "male"]), rng.beta(1.0, 2.5)
    shapes: dict[str, float] = {}
    for origin, part in zip(origins, (share, 1 - share), strict=True):
        for stage, weight in (("young", 1 - age), ("old", age)):
            shapes[f"macrodetails/{origin}-{sex}-{stage}"] = float(part * weight)
    for name in SHAPES:
        if not name.startswith("macrodetails") and rng.random() < 0.4:
            shapes[name] = float(rng.uniform(0.1, 0.75))
    dark = {"african": 4.2, "asian": 1.6, "caucasian": 0.6}
    tone = share * dark[origins[0]] + (1 - share) * dark[origins[1]] + rng.normal(0, 0.5)
    tone = float(np.clip(tone, 0, len(SKINS) - 1.001))
    skin = np.array(SKINS[int(tone)]) * (1 - tone % 1) + np.array(SKINS[int(tone) + 1]) * (tone % 1)
    grey = age > 0.55 and rng.random() < 0.6
    hair = HAIRS[5] if grey else HAIRS[rng.choice(len(HAIRS), p=[0.3, 0.25, 0.15, 0.1, 0.07, 0.03, 0.1])]
    return Identity(
        shapes=shapes,
        skin=_rgb(skin + rng.normal(0, 4, 3)),
        hair=_rgb(np.array(hair) + rng.normal(0, 5, 3)),
        iris=IRISES[0] if tone > 2.5 else IRISES[rng.integers(len(IRISES))],
        cloth=_rgb(rng.uniform(30, 220, 3)),
        lip_red=float(rng.uniform(0.35, 0.8) if sex == "female" else rng.uniform(0.2, 0.45)),
        hair_volume=float(rng.uniform(0.02, 0.16)),
    )


def sample_framing(rng: np.random.Generator) -> Framing:
    """Draw light, camera and background."""
    base = rng.uniform(60, 180) + rng.normal(0, 14, 3)
    corners = [tuple(np.clip(base + rng.normal(0, 16, 3), 0, 255)) for _ in range(4)]
    blobs = [
        (*rng.uniform(0, 1, 2), rng.uniform(0.08, 0.35), *np.clip(base + rng.normal(0, 30, 3), 0, 255))
        for _ in range(rng.integers(2, 7))
    ]
    return Framing(
        light=(float(rng.normal(0, 0.45)), float(rng.uniform(0.1, 0.7)), 1.0),
        ambient=float(rng.uniform(0.38, 0.55)),
        warmth=float(rng.uniform(-0.6, 0.8)),
        exposure=float(rng.uniform(0.85, 1.15)),
        height=float(rng.uniform(0.76, 0.88)),
        offset=(float(rng.normal(0, 0.015)), float(rng.normal(0.0, 0.012))),
        turn=(float(rng.normal(0, 4)), float(rng.normal(0, 2)), float(rng.normal(0, 1.5))),
        background=tuple(tuple(float(value) for value in row) for row in [*corners, *blobs]),
        noise=float(rng.uniform(0.5, 3.0)),
    )


class FaceRenderer:
    """Draws clips of square frames.

    Args:
        size: side of a frame in pixels.
    """

    def __init__(self, size: int = 128) -> None:
        self.size = size
        self.head = load_head()

    def render(
        self, identity: Identity, framing: Framing, poses: Sequence[Pose], rng: np.random.Generator
    ) -> npt.NDArray[np.uint8]:
        """Draw a clip.

        Args:
            identity: who.
            framing: light, camera, background.
            poses: one a frame.
            rng: of the sensor noise.

        Returns:
            (F, size, size, 3) uint8 RGB.
        """
        rest, looks = self._rest(identity)
        skin = _skin(self.head.areas, identity)
        background = _background(framing, 2 * self.size)
        wet = np.cumsum([pose.tears for pose in poses]) / 8.0
        noise = rng.standard_normal((len(poses), self.size, self.size), dtype=np.float32) * np.float32(framing.noise)
        tint = np.array([1 + 0.09 * framing.warmth, 1.0, 1 - 0.11 * framing.warmth], dtype=np.float32)
        tint *= np.float32(framing.exposure)
        frames = np.empty((len(poses), self.size, self.size, 3), dtype=np.uint8)
        for frame, pose, run, grain in zip(frames, poses, wet, noise, strict=True):
            colours = _flushed(skin, self.head, pose, float(run))
            develop(self._frame(identity, framing, pose, rest, looks, colours, background), tint, grain, frame)
        return frames

    def _rest(self, identity: Identity) -> tuple[Array, Array]:
        vertices = self.head.vertices.copy()
        for name, weight in identity.shapes.items():
            index, shifts = self.head.shapes[name]
            vertices[index] += np.float32(weight) * shifts
        # Age and sex change the body's height: bring the eyes back to where the base mesh has them, at the same size.
        eyes = [np.unique(self.head.triangles[self.head.material == which]) for which in (1, 2)]
        centres = np.stack([vertices[eye].mean(axis=0) for eye in eyes])
        crown, chin = (
            vertices[find(self.head.vertices[:, 1] * (np.abs(self.head.vertices[:, 0]) < 0.1))] for find in _ENDS
        )
        size = np.float32(FACE_HEIGHT / max(float(crown[1] - chin[1]), 0.5))
        middle = self.head.eye_centres.mean(axis=0)
        vertices = (vertices - centres.mean(axis=0)) * size + middle
        centres = (centres - centres.mean(axis=0)) * size + middle
        outward = normals(vertices, self.head.triangles)
        vertices += outward * (self.head.areas["hair"] * np.float32(identity.hair_volume))[:, None]
        return vertices.astype(np.float32), _eye_directions(vertices, centres)

    def _frame(
        self,
        identity: Identity,
        framing: Framing,
        pose: Pose,
        rest: Array,
        looks: Array,
        colours: Array,
        background: Array,
    ) -> Array:
        head = self.head
        vertices = rest.copy()
        for name, weight in {**_looking(pose), **pose.actions}.items():
            index, shifts = head.actions[name]
            vertices[index] += np.float32(weight * _gain(name)) * shifts
        neck = np.array([0.0, 6.1, 0.35], dtype=np.float32)
        free = np.clip((rest[:, 1:2] - 5.6) / 0.9, 0, 1)
        turned = (vertices - neck) @ _rotation(pose.yaw, pose.pitch, pose.roll).T + neck
        moved = vertices + free * (turned - vertices)
        camera = _rotation(*framing.turn)
        pivot = np.array([0.0, 7.15, 0.6], dtype=np.float32)
        seen = (moved - pivot) @ camera.T
        side = 2 * self.size
        scale = framing.height * side / FACE_HEIGHT
        depth = 1.0 / (1.0 - seen[:, 2:3] / 14.0)
        screen = np.empty((len(seen), 3), dtype=np.float32)
        screen[:, 0] = seen[:, 0] * scale * depth[:, 0] + side * (0.5 + framing.offset[0])
        screen[:, 1] = -seen[:, 1] * scale * depth[:, 0] + side * (0.52 + framing.offset[1])
        screen[:, 2] = seen[:, 2]
        light = np.array(framing.light) / np.linalg.norm(framing.light)
        lit = shade(normals(seen, head.triangles), light.astype(np.float32), framing.ambient)
        gaze = _rotation(24 * pose.gaze_x, -18 * pose.gaze_y, 0.0)[:, 2]
        image = background.copy()
        draw(
            screen, head.triangles, head.material, colours, lit, looks, gaze, np.array(identity.iris, np.float32), image
        )
        return image


def _looking(pose: Pose) -> dict[str, float]:
    # Lids follow the eyes: looking down half closes them.
    down, up = max(-pose.gaze_y, 0.0), max(pose.gaze_y, 0.0)
    sides = ("Left", "Right")
    return {f"eyeLookDown{side}": down for side in sides} | {f"eyeLookUp{side}": up for side in sides}


def _gain(action: str) -> float:
    return next((gain for prefix, gain in GAIN.items() if action.startswith(prefix)), 1.0)


def _skin(areas: Mapping[str, Array], identity: Identity) -> Array:
    """Colour of each vertex, (V, 3), before blush and tears."""
    skin = np.array(identity.skin, dtype=np.float32)
    hair = np.array(identity.hair, dtype=np.float32)
    red = np.array([190, 60, 70], dtype=np.float32)
    layers = [
        ("sockets", skin * 0.72, 0.5),
        ("lips", skin * (1 - identity.lip_red) * 0.85 + red * identity.lip_red, 0.95),
        ("brows", hair * 0.7, 0.9),
        ("hair", hair, 1.0),
        ("cloth", np.array(identity.cloth, dtype=np.float32), 1.0),
        ("mouth", np.array([62, 16, 18], dtype=np.float32), 1.0),
    ]
    colours = np.tile(skin, (len(areas["lips"]), 1))
    for name, colour, strength in layers:
        weight = (areas[name] * np.float32(strength))[:, None]
        colours = colours * (1 - weight) + colour * weight
    return colours.astype(np.float32)


def _flushed(skin: Array, head: Head, pose: Pose, wet: float) -> Array:
    """The skin with this frame's blush, and tears that have run as far as `wet` (0..1)."""
    colours = skin
    if pose.blush > 0:
        weight = (head.areas["cheeks"] * np.float32(0.9 * pose.blush))[:, None]
        colours = colours * (1 - 0.55 * weight) + np.array([225, 55, 65], dtype=np.float32) * (0.55 * weight)
    if pose.tears > 0:
        x, y, z = np.abs(head.vertices[:, 0]), head.vertices[:, 1], head.vertices[:, 2]
        streak = np.exp(-(((x - 0.33) / 0.055) ** 2)) * ((y < 7.13) & (y > 6.97 - 0.75 * min(wet, 1.0)) & (z > 0.9))
        colours = colours + (streak * np.float32(pose.tears * 75.0))[:, None]
    return colours.astype(np.float32)


def _eye_directions(rest: Array, centres: Array) -> Array:
    """Unit vector from the nearer eye's centre to each vertex; only those of eyeballs are used."""
    side = np.where(rest[:, :1] > 0, centres[0], centres[1])
    direction = rest - side
    return (direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-6)).astype(np.float32)


def _rotation(yaw: float, pitch: float, roll: float) -> Array:
    a, b, c = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return (about_z @ about_y @ about_x).astype(np.float32)


def _background(framing: Framing, side: int) -> Array:
    across = np.linspace(0, 1, side, dtype=np.float32)
    x, y = across[None, :, None], across[:, None, None]
    corners = [np.array(corner, dtype=np.float32) for corner in framing.background[:4]]
    image = (corners[0] * (1 - x) + corners[1] * x) * (1 - y) + (corners[2] * (1 - x) + corners[3] * x) * y
    for blob in framing.background[4:]:
        cx, cy, radius = blob[:3]
        weight = np.exp(-((((x - cx) ** 2 + (y - cy) ** 2) / radius**2) ** 2)).astype(np.float32)
        image = image * (1 - 0.7 * weight) + np.array(blob[3:], dtype=np.float32) * (0.7 * weight)
    return image.astype(np.float32)


def _rgb(colour: npt.NDArray[Any]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in np.clip(np.rint(colour), 0, 255))
    return red, green, blue
