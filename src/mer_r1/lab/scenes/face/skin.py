"""The face's texture: skin, brows and stubble, and transient folds, redness and tears.

The texture is a square front view of the face, `MAP_SIDE` texels for `MAP_WIDTH` decimetres. Its coordinates refer to
the mesh at rest, so it moves with the skin for every identity and action.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mer_r1.lab.scenes.face.appearance import Identity
from mer_r1.lab.scenes.face.head import Array, Index

Values = npt.NDArray[Any]
MAP_SIDE = 256
MAP_WIDTH = 2.0
MAP_LEFT, MAP_TOP = -1.0, 8.2


def paint(identity: Identity) -> Array:
    """The face's texture, (MAP_SIDE, MAP_SIDE, 3) float32 RGB, 0..255, in full light."""
    x, y = _texels()
    side = np.abs(x)
    still = _still_layers()
    rough = np.roll(still["grain"], divmod(identity.blotches, MAP_SIDE), axis=(0, 1))
    uneven = np.roll(still["patches"], divmod(identity.blotches // 7, MAP_SIDE), axis=(0, 1)) + 0.012 * rough
    light = (1 + still["inner"] * uneven) * (1 - still["shadow"])
    skin, hair = np.array(identity.skin, dtype=np.float32), np.array(identity.hair, dtype=np.float32)
    face = light[:, :, None] * skin
    face[:, :, 1:] *= 1 - still["rosy"][:, :, None]
    if identity.beard > 0:
        cover = np.clip(still["beard"] * (1.15 + 0.25 * rough) * np.float32(identity.beard), 0, 0.9)[:, :, None]
        face += cover * (0.9 * (0.25 * skin + 0.75 * hair) - face)
    strength = np.clip(_brows(side, y, identity.brow) * (1.1 + 0.18 * rough) * np.float32(identity.brow[2]), 0, 0.97)
    face += strength[:, :, None] * (np.minimum(hair * 0.75, skin * 0.62) - face)
    return np.ascontiguousarray(face, dtype=np.float32)


def transient_masks() -> tuple[dict[str, Array], dict[str, Index]]:
    """Masks of redness, wet lids, tears and folds of the skin, (MAP_SIDE, MAP_SIDE) in 0..1, by name.

    With each mask's (4,) bounding box in rows and columns.
    """
    boxes = {}
    for name, mask in _masks().items():
        rows, columns = (np.flatnonzero(mask.max(axis=axis) > 1e-3) for axis in (1, 0))
        boxes[name] = np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1])
    return _masks(), boxes


def map_places(vertices: Array) -> Array:
    """Texture coordinates of vertices at rest, (V, 2) in texels, right and down."""
    scale = MAP_SIDE / MAP_WIDTH
    return np.stack([(vertices[:, 0] - MAP_LEFT) * scale, (MAP_TOP - vertices[:, 1]) * scale], axis=1).astype(
        np.float32
    )


def _brows(side: Array, y: Array, brow: tuple[float, float, float]) -> Array:
    thickness, arch, _ = brow
    along = (side - 0.105) / 0.475
    middle = 7.45 + (0.02 + arch) * np.sin(np.clip(along, 0, 1.15) * 2.45) - 0.028 * np.clip(along, 0, 1.2) ** 2
    half = thickness * 0.036 * (1 - 0.72 * np.clip(along, 0, 1) ** 1.7)
    inside = np.clip((along + 0.04) / 0.14, 0, 1) * np.clip((1.04 - along) / 0.12, 0, 1)
    return (inside * np.clip((half - np.abs(y - middle)) / 0.016 + 0.5, 0, 1)).astype(np.float32)


