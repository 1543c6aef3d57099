"""A small software renderer: find the visible triangle at each point (z-buffer), then shade the point.

Everything is drawn at twice the frame's size and averaged, which smooths edges. Light is computed at the vertices and
interpolated (Gouraud); the material of a point, such as lips, brows or iris, is decided per point, so its edges are
sharp. Compiled by numba for one thread; the order of additions is fixed, so the same input gives the same bits.
"""

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from mer_r1.lab.scenes.face.head import CLOTH, HAIR, LASH, LEFT_EYE, MIXED, MOUTH, SKIN, TEETH, TONGUE, Array, Index

IRIS, PUPIL = 0.893, 0.978
"""Cosines of the angles from the middle of the pupil at which iris and pupil end."""
RING = 0.02
"""Width of the iris's dark outer ring, in cosine."""
STRANDS = 64
"""Number of strands of hair with a brightness of their own."""
COLOURS = np.zeros((10, 3))
"""Material -> fixed colour, RGB 0..255; skin, hair, cloth and irises have the identity's colours."""
COLOURS[LASH], COLOURS[TEETH], COLOURS[TONGUE], COLOURS[MOUTH] = (
    (38.0, 30.0, 27.0),
    (216.0, 209.0, 194.0),
    (128.0, 54.0, 56.0),
    (74.0, 24.0, 25.0),
)
PUPIL_COLOUR, EYE_WHITE = np.array([10.0, 8.0, 8.0]), np.array([240.0, 231.0, 226.0])
GLOSS = np.zeros(10)
"""Material -> strength of the highlight, grey levels."""
GLOSS[[SKIN, MIXED, HAIR, CLOTH]] = 13.0, 13.0, 22.0, 3.0
GLOSS[[TEETH, TONGUE, MOUTH]] = 12.0
LIP_GLOSS, EYE_GLOSS = 14.0, 150.0
"""Additional highlight of lips, and the highlight of the light's reflection in an eye."""
EYE_AMBIENT, EYE_FILL, EYE_KEY = 0.3, 0.55, 0.8
"""Eyes shine in shadow: ambient light is EYE_AMBIENT + EYE_FILL * ambient, the key light is EYE_KEY of it."""
LIP_EDGE, HAIR_EDGE, CLOTH_EDGE = 0.5, 0.05, 0.02
"""Softness of the edges of lips, hair and clothing, in units of their fields."""
Points = npt.NDArray[np.int32]
Triple = tuple[float, float, float]
_jit = numba.njit(cache=True, error_model="numpy")


class Surface(NamedTuple):
    """A person's mesh with its materials, constant over a clip.

    Attributes:
        triangles: (T, 3) vertex indices.
        material: (T,) material of each triangle.
        at: (V, 3) skin: place on the face's texture (2) and strand of hair; eyes: direction from the eye's middle.
        fields: (V, 3) lips, hair, cloth; edges are where lips are 0.5, hair and cloth 0. In the mouth the first field
            is the share of the light that gets there.
        palette: (6, 3) colours of lips, hair, cloth, iris, ambient light and key light.
        strands: (STRANDS,) brightness of strands of hair.
    """

    triangles: Index
    material: npt.NDArray[np.int8]
    at: Array
    fields: Array
    palette: Array
    strands: Array


@_jit
def shift(vertices: Array, index: Index, shifts: Array, weight: float) -> None:
    """Move some vertices in place: vertices[index] += weight * shifts."""
    for n in range(len(index)):
        for c in range(3):
            vertices[index[n], c] += np.float32(weight) * shifts[n, c]


@_jit
def turn(vertices: Array, free: Array, rotation: Array, pivot: Array) -> None:
    """Rotate vertices in place about the pivot, each by its own share `free` (0..1) of the way."""
    for v in range(len(vertices)):
        x, y, z = vertices[v, 0] - pivot[0], vertices[v, 1] - pivot[1], vertices[v, 2] - pivot[2]
        for c in range(3):
            turned = rotation[c, 0] * x + rotation[c, 1] * y + rotation[c, 2] * z + pivot[c]
            vertices[v, c] += free[v] * (turned - vertices[v, c])


@_jit
def look(vertices: Array, camera: Array, pivot: Array) -> None:
    """World to camera space, in place: rotation about the pivot, which becomes the origin."""
    for v in range(len(vertices)):
        x, y, z = vertices[v, 0] - pivot[0], vertices[v, 1] - pivot[1], vertices[v, 2] - pivot[2]
        for c in range(3):
            vertices[v, c] = camera[c, 0] * x + camera[c, 1] * y + camera[c, 2] * z


