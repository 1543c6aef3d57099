"""Face renderer: head mesh, 52 facial actions, identity, light and camera -> frames.

The identity is applied once per clip: shape, hair, skin. Actions are applied once per frame as sparse shifts of
vertices; folds of the skin, blush and tears are painted on the texture; then the head is turned, lit and rasterised
(`raster`). The same input gives the same frames, bit by bit. Angles are in degrees, lengths in decimetres, left is the
person's left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mer_r1.errors import UserError
from mer_r1.lab.scenes.face import raster
from mer_r1.lab.scenes.face.appearance import Framing, Identity, cloth_field, curtain, hair_field, room
from mer_r1.lab.scenes.face.head import (
    CLOTH,
    HAIR,
    LEFT_EYE,
    MIXED,
    MOUTH,
    RIGHT_EYE,
    SKIN,
    TEETH,
    TONGUE,
    Array,
    Head,
    load_head,
)
from mer_r1.lab.scenes.face.skin import MAP_SIDE, map_places, paint, transient_masks

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
"""ARKit actions of the head, sorted."""

GAIN = {
    "browDown": 1.4,
    "browInnerUp": 2.3,
    "browOuterUp": 1.35,
    "cheek": 1.2,
    "eyeSquint": 1.4,
    "eyeWide": 1.9,
    "mouthFrown": 1.7,
    "mouthLowerDown": 1.3,
    "mouthPress": 1.3,
    "mouthStretch": 1.6,
    "mouthUpperUp": 1.5,
    "noseSneer": 1.6,
}
"""Prefix of an action -> amplification of actions that are faint at 128 pixels; others have the mesh's strength."""
FACE_HEIGHT = 2.35
"""Chin to crown of every head, so that `Framing.height` has one meaning."""
GAZE_ACROSS, GAZE_UP, GAZE_DOWN = 27.0, 15.0, 21.0
"""Degrees that the eyes turn for a gaze of 1."""
CAMERA_DISTANCE = 14.0
NECK, PIVOT = (0.0, 6.1, 0.35), (0.0, 7.15, 0.6)
"""Pivots of the head and of the camera."""
DEEPEST_FOLD = 0.42
BLUSH = np.array([1.22, 0.62, 0.62], dtype=np.float32)
"""Colour of a full blush, relative to the skin."""
WATER = np.array([246.0, 250.0, 255.0], dtype=np.float32)
TEARS_TO_FLOW = 8.0
"""Sum of `Pose.tears` over frames after which tears reach the chin."""


