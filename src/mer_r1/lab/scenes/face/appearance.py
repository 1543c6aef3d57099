"""Random identities (face, hair, clothing) and framings (light, camera, background).

Hair is the scalp displaced outwards above the hairline, plus a curtain around the head for long hair. Fields define
which skin is hair or cloth: heights above the hairline or below the neckline, whose zero is the edge.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mer_r1.lab.scenes.face.head import SHAPES, Array, Index

SKINS = ((240, 202, 180), (228, 184, 154), (206, 158, 124), (172, 122, 90), (130, 88, 62), (96, 64, 46))
HAIRS = ((30, 25, 23), (58, 40, 29), (94, 65, 42), (152, 116, 72), (122, 58, 34), (150, 148, 146), (74, 68, 66))
HAIR_CHANCES = (0.3, 0.25, 0.15, 0.1, 0.07, 0.03, 0.1)
GREY = 5
IRISES = ((74, 48, 32), (104, 74, 44), (78, 108, 138), (82, 116, 88), (92, 100, 110))
DARKNESS = {"african": 4.2, "asian": 1.6, "caucasian": 0.6}
"""Origin of the face's shape -> mean index into `SKINS`."""
LEAVE_OUT = 0.66
"""Probability that a facial feature is not varied individually."""


@dataclass(frozen=True)
class Identity:
    """Appearance of a person.

    Attributes:
        shapes: weight of each identity target, 0..1.
        skin, hair, iris, cloth: colours, RGB 0..255.
        lip_red: redness of the lips relative to the skin, 0..1.
        brow: thickness (factor), arch (dm) and darkness (0..1) of the brows.
        beard: amount of stubble, 0..1.
        hairline: height of the hairline above the default, dm.
        hair_volume: thickness of the hair, dm.
        hair_length: length of long hair from the crown, dm; 0 for short hair.
        neckline: height of the neckline above the default, dm.
        blotches: seed for the skin's texture.
    """

    shapes: Mapping[str, float]
    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    iris: tuple[int, int, int]
    cloth: tuple[int, int, int]
    lip_red: float
    brow: tuple[float, float, float]
    beard: float
    hairline: float
    hair_volume: float
    hair_length: float
    neckline: float
    blotches: int


