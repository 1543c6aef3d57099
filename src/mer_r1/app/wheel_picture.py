"""An emotion wheel as a picture: what a slow and a fast answer name, and how likely the model finds every sector.

The outer ring is slow thinking, the inner one fast thinking. A ring's colour is as strong as the sector is likely at
the words of that answer; a sector that the answer names has a contour and a dot, so that colour is not the only sign.
Colours come from the page's style sheet, as in the run report.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.evaluation.records import Record
from mer_r1.evaluation.report.svg import Point, svg, tag

WIDTH, HEIGHT = 390.0, 310.0
CENTRE = (WIDTH / 2, HEIGHT / 2)
RINGS = {ThinkingMode.SLOW: (76.0, 104.0), ThinkingMode.FAST: (44.0, 72.0)}
"""Mode -> inner and outer radius of its ring."""
GOLD_RADIUS, NAME_RADIUS = 109.0, 122.0
FAINTEST, UNKNOWN = 0.05, 0.55
"""Opacity of a sector without probability, and of a named one of a model that gives no probabilities."""
LINE_CHARACTERS = 11


def wheel_picture(
    wheel: str, sectors: Sequence[str], records: Mapping[str, Record], gold: Iterable[str] = ()
) -> Markup:
    """Draw a wheel.

    Args:
        wheel: its name, as the records know it.
        sectors: its sectors, in order.
        records: mode -> record.
        gold: sectors of the gold words, marked by an arc outside the rings.
    """
    gold, parts, step = set(gold), [], 2 * math.pi / len(sectors)
    named = {mode: set(records[mode].categories.get(wheel, ())) if mode in records else set() for mode in RINGS}
    for index, sector in enumerate(sectors):
        start, end = index * step, (index + 1) * step
        for mode, radii in RINGS.items():
            chosen = sector in named[mode]
            strength = _strength(records.get(mode), wheel, sector, chosen)
            style = f"sector {mode} named" if chosen else f"sector {mode}"
            parts.append(tag("path", d=_ring_piece(radii, start, end), fill_opacity=strength, cls=style))
            if chosen:
                x, y = _at(sum(radii) / 2, (start + end) / 2)
                parts.append(tag("circle", cx=x, cy=y, r=4.0, cls="here"))
        if sector in gold:
            edge = (GOLD_RADIUS, GOLD_RADIUS + 4)
            parts.append(tag("path", d=_ring_piece(edge, start + 0.03, end - 0.03), cls="goldarc"))
        strong = any(sector in sets for sets in named.values())
        parts.append(_name(sector, (start + end) / 2, strong))
    said = [
        f"{mode} names {', '.join(sorted(found)) or 'no sector'}" for mode, found in named.items() if mode in records
    ]
    said += [f"gold {', '.join(sorted(gold))}"] if gold else []
    return svg(WIDTH, HEIGHT, parts, f"Wheel {wheel}: {'; '.join(said)}", "wheel")


def _strength(record: Record | None, wheel: str, sector: str, chosen: bool) -> float:
    likely = record.confidence.get(wheel, {}).get(sector) if record else None
    if likely is None:
        return UNKNOWN if chosen else FAINTEST
    return FAINTEST + (1 - FAINTEST) * min(max(likely, 0.0), 1.0)


def _at(radius: float, angle: float) -> Point:
    """Pixel at a radius and an angle, clockwise from the top."""
    return CENTRE[0] + radius * math.sin(angle), CENTRE[1] - radius * math.cos(angle)


def _ring_piece(radii: tuple[float, float], start: float, end: float) -> str:
    inner, outer = radii
    corners = [_at(outer, start), _at(outer, end), _at(inner, end), _at(inner, start)]
    (a, b, c, d), wide = (f"{x:.1f} {y:.1f}" for x, y in corners), int(end - start > math.pi)
    return f"M{a}A{outer} {outer} 0 {wide} 1 {b}L{c}A{inner} {inner} 0 {wide} 0 {d}z"


def _name(sector: str, angle: float, strong: bool) -> Markup:
    """The sector's name beside the rings, in two lines if it is long."""
    x, y = _at(NAME_RADIUS, angle)
    side = math.sin(angle)
    anchor = "middle" if abs(side) < 0.3 else "start" if side > 0 else "end"
    lines = re.findall(r"\S+?-|\S+", sector) if len(sector) > LINE_CHARACTERS else [sector]
    up = math.cos(angle)
    y += 4 - 7 * (len(lines) - 1) - (9 * len(lines) - 6) * up * (abs(up) > 0.8)
    spans = [tag("tspan", line, x=x, dy=14 * (number > 0)) for number, line in enumerate(lines)]
    return tag("text", Markup("").join(spans), x=x, y=y, text_anchor=anchor, cls="name strong" if strong else "name")