@dataclass(frozen=True)
class Pose:
    """One frame of acting.

    Attributes:
        yaw: head turned to the person's left, degrees.
        pitch: head bowed, degrees.
        roll: head tilted to the person's right, degrees.
        gaze_x: eyes to the person's left, -1..1.
        gaze_y: eyes up, -1..1; the lids follow.
        actions: ARKit action -> strength, 0..1.2.
        blush: 0..1.
        tears: 0..1; they run down while the value is above zero.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    actions: Mapping[str, float] = field(default_factory=dict)
    blush: float = 0.0
    tears: float = 0.0


@dataclass(frozen=True)
class _Figure:
    """A head with hair, in the shape of one identity, and its texture."""

    vertices: Array
    free: Array  # (V,) share of the head's rotation that a vertex follows; 0 on the shoulders
    surface: raster.Surface
    face: Array


class FaceRenderer:
    """Renders clips of square frames of `size` pixels.

    Raises:
        UserError: if the package `anny` is missing, or the size is not a positive number.
    """

    def __init__(self, size: int = 128) -> None:
        if size < 1:
            raise UserError(f"size of a face's frames: {size}, expected a positive number of pixels")
        self.size = size
        self.head = load_head()
        self._on = {kind: np.unique(self.head.triangles[self.head.material == kind]) for kind in range(10)}
        self._masks, self._boxes = transient_masks()
        # Buffers are reused: allocating them would cost more than rendering into them.
        self._image = np.empty((size, size, 3), dtype=np.float32)
        self._seen = np.empty((2 * size, 2 * size), dtype=np.int32)
        self._face = np.empty((MAP_SIDE, MAP_SIDE, 3), dtype=np.float32)
        self._place = np.zeros((2 * size, 2 * size, 3), dtype=np.float32)

    def render(
        self, identity: Identity, framing: Framing, poses: Sequence[Pose], rng: np.random.Generator
    ) -> npt.NDArray[np.uint8]:
        """Render a clip, one frame per pose: (F, size, size, 3) uint8 RGB; `rng` draws the sensor noise.

        Raises:
            UserError: if there are no poses, or a pose has an unknown action.
        """
        if not poses:
            raise UserError("a clip of a face needs at least one pose, got none")
        figure = self._figure(identity)
        background = room(framing, self.size)
        wet = np.minimum(np.cumsum([pose.tears for pose in poses]) / TEARS_TO_FLOW, 1.0)
        tint = np.array([1 + 0.08 * framing.warmth, 1.0, 1 - 0.1 * framing.warmth]) * framing.exposure
        frames = np.empty((len(poses), self.size, self.size, 3), dtype=np.uint8)
        for pose, run, frame in zip(poses, wet, frames, strict=True):
            self._image[:] = background
            self._draw(figure, framing, pose, float(run))
            noise = rng.standard_normal((self.size, self.size), dtype=np.float32) * np.float32(framing.noise)
            raster.develop(self._image, noise, tint.astype(np.float32), frame)
        return frames

    def _figure(self, identity: Identity) -> _Figure:
        head = self.head
        vertices = self._shaped(identity)
        hair = hair_field(head.vertices, identity)
        fields = np.stack([head.lips, hair, cloth_field(head.vertices, identity)], axis=1)
        on_head = self._on[SKIN]
        for kind in (TEETH, TONGUE, MOUTH):  # the deeper in the mouth, the darker
            inside = np.setdiff1d(self._on[kind], on_head)
            fields[inside, 0] = np.clip((head.vertices[inside, 2] - 0.85) / 0.55, 0.12, 1.0)
        off = np.zeros(len(vertices), dtype=np.float32)
        grown = np.clip(hair[on_head] / 0.22, 0, 1) ** 0.8
        off[on_head] = identity.hair_volume * grown + 0.035 * (fields[on_head, 2] > 0)
        vertices += raster.vertex_normals(vertices, head.triangles) * off[:, None]
        sheet, sheet_triangles = curtain(vertices[on_head][hair[on_head] > 0.1], identity)
        around = np.concatenate([vertices, sheet])
        free = np.clip((np.concatenate([head.vertices, sheet])[:, 1] - 5.6) / 0.9, 0, 1)
        at = np.zeros((len(around), 3), dtype=np.float32)
        at[: len(vertices), :2] = map_places(head.vertices)
        at[:, 2] = (np.arctan2(around[:, 0], around[:, 2] - 0.35) / (2 * np.pi) + 0.5) * 3 * raster.STRANDS
        for kind in (LEFT_EYE, RIGHT_EYE):
            eye = self._on[kind]
            at[eye] = vertices[eye] - (vertices[eye].max(axis=0) + vertices[eye].min(axis=0)) / 2
        lips = np.array(identity.skin) * (1 - identity.lip_red) * 0.8 + np.array([178, 62, 72]) * identity.lip_red
        night, day = (0.97, 0.99, 1.04), (1.03, 1.0, 0.95)  # ambient light is cooler than the key light
        strands = np.random.default_rng(identity.blotches + 1).uniform(0.72, 1.18, raster.STRANDS)
        surface = raster.Surface(
            triangles=np.concatenate([head.triangles, sheet_triangles + len(vertices)]),
            material=np.concatenate([_materials(head, fields), np.full(len(sheet_triangles), HAIR, dtype=np.int8)]),
            at=at,
            fields=np.concatenate([fields, np.zeros((len(sheet), 3))]).astype(np.float32),
            palette=np.array([lips, identity.hair, identity.cloth, identity.iris, night, day], dtype=np.float32),
            strands=strands.astype(np.float32),
        )
        return _Figure(around.astype(np.float32), free.astype(np.float32), surface, paint(identity))

    def _shaped(self, identity: Identity) -> Array:
        """The identity's vertices, with the base mesh's eye position and a head of `FACE_HEIGHT`."""
        head = self.head
        vertices = head.vertices.copy()
        for name, weight in identity.shapes.items():
            raster.shift(vertices, *head.shapes[name], weight)
        eyes = np.concatenate([self._on[LEFT_EYE], self._on[RIGHT_EYE]])
        middle, usual = vertices[eyes].mean(axis=0), head.vertices[eyes].mean(axis=0)
        scale = np.float32(FACE_HEIGHT / (vertices[head.crown, 1] - vertices[head.chin, 1]))
        vertices = (vertices - middle) * scale + usual
        # Mouth shapes do not always move teeth and tongue: keep them behind the lips.
        for kind, (across, up, forward) in ((TEETH, (0.92, 0.0, -0.01)), (TONGUE, (0.85, -0.1, -0.08))):
            vertices[self._on[kind]] = vertices[self._on[kind]] * (across, 1.0, 1.0) + (0.0, up, forward)
        return vertices.astype(np.float32)

    def _draw(self, figure: _Figure, framing: Framing, pose: Pose, wet: float) -> None:
        vertices, surface = figure.vertices.copy(), figure.surface
        for name, strength in {**_looking(pose), **pose.actions}.items():
            if name not in self.head.actions:
                raise UserError(
                    f"unknown facial action {name!r} in a pose: expected one of mer_r1.lab.scenes.face.renderer.ACTIONS"
                )
            gain = next((gain for prefix, gain in GAIN.items() if name.startswith(prefix)), 1.0)
            raster.shift(vertices, *self.head.actions[name], strength * gain)
        turned, camera = _rotation(pose.yaw, pose.pitch, pose.roll), _rotation(*framing.turn)
        raster.turn(vertices, figure.free, turned, np.array(NECK, dtype=np.float32))
        raster.look(vertices, camera, np.array(PIVOT, dtype=np.float32))
        light = np.array(framing.light, dtype=np.float32) / np.float32(np.linalg.norm(framing.light))
        lit = raster.light_vertices(raster.vertex_normals(vertices, surface.triangles), light, framing.ambient)
        side = 2 * self.size
        right, down = side * (0.5 + framing.offset[0]), side * (0.52 + framing.offset[1])
        raster.project(vertices, CAMERA_DISTANCE, framing.height * side / FACE_HEIGHT, right, down)
        raster.cover(vertices, surface.triangles, surface.material, self._seen, self._place)
        self._paint(figure.face, pose, wet)
        glint = _glint(light, camera @ turned)
        raster.shade(self._seen, self._place, surface, lit, self._face, _gaze(pose), glint, self._image)

    def _paint(self, face: Array, pose: Pose, wet: float) -> None:
        """Paint this frame's folds, blush and tears on the face's texture; tears reach down to `wet`, 0..1."""
        self._face[:] = face
        for name, depth in _folds(pose.actions).items():
            if depth > 0:
                raster.fold(self._face, self._masks[name], self._boxes[name], DEEPEST_FOLD * min(depth, 1.0))
        if pose.blush > 0:
            flush = BLUSH * face[MAP_SIDE // 2, MAP_SIDE // 2]
            raster.tinge(self._face, self._masks["cheeks"], self._boxes["cheeks"], flush, 0.85 * min(pose.blush, 1.0))
        if pose.tears > 0:
            reached = self._boxes["streaks"].copy()
            reached[1] = min(reached[1], reached[0] + 1 + int(wet * (reached[1] - reached[0])))
            for name, box in (("lids", self._boxes["lids"]), ("streaks", reached)):
                raster.tinge(self._face, self._masks[name], box, WATER, 0.62 * min(pose.tears, 1.0))


@lru_cache(maxsize=2)
def face_renderer(size: int) -> FaceRenderer:
    """The renderer for a frame size, cached per process."""
    return FaceRenderer(size)


def _materials(head: Head, fields: Array) -> npt.NDArray[np.int8]:
    """Material of each triangle from its fields: all hair, all cloth, or skin with an edge in it."""
    material = head.material.astype(np.int8)
    corners = fields[head.triangles]
    low, high = corners.min(axis=1), corners.max(axis=1)
    skin = head.material == SKIN
    material[skin & ((high[:, 0] > 0.2) | (high[:, 1] > -0.03) | (high[:, 2] > -0.02))] = MIXED
    material[skin & (low[:, 1] > 0.03)] = HAIR
    material[skin & (low[:, 2] > 0.02)] = CLOTH
    return material


def _looking(pose: Pose) -> dict[str, float]:
    """Actions of the lids, which follow the gaze."""
    down, up = max(-pose.gaze_y, 0.0), max(pose.gaze_y, 0.0)
    looking = {"eyeLookDown": down, "eyeLookUp": up}
    return {f"{name}{side}": value for name, value in looking.items() if value for side in ("Left", "Right")}


def _gaze(pose: Pose) -> Array:
    """Directions of the left and the right eye, (2, 3) unit vectors in the head's frame."""
    directions = []
    for side, outward in (("Left", 1.0), ("Right", -1.0)):
        out, inward, up, down = (pose.actions.get(f"eyeLook{way}{side}", 0.0) for way in ("Out", "In", "Up", "Down"))
        across = pose.gaze_x + outward * (out - inward)
        height = pose.gaze_y + up - down
        tilt = -(GAZE_UP if height > 0 else GAZE_DOWN) * height
        directions.append(_rotation(GAZE_ACROSS * across, tilt, 0.0)[:, 2])
    return np.stack(directions).astype(np.float32)


def _glint(light: Array, head_to_camera: Array) -> Array:
    """Direction of the light's reflection in an eye, (3,) unit vector in the head's frame, between light and viewer."""
    direction = np.array([0.35 * light[0] - 0.06, 0.35 * light[1] + 0.06, 1.0]) @ head_to_camera
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def _folds(actions: Mapping[str, float]) -> dict[str, float]:
    """Fold of the skin -> depth, about 0..1."""

    def strongest(*names: str) -> float:
        return max(actions.get(name, 0.0) for name in names)

    folds = {
        "furrow": 0.5 * (actions.get("browDownLeft", 0.0) + actions.get("browDownRight", 0.0)),
        "forehead": 0.6 * strongest("browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    }
    for side in ("Left", "Right"):
        sneer = strongest(f"noseSneer{side}")
        folds[f"nose{side}"] = 0.7 * sneer
        folds[f"fold{side}"] = max(0.6 * strongest(f"mouthSmile{side}"), 0.4 * sneer)
    return folds


def _rotation(yaw: float, pitch: float, roll: float) -> Array:
    a, b, c = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return np.ascontiguousarray(about_z @ about_y @ about_x, dtype=np.float32)