@_jit
def project(vertices: Array, distance: float, scale: float, right: float, down: float) -> None:
    """Camera space to the screen, in place: points right, points down, nearness. The camera is at z = distance."""
    for v in range(len(vertices)):
        size = np.float32(scale / (1.0 - vertices[v, 2] / distance))
        vertices[v, 0] = vertices[v, 0] * size + np.float32(right)
        vertices[v, 1] = np.float32(down) - vertices[v, 1] * size


@_jit
def vertex_normals(vertices: Array, triangles: Index) -> Array:
    """Unit normals of the vertices, (V, 3): area-weighted means over their triangles."""
    normals = np.zeros_like(vertices)
    for t in range(len(triangles)):
        i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ax, ay, az = vertices[j, 0] - vertices[i, 0], vertices[j, 1] - vertices[i, 1], vertices[j, 2] - vertices[i, 2]
        bx, by, bz = vertices[k, 0] - vertices[i, 0], vertices[k, 1] - vertices[i, 1], vertices[k, 2] - vertices[i, 2]
        nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        for v in (i, j, k):
            normals[v, 0] += nx
            normals[v, 1] += ny
            normals[v, 2] += nz
    for v in range(len(normals)):
        length = np.float32(np.sqrt(normals[v, 0] ** 2 + normals[v, 1] ** 2 + normals[v, 2] ** 2) + 1e-12)
        for c in range(3):
            normals[v, c] /= length
    return normals


@_jit
def light_vertices(normals: Array, light: Array, ambient: float) -> Array:
    """Light at each vertex, (V, 3): ambient (less from below), key light (soft), and highlight."""
    half = np.array([light[0], light[1], light[2] + 1.0], dtype=np.float32)
    half /= np.float32(np.sqrt(half[0] ** 2 + half[1] ** 2 + half[2] ** 2))
    lit = np.empty((len(normals), 3), dtype=np.float32)
    for v in range(len(normals)):
        x, y, z = normals[v, 0], normals[v, 1], normals[v, 2]
        lit[v, 0] = ambient * (0.78 + 0.3 * y)
        facing = (x * light[0] + y * light[1] + z * light[2] + 0.22) / 1.22
        lit[v, 1] = (1.1 - ambient) * max(0.0, facing)
        lit[v, 2] = max(0.0, x * half[0] + y * half[1] + z * half[2]) ** 28
    return lit


@_jit
def fold(face: Array, mask: Array, box: Index, depth: float) -> None:
    """Darken the face's texture (T, T, 3) in place where the skin folds, by mask (T, T) and depth, 0..1.

    `box` holds first and last row, first and last column in which the mask is not zero; last ones excluded.
    """
    for r in range(box[0], box[1]):
        for c in range(box[2], box[3]):
            left = np.float32(1.0) - np.float32(depth) * mask[r, c]
            for n in range(3):
                face[r, c, n] *= left


@_jit
def tinge(face: Array, mask: Array, box: Index, colour: Array, share: float) -> None:
    """Move the face's texture in place towards a colour (3,) by `share`; other arguments as in `fold`."""
    for r in range(box[0], box[1]):
        for c in range(box[2], box[3]):
            weight = np.float32(share) * mask[r, c]
            for n in range(3):
                face[r, c, n] += weight * (colour[n] - face[r, c, n])


