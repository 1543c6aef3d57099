"""SVG elements of the page's charts: axes, markers, round tick numbers.

The page draws its own SVG, although the study's figures use matplotlib: it must be one file without scripts, and its
charts take colours and fonts from the style sheet, so one drawing follows light and dark mode, which an image or an SVG
of matplotlib cannot. Reports also work in the base install, without matplotlib.

Slow thinking is always a filled circle, fast thinking a diamond, so that colour is never the only difference. Text and
attribute values are escaped here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]
MARKER_RADIUS = 5.5


@dataclass(frozen=True)
class Frame:
    """A rectangle of the drawing (pixels) and the data range it shows."""

    left: float
    top: float
    width: float
    height: float
    x: Point
    y: Point

    def at(self, x: float, y: float) -> Point:
        """Pixel position of a data point."""
        across, up = ((v - lo) / (hi - lo) for v, (lo, hi) in ((x, self.x), (y, self.y)))
        return self.left + across * self.width, self.top + (1 - up) * self.height


def marker(x: float, y: float, style: str) -> Markup:
    """The marker of a mode: a circle for slow, a diamond for fast, a square for a comparison of both."""
    r = MARKER_RADIUS
    if style == "slow":
        return tag("circle", cx=x, cy=y, r=r, cls="marker slow")
    if style == "fast":
        d = r + 1
        return tag("path", d=f"M{x:.1f} {y - d:.1f}l{d} {d}l-{d} {d}l-{d} -{d}z", cls="marker fast")
    return tag("rect", x=x - r + 1, y=y - r + 1, width=2 * r - 2, height=2 * r - 2, cls=f"marker {style}")


def svg(width: float, height: float, parts: Sequence[Markup], spoken: str, style: str) -> Markup:
    """A drawing of `width` by `height` pixels; `spoken` describes it to screen readers, which skip it if empty."""
    said = {"role": "img", "aria_label": spoken} if spoken else {"aria_hidden": "true"}
    box = f"0 0 {width:g} {height:g}"
    return tag("svg", Markup("").join(parts), viewBox=box, width=width, height=height, cls=style, **said)


def tag(name: str, content: str = "", **attributes: object) -> Markup:
    """An element; `cls` is class, underscores become hyphens, values and plain text are escaped."""
    written = []
    for key, value in attributes.items():
        text = f"{value:.1f}" if isinstance(value, float) else str(value)
        written.append(Markup('{}="{}"').format("class" if key == "cls" else key.replace("_", "-"), text))
    return Markup("<{0} {1}>{2}</{0}>").format(Markup(name), Markup(" ").join(written), escape(content))


def path(points: Sequence[Point], style: str) -> Markup:
    """A line through pixel positions."""
    return tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), cls=style)


def axes(frame: Frame, x_name: str, y_name: str, x_count: int = 6, y_count: int = 6) -> Markup:
    """Grid, ticks and names of a frame; about so many ticks on each axis; 0 leaves the y axis without."""
    bottom, right = frame.top + frame.height, frame.left + frame.width
    parts = []
    for tick in ticks(*frame.y, y_count) if y_count else []:
        y = frame.at(frame.x[0], tick)[1]
        parts.append(path([(frame.left, y), (right, y)], "grid"))
        parts.append(tag("text", short(tick), x=frame.left - 7, y=y + 4, text_anchor="end", cls="tick"))
    for tick in ticks(*frame.x, x_count):
        x = frame.at(tick, frame.y[0])[0]
        parts.append(path([(x, bottom), (x, bottom + 4)], "axis"))
        parts.append(tag("text", short(tick), x=x, y=bottom + 17, text_anchor="middle", cls="tick"))
    parts.append(path([(frame.left, bottom), (right, bottom)], "axis"))
    parts.append(tag("text", x_name, x=right, y=bottom + 33, text_anchor="end", cls="name"))
    if y_name:
        parts.append(tag("text", y_name, x=0, y=frame.top - 12, cls="name"))
    return Markup("").join(parts)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers in [low, high]."""
    if low > high:
        low, high = high, low
    if high - low < 1e-300:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda step: abs(math.log(step / raw)))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A tick's number in few characters.

    >>> short(0.00015), short(-0.25), short(25_000)
    ('1.5e-4', '-0.25', '25k')
    """
    size = abs(value)
    if 10_000 <= size < 1_000_000:
        return f"{value / 1000:g}k"
    if 0 < size < 0.001 or size >= 1_000_000:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    return f"{value:.4g}"


def cut(text: str, length: int) -> str:
    """A text of at most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"
