"""A small z-buffer rasteriser: triangles with smooth shading, drawn at twice the size and halved.

Compiled with numba, single-threaded: a frame of about 10,000 triangles takes a few milliseconds, and the same input
gives the same picture, bit by bit.
"""

import numba
import numpy as np
import numpy.typing as npt

from mer_r1.scenes.head import Array


@numba.njit(cache=True)
def normals(vertices: Array, triangles: npt.NDArray[np.int64]) -> Array:
    """Vertex normals: area-weighted means of the triangles around them."""
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
        length = np.sqrt(normals[v, 0] ** 2 + normals[v, 1] ** 2 + normals[v, 2] ** 2) + 1e-12
        normals[v, 0] /= length
        normals[v, 1] /= length
        normals[v, 2] /= length
    return normals


@numba.njit(cache=True)
def develop(image: Array, tint: Array, grain: Array, frame: npt.NDArray[np.uint8]) -> None:
    """Halve the picture, tint it, add the sensor's grain, round."""
    for y in range(frame.shape[0]):
        for x in range(frame.shape[1]):
            for c in range(3):
                total = image[2 * y, 2 * x, c] + image[2 * y + 1, 2 * x, c]
                total += image[2 * y, 2 * x + 1, c] + image[2 * y + 1, 2 * x + 1, c]
                value = total * np.float32(0.25) * tint[c] + grain[y, x]
                frame[y, x, c] = np.uint8(min(max(value + np.float32(0.5), np.float32(0.0)), np.float32(255.0)))


@numba.njit(cache=True)
def shade(normals: Array, light: Array, ambient: float) -> Array:
    """Brightness of each vertex: soft key light, a little from above, and a highlight in the second column."""
    shade = np.empty((len(normals), 2), dtype=np.float32)
    for v in range(len(normals)):
        facing = normals[v, 0] * light[0] + normals[v, 1] * light[1] + normals[v, 2] * light[2]
        wrapped = max(0.0, (facing + 0.25) / 1.25)
        shade[v, 0] = ambient * (0.8 + 0.2 * normals[v, 1]) + (1.12 - ambient) * wrapped
        shade[v, 1] = max(0.0, facing) ** 24
    return shade


@numba.njit(cache=True, fastmath=True, error_model="numpy")
def draw(
    screen: Array,
    triangles: npt.NDArray[np.int64],
    material: npt.NDArray[np.int64],
    colours: Array,
    shade: Array,
    looks: Array,
    gaze: Array,
    iris: Array,
    image: Array,
) -> None:
    """Draw the triangles that face the camera into the image, nearest in front."""
    side = image.shape[0]
    nearest = np.full((side, side), -1e9, dtype=np.float32)
    for t in range(len(triangles)):
        i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        x0, y0, x1, y1, x2, y2 = screen[i, 0], screen[i, 1], screen[j, 0], screen[j, 1], screen[k, 0], screen[k, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area >= -1e-9:  # seen from behind (the screen's y points down)
            continue
        left, right = max(0, int(np.floor(min(x0, x1, x2)))), min(side - 1, int(np.ceil(max(x0, x1, x2))))
        top, bottom = max(0, int(np.floor(min(y0, y1, y2)))), min(side - 1, int(np.ceil(max(y0, y1, y2))))
        kind = material[t]
        # Barycentric weights are linear in the pixel: start at the corner, add a step per pixel.
        du_x, dv_x = (y2 - y0) / area, -(y1 - y0) / area
        du_y, dv_y = -(x2 - x0) / area, (x1 - x0) / area
        u_row = (left + 0.5 - x0) * du_x + (top + 0.5 - y0) * du_y
        v_row = (left + 0.5 - x0) * dv_x + (top + 0.5 - y0) * dv_y
        for py in range(top, bottom + 1):
            u, v = u_row - du_x, v_row - dv_x
            u_row += du_y
            v_row += dv_y
            for px in range(left, right + 1):
                u += du_x
                v += dv_x
                w = np.float32(1.0) - u - v
                if u < 0 or v < 0 or w < 0:
                    continue
                z = w * screen[i, 2] + u * screen[j, 2] + v * screen[k, 2]
                if z <= nearest[py, px]:
                    continue
                nearest[py, px] = z
                bright = w * shade[i, 0] + u * shade[j, 0] + v * shade[k, 0]
                shine = w * shade[i, 1] + u * shade[j, 1] + v * shade[k, 1]
                if kind == 0:
                    for c in range(3):
                        base = w * colours[i, c] + u * colours[j, c] + v * colours[k, c]
                        image[py, px, c] = base * bright + 14.0 * shine
                elif kind <= 2:
                    towards = 0.0
                    for c in range(3):
                        towards += (w * looks[i, c] + u * looks[j, c] + v * looks[k, c]) * gaze[c]
                    for c in range(3):
                        if towards > 0.975:
                            base = 12.0
                        elif towards > 0.885:
                            base = iris[c]
                        else:
                            base = 232.0
                        image[py, px, c] = base * (0.35 + 0.6 * bright) + 60.0 * shine
                else:
                    for c in range(3):
                        tooth = 225.0 if c < 2 else 205.0
                        tongue = 165.0 if c == 0 else 75.0
                        image[py, px, c] = (tooth if kind == 3 else tongue) * (0.25 + 0.55 * bright)