def _smooth(coarse: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A coarse square of values, interpolated to the size of the texture."""
    places, known = np.linspace(0, len(coarse) - 1, MAP_SIDE), np.arange(len(coarse))
    rows = np.stack([np.interp(places, known, row) for row in coarse])
    return np.stack([np.interp(places, known, column) for column in rows.T], axis=1)


def _beard(side: Array, y: Array) -> Array:
    jaw = 6.50 + 1.25 * np.clip(side - 0.2, 0, 1) ** 1.15
    cheeks = np.clip((jaw - y) / 0.1, 0, 1) * np.clip((y - 6.1) / 0.1, 0, 1)
    lip = np.clip(1 - np.hypot(side / 0.3, (y - 6.77 + 0.5 * side**2) / 0.075), 0, 1) * 1.6
    bare = np.exp(-((side / 0.24) ** 4) - ((y - 6.595) / 0.13) ** 4)
    return np.clip(np.maximum(cheeks * (1 - bare), lip), 0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def _texels() -> tuple[Array, Array]:
    place = (np.arange(MAP_SIDE, dtype=np.float32) + np.float32(0.5)) * np.float32(MAP_WIDTH / MAP_SIDE)
    x, y = np.meshgrid(MAP_LEFT + place, MAP_TOP - place)
    return x, y


@lru_cache(maxsize=1)
def _still_layers() -> dict[str, Array]:
    """Layers that all faces share: grain and patches of skin, rosy, shaded and bearded areas."""
    x, y = _texels()
    side = np.abs(x)
    rng = np.random.default_rng(0)
    inner = np.minimum(
        np.clip((y - 6.2) / 0.12, 0, 1), np.clip((1 - side) / 0.1, 0, 1)
    )  # plain skin outside the texture
    sockets = 0.26 * np.exp(-(((side - 0.3) / 0.17) ** 2) - ((y - 7.33) / 0.085) ** 2)
    lashes = 0.35 * np.exp(-(((side - 0.31) / 0.13) ** 4) - ((y - 7.345 + 0.9 * (side - 0.32) ** 2) / 0.022) ** 2)
    layers = {
        "grain": rng.normal(0, 1, (MAP_SIDE, MAP_SIDE)),
        "patches": 0.02 * _smooth(rng.normal(0, 1, (17, 17))),
        "inner": inner,
        "rosy": 0.1 * (_masks()["cheeks"] + np.exp(-((side / 0.13) ** 2) - ((y - 6.98) / 0.1) ** 2)),
        "shadow": np.maximum(sockets, lashes),
        "beard": inner * _beard(side, y),
    }
    return {name: np.asarray(layer, dtype=np.float32) for name, layer in layers.items()}


@lru_cache(maxsize=1)
def _masks() -> dict[str, Array]:
    x, y = _texels()
    side = np.abs(x)

    def line(
        across: npt.NDArray[Any], width: float, along: npt.NDArray[Any], low: float, high: float
    ) -> npt.NDArray[Any]:
        ends = np.clip((along - low) / 0.05, 0, 1) * np.clip((high - along) / 0.05, 0, 1)
        return np.exp(-((across / width) ** 2)) * ends

    nose = np.exp(-((side / 0.12) ** 2) - ((y - 6.97) / 0.09) ** 2)
    ears = (side > 0.74) * (y > 6.8) * (y < 7.36)
    wrinkle = np.exp(-(((side - 0.085 - 0.5 * (y - 7.2)) / 0.05) ** 2)) * (0.5 + 0.5 * np.cos((y - 0.4 * side) * 90))
    wrinkle = wrinkle * np.clip((y - 7.08) / 0.04, 0, 1) * np.clip((7.36 - y) / 0.04, 0, 1)
    fold = line(side - 0.2 - 0.42 * np.clip(6.98 - y, 0, 1) ** 1.2, 0.026, y, 6.6, 7.02)
    painted = {
        "cheeks": np.maximum(
            np.exp(-(((side - 0.44) / 0.2) ** 2) - ((y - 6.96) / 0.19) ** 2), np.maximum(0.55 * nose, 0.5 * ears)
        ),
        "lids": line(y - 7.2 - 0.9 * (side - 0.31) ** 2, 0.02, side, 0.18, 0.45),
        "streaks": np.maximum(
            line(side - 0.31 - 0.11 * np.clip(7.2 - y, 0, 1), 0.024, y, 6.48, 7.22),
            0.7 * line(side - 0.235 + 0.03 * np.clip(7.2 - y, 0, 1), 0.017, y, 6.75, 7.22),
        ),
        "furrow": line(side - 0.06 - 0.1 * (y - 7.4), 0.018, y, 7.34, 7.56),
        "forehead": sum(
            line(y - 7.66 - k * 0.085 + 0.12 * (side - 0.2) ** 2, 0.013, -side, -0.42, 1.0) for k in range(3)
        ),
        "noseLeft": wrinkle * (x > 0),
        "noseRight": wrinkle * (x < 0),
        "foldLeft": fold * (x > 0),
        "foldRight": fold * (x < 0),
    }
    return {name: np.asarray(mask, dtype=np.float32) for name, mask in painted.items()}