@dataclass(frozen=True)
class Framing:
    """Light, camera and background, constant over a clip.

    Attributes:
        light: direction to the key light, not normalised.
        ambient: share of ambient light, 0..1.
        warmth: colour temperature, -1 (blue)..1 (yellow).
        exposure: brightness factor.
        height: height of the head, chin to crown, as a share of the frame.
        offset: shift of the head to the right and down, as shares of the frame.
        turn: yaw, pitch and roll of the camera, degrees.
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


def sample_identity(rng: np.random.Generator) -> Identity:
    """Draw a person: a mixture of two origins, sex, age, features, colours, hair and clothing."""
    first, second = (str(name) for name in rng.permutation(list(DARKNESS))[:2])
    share, woman, age = float(rng.beta(0.6, 0.6)), bool(rng.random() < 0.5), float(rng.beta(1.0, 2.5))
    tone = share * DARKNESS[first] + (1 - share) * DARKNESS[second] + rng.normal(0, 0.5)
    tone = float(np.clip(tone, 0, len(SKINS) - 1.001))
    skin = np.array(SKINS[int(tone)]) * (1 - tone % 1) + np.array(SKINS[int(tone) + 1]) * (tone % 1)
    grey = age > 0.55 and rng.random() < 0.6
    hair = GREY if grey else int(rng.choice(len(HAIRS), p=HAIR_CHANCES))
    if tone > 2.6 and hair != GREY:  # fair hair on dark skin would look like a bald head
        hair = int(hair % 2)
    beard = 0.0 if woman else float(rng.choice([0.0, 0.35, 1.0], p=[0.6, 0.25, 0.15]) * rng.uniform(0.6, 1.0))
    long = woman and rng.random() < 0.7
    return Identity(
        shapes=_sample_shapes(rng, {first: share, second: 1 - share}, woman, age),
        skin=_rgb(skin + rng.normal(0, 4, 3)),
        hair=_rgb(np.array(HAIRS[hair]) + rng.normal(0, 6) + rng.normal(0, 1.5, 3)),
        iris=IRISES[0] if tone > 2.5 else IRISES[rng.integers(len(IRISES))],
        cloth=_rgb(_muted(rng, rng.uniform(35, 215), 28)),
        lip_red=float(rng.uniform(0.35, 0.65) if woman else rng.uniform(0.22, 0.4)),
        brow=(
            float(rng.uniform(0.7, 1.1) if woman else rng.uniform(0.95, 1.45)),
            float(rng.uniform(0, 0.03)),
            float(rng.uniform(0.7, 0.95)),
        ),
        beard=beard,
        hairline=float(rng.uniform(-0.08, 0.08) if woman else rng.uniform(-0.06, 0.1 + 0.16 * age)),
        hair_volume=float(rng.uniform(0.06, 0.15) if long else rng.choice([0.03, 0.08, 0.16]) * rng.uniform(0.7, 1.2)),
        hair_length=float(rng.uniform(1.9, 3.6)) if long else 0.0,
        neckline=float(rng.uniform(-0.25, 0.3)),
        blotches=int(rng.integers(2**31)),
    )


def sample_framing(rng: np.random.Generator) -> Framing:
    """Draw light, camera, background and sensor noise."""
    base = float(rng.uniform(55, 190))
    corners = [_muted(rng, base + rng.normal(0, 14), 9) for _ in range(4)]
    blobs = [
        np.array([*rng.uniform(0, 1, 2), rng.uniform(0.08, 0.35), *_muted(rng, base + rng.normal(0, 30), 14)])
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


def hair_field(vertices: Array, identity: Identity) -> Array:
    """Height of resting vertices above the hairline, (V,) in decimetres: positive under the hair."""
    x, y, z = np.abs(vertices[:, 0]), vertices[:, 1], vertices[:, 2]
    slant = (identity.blotches % 11 - 5) * 0.03  # a parting: one side of the hairline is lower
    front = (
        7.93
        + identity.hairline
        + slant * vertices[:, 0]
        - 0.35 * x**2
        + 0.5 * max(identity.hairline, 0.0) * np.sin(np.pi * np.clip(x / 0.7, 0, 1))
    )
    back = np.clip((1.18 - z) / 0.55, 0, 1)
    sideburn = 7.08 + 0.0 * y
    nape = 6.75 - 0.35 * np.clip((0.1 - z) / 0.4, 0, 1)
    line = front + (sideburn - front) * back**1.6
    line = np.where(z < 0.45, np.minimum(line, sideburn + (nape - sideburn) * np.clip((0.45 - z) / 0.3, 0, 1)), line)
    field = y - line
    ear = np.hypot((y - 7.08) / 0.36, (z - 0.5) / 0.27) - 1.0  # no hair on the ears or in front of them
    return np.where(x > 0.55, np.minimum(field, 0.3 * ear), field).astype(np.float32)


def cloth_field(vertices: Array, identity: Identity) -> Array:
    """Depth of resting vertices below the neckline, (V,) in decimetres: positive under the clothing."""
    x, y, z = np.abs(vertices[:, 0]), vertices[:, 1], vertices[:, 2]
    line = 5.72 + identity.neckline + 0.35 * np.clip(x - 0.5, 0, 2) - 0.3 * np.clip(z - 0.4, 0, 1)
    return (line - y).astype(np.float32)


def curtain(scalp: Array, identity: Identity) -> tuple[Array, Index]:
    """Long hair: a sheet around the back and the sides of the head, empty for short hair.

    `scalp` holds the (N, 3) vertices of the identity's hairy scalp, already displaced.
    Returns (M, 3) vertices and (K, 3) triangles.
    """
    if identity.hair_length <= 0:
        return np.zeros((0, 3), dtype=np.float32), np.zeros((0, 3), dtype=np.int64)
    rows, columns = 11, 27
    top, wide = float(scalp[:, 1].max()), float(np.abs(scalp[:, 0]).max()) + 0.13
    back, front = float(scalp[:, 2].min()) - 0.05, 0.62
    down = np.linspace(0, 1, rows)[:, None]
    angle = np.radians(np.linspace(-116, 116, columns))[None, :]
    height = top - 0.12 - down * (identity.hair_length - 0.12) + 0 * angle
    dome = np.sqrt(
        1 - (1 - np.clip(down * identity.hair_length / 1.1, 0, 1) * 0.98) ** 2
    )  # round over the crown, then straight
    flare = dome * (1 + 0.05 * down + 0.03 * np.sin(9 * angle + identity.blotches % 7) * down)
    centre = (back + front) / 2
    vertices = np.stack(
        [wide * flare * np.sin(angle), height, centre - (centre - back) * flare * np.cos(angle)], axis=2
    )
    first = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)[None, :]).ravel()
    quads = np.stack([first, first + 1, first + columns + 1, first + columns], axis=1)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return vertices.reshape(-1, 3).astype(np.float32), triangles


def room(framing: Framing, side: int) -> Array:
    """The blurred background, (side, side, 3) float32 RGB."""
    across = np.linspace(0, 1, side, dtype=np.float32)
    x, y = across[None, :, None], across[:, None, None]
    corners = [np.array(corner, dtype=np.float32) for corner in framing.background[:4]]
    image = (corners[0] * (1 - x) + corners[1] * x) * (1 - y) + (corners[2] * (1 - x) + corners[3] * x) * y
    for blob in framing.background[4:]:
        cx, cy, radius = blob[:3]
        weight = 0.7 * np.exp(-((((x - cx) ** 2 + (y - cy) ** 2) / radius**2) ** 2))
        image = image * (1 - weight) + np.array(blob[3:], dtype=np.float32) * weight
    return image.astype(np.float32)


def _sample_shapes(rng: np.random.Generator, origins: Mapping[str, float], woman: bool, age: float) -> dict[str, float]:
    shapes: dict[str, float] = {}
    for origin, share in origins.items():
        for stage, part in (("young", 1 - age), ("old", age)):
            shapes[f"macrodetails/{origin}-{'female' if woman else 'male'}-{stage}"] = share * part
    drawn: dict[str, float] = {}
    for name in SHAPES:
        feature = name.replace("/r-", "/l-")  # both sides of a face have similar features
        if name.startswith("macrodetails"):
            continue
        if feature not in drawn:
            drawn[feature] = (
                0.0
                if rng.random() < LEAVE_OUT
                else float(rng.uniform(0.1, 0.4 if feature.startswith("head/") else 0.5))
            )
        if drawn[feature]:
            shapes[name] = drawn[feature] * float(rng.uniform(0.9, 1.1) if "/l-" in feature else 1.0)
    return shapes


def _muted(rng: np.random.Generator, grey: float, spread: float) -> npt.NDArray[np.float64]:
    """A muted colour for rooms and clothes: grey with a random tint."""
    return np.clip(grey + rng.normal(0, spread, 3), 0, 255)


def _rgb(colour: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in np.clip(np.rint(colour), 0, 255))
    return red, green, blue