@_jit
def cover(screen: Array, triangles: Index, material: npt.NDArray[np.int8], seen: Points, place: Array) -> None:
    """Find the nearest triangle at each point.

    Args:
        screen: (V, 3) right, down (points), and nearness.
        triangles: (T, 3) vertex indices.
        material: (T,) material; hair and lashes are visible from both sides, everything else only from the front.
        seen: (P, P) for P x P points, overwritten: index of the triangle, or -1.
        place: (P, P, 3), overwritten where a triangle is visible: nearness, weights of its corners 1 and 2.
    """
    side = seen.shape[0]
    seen[:] = -1
    for t in range(len(triangles)):
        i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        x0, y0, z0 = screen[i, 0], screen[i, 1], screen[i, 2]
        x1, y1, z1 = screen[j, 0] - x0, screen[j, 1] - y0, screen[j, 2] - z0
        x2, y2, z2 = screen[k, 0] - x0, screen[k, 1] - y0, screen[k, 2] - z0
        area = x1 * y2 - x2 * y1
        if area > -1e-7 and (area < 1e-7 or (material[t] != HAIR and material[t] != LASH)):
            continue  # the screen's y points down: front faces have a negative area
        left = max(0, int(np.ceil(x0 + min(np.float32(0), x1, x2) - np.float32(0.5))))
        right = min(side - 1, int(x0 + max(np.float32(0), x1, x2) - np.float32(0.5)))
        top = max(0, int(np.ceil(y0 + min(np.float32(0), y1, y2) - np.float32(0.5))))
        bottom = min(side - 1, int(y0 + max(np.float32(0), y1, y2) - np.float32(0.5)))
        if left > right or top > bottom:
            continue
        per = np.float32(1.0) / area
        ux, uy, vx, vy = y2 * per, -x2 * per, -y1 * per, x1 * per
        wx, wy = -(ux + vx), -(uy + vy)
        begin = x0 - np.float32(0.5)
        for py in range(top, bottom + 1):
            dy = np.float32(py) + np.float32(0.5) - y0
            first, last = _span(begin, uy * dy, ux, left, right)
            first, last = _span(begin, vy * dy, vx, first, last)
            first, last = _span(begin, np.float32(1.0) + wy * dy, wx, first, last)
            dx = np.float32(first) - begin
            u, v = ux * dx + uy * dy, vx * dx + vy * dy
            for px in range(first, last + 1):
                z = z0 + u * z1 + v * z2
                if seen[py, px] < 0 or z > place[py, px, 0]:
                    seen[py, px] = t
                    place[py, px, 0], place[py, px, 1], place[py, px, 2] = z, u, v
                u += ux
                v += vx


@_jit
def _span(begin: float, weight: float, slope: float, first: int, last: int) -> tuple[int, int]:
    """First and last point of a row where a corner's weight, growing by `slope` from `begin` on, is not negative."""
    if slope > 0:
        return max(first, int(np.ceil(begin - weight / slope))), last
    if slope < 0:
        return first, min(last, int(np.floor(begin - weight / slope)))
    return first, last if weight >= 0 else -1


@_jit
def develop(image: Array, noise: Array, gain: Array, frame: npt.NDArray[np.uint8]) -> None:
    """Light (S, S, 3) to grey levels: frame = image * gain (3,) + noise (S, S), rounded, 0..255."""
    for r in range(image.shape[0]):
        for c in range(image.shape[1]):
            for n in range(3):
                level = image[r, c, n] * gain[n] + noise[r, c] + np.float32(0.5)
                frame[r, c, n] = np.uint8(min(max(level, np.float32(0.0)), np.float32(255.0)))


@_jit
def _edge(value: float, softness: float) -> float:
    """0 on one side of an edge, 1 on the other, and a ramp of width `softness` between them."""
    return min(max(value / softness + 0.5, 0.0), 1.0)


@_jit
def shade(
    seen: Points, place: Array, surface: Surface, lit: Array, face: Array, gaze: Array, glint: Array, image: Array
) -> None:
    """Colour the points that `cover` found, and average 2 x 2 points into each pixel of the image.

    Args:
        seen: (2S, 2S) from `cover`.
        place: (2S, 2S, 3) from `cover`.
        surface: the mesh with its materials.
        lit: (V, 3) from `light_vertices`.
        face: (T, T, 3) the face's texture.
        gaze: (2, 3) directions of the left and the right pupil, in the head's frame.
        glint: (3,) direction of the eyes' reflection of the light, in the head's frame.
        image: (S, S, 3) background, overwritten where the person is visible.
    """
    triangles, material, at, fields, palette, strands = surface
    side = image.shape[0]
    colour = np.zeros(3, dtype=np.float32)
    total = np.zeros(3, dtype=np.float32)
    for row in range(side):
        for column in range(side):
            total[:] = 0.0
            hits = 0
            step = _stride(seen, material, 2 * row, 2 * column)
            weight = np.float32(2 if step == 3 else 1)
            for part in range(0, 4, step):
                py, px = 2 * row + part // 2, 2 * column + part % 2
                t = seen[py, px]
                if t < 0:
                    continue
                hits += 1
                u, v = place[py, px, 1], place[py, px, 2]
                kind = material[t]
                ambient, key, shine = _interpolate(lit, triangles, t, u, v)
                if kind >= LEFT_EYE:
                    direction = _interpolate(at, triangles, t, u, v)
                    gloss = _eye(direction, gaze[kind - LEFT_EYE], glint, palette[3], colour)
                    ambient, key, shine = EYE_AMBIENT + EYE_FILL * ambient, EYE_KEY * key, 1.0
                elif kind in (TEETH, TONGUE, MOUTH, LASH):
                    gloss = _plain(kind, _interpolate(fields, triangles, t, u, v)[0], colour)
                else:
                    spot, edges = _interpolate(at, triangles, t, u, v), _interpolate(fields, triangles, t, u, v)
                    gloss = _outside(kind, spot, edges, strands, face, palette, colour)
                for n in range(3):
                    total[n] += colour[n] * (ambient * palette[4, n] + key * palette[5, n]) + gloss * shine
            if hits:
                for n in range(3):
                    image[row, column, n] = 0.25 * (weight * total[n] + (4 - weight * hits) * image[row, column, n])


@_jit
def _interpolate(values: Array, triangles: Index, t: int, u: float, v: float) -> Triple:
    """Values (V, 3) of the vertices, interpolated within triangle `t` by the weights of its corners 1 and 2."""
    w = np.float32(1.0) - u - v
    i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
    return (
        w * values[i, 0] + u * values[j, 0] + v * values[k, 0],
        w * values[i, 1] + u * values[j, 1] + v * values[k, 1],
        w * values[i, 2] + u * values[j, 2] + v * values[k, 2],
    )


@_jit
def _stride(seen: Points, material: npt.NDArray[np.int8], row: int, column: int) -> int:
    """3 if two points on the diagonal suffice for a pixel: all four are plain skin, hair or cloth. Otherwise 1."""
    for part in range(4):
        t = seen[row + part // 2, column + part % 2]
        if t < 0 or (material[t] != SKIN and material[t] != HAIR and material[t] != CLOTH):
            return 1
    return 3


@_jit
def _outside(
    kind: int, at: Triple, fields: Triple, strands: Array, face: Array, palette: Array, colour: Array
) -> float:
    """Colour of skin, hair and clothing, and of the edges between them; returns the gloss."""
    strand = strands[int(at[2]) % STRANDS]
    if kind == HAIR:
        for n in range(3):
            colour[n] = palette[1, n] * strand
        return GLOSS[HAIR] * strand
    if kind == CLOTH:
        for n in range(3):
            colour[n] = palette[2, n]
        return GLOSS[CLOTH]
    last = face.shape[0] - 1
    r, c = min(max(int(at[1]), 0), last), min(max(int(at[0]), 0), last)
    for n in range(3):
        colour[n] = face[r, c, n]
    if kind == SKIN:
        return GLOSS[SKIN]
    red, grown, dressed = _edge(fields[0] - 0.5, LIP_EDGE), _edge(fields[1], HAIR_EDGE), _edge(fields[2], CLOTH_EDGE)
    for n in range(3):
        colour[n] += red * (palette[0, n] - colour[n])
        colour[n] += grown * (palette[1, n] * strand - colour[n])
        colour[n] += dressed * (palette[2, n] - colour[n])
    return GLOSS[MIXED] + LIP_GLOSS * red


@_jit
def _eye(direction: Triple, gaze: Array, glint: Array, iris: Array, colour: Array) -> float:
    """Colour of an eye at a direction (3,) from the eye's middle; returns the light that it reflects."""
    x, y, z = direction
    length = np.sqrt(x * x + y * y + z * z) + 1e-9
    x, y, z = x / length, y / length, z / length
    towards = x * gaze[0] + y * gaze[1] + z * gaze[2]
    lid = 1.0 - 0.75 * min(max(y - 0.12, 0.0), 0.5)  # the upper lid's shadow
    ring = 0.55 if towards < IRIS + RING else 0.85 + 6.0 * (PUPIL - towards)
    for n in range(3):
        if towards > PUPIL:
            colour[n] = PUPIL_COLOUR[n]
        elif towards > IRIS:
            colour[n] = iris[n] * ring * lid
        else:
            colour[n] = EYE_WHITE[n] * lid
    reflection = x * glint[0] + y * glint[1] + z * glint[2]
    return EYE_GLOSS * min(max((reflection - 0.975) / 0.015, 0.0), 1.0)


@_jit
def _plain(kind: int, light: float, colour: Array) -> float:
    """Colour of lashes and of the mouth's inside, where only a share `light` gets; returns the gloss."""
    share = 1.0 if kind == LASH else light
    for n in range(3):
        colour[n] = COLOURS[kind, n] * share
    return GLOSS[kind] * share
