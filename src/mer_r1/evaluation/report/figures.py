"""Charts of results, as SVG text inside the page.

The charts carry no colours or fonts, only class names: the page's style sheet decides, so one chart serves light and
dark mode. Lines of slow thinking are solid and those of fast thinking dashed, so that they differ in more than colour.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from mer_r1.evaluation.intervals import Interval
from mer_r1.evaluation.report.svg import MARKER_RADIUS, Frame, Point, axes, cut, marker, path, svg, tag


@dataclass(frozen=True)
class Result:
    """Precision and recall of one mode at one stage, each a mean in [0, 1] with its interval."""

    stage: str
    mode: str
    precision: Interval
    recall: Interval


def precision_recall(results: Sequence[Result]) -> Markup:
    """Precision over recall with curves of equal F1, 95 % bars, and arrows from each stage to the next in each mode.

    The curves are those of the F1 of mean precision and mean recall. It differs a little from the mean F1 of the
    tables, which is taken clip by clip.
    """
    known = [result for result in results if result.precision["mean"] is not None and result.recall["mean"] is not None]
    if not known:
        return Markup("")
    width, height = 640.0, 520.0
    low_x, high_x = _span([_bounds(result.recall) for result in known])
    low_y, high_y = _span([_bounds(result.precision) for result in known])
    frame = Frame(58, 30, width - 84, height - 86, (low_x, high_x), (low_y, high_y))
    tracks, arrows = _tracks(frame, known)
    parts = [axes(frame, "Recall", "Precision"), *_iso_f1(frame), *tracks, *_point_labels(frame, known, arrows)]
    text = "; ".join(
        f"{r.stage} {r.mode}: precision {r.precision['mean']:.3f}, recall {r.recall['mean']:.3f}" for r in known
    )
    return svg(width, height, parts, f"Precision over recall. {text}", "chart")


def _tracks(frame: Frame, known: Sequence[Result]) -> tuple[list[Markup], list[tuple[Point, Point]]]:
    """Arrows, bars and markers of every mode, stage by stage; and where the arrows run."""
    parts: list[Markup] = []
    arrows: list[tuple[Point, Point]] = []
    for mode in dict.fromkeys(result.mode for result in known):
        track = [result for result in known if result.mode == mode]
        spots = [_spot(frame, result) for result in track]
        steps = list(pairwise(spots))
        parts += [_arrow(start, end, mode) for start, end in steps]
        parts += [_cross(frame, result) for result in track]
        parts += [marker(*spot, mode) for spot in spots]
        arrows += steps
    return parts, arrows


def lines(series: Mapping[str, Sequence[Point]], title: str, styles: Mapping[str, str]) -> Markup:
    """One small learning-curve panel: faint raw values and their running mean over about a sixth of the points.

    `series` maps a name to (step, value) points; values that are not finite are left out. `styles` maps it to the class
    of its line.
    """
    finite = {name: sorted(point for point in points if math.isfinite(point[1])) for name, points in series.items()}
    cleaned = {name: points for name, points in finite.items() if points}
    if not cleaned:
        return Markup("")
    frame = _panel_frame([point for points in cleaned.values() for point in points])
    parts = [axes(frame, "", "", x_count=4, y_count=3)]
    ends = []
    for name, points in cleaned.items():
        raw = [value for _, value in points]
        smooth = raw if _is_steady(raw) else running_mean(raw, max(1, len(points) // 12))
        parts.append(path([frame.at(*point) for point in points], f"raw {styles[name]}"))
        spots = [frame.at(step, value) for (step, _), value in zip(points, smooth, strict=True)]
        parts.append(path(spots, f"line {styles[name]}"))
        if len(points) == 1:
            parts.append(tag("circle", cx=spots[0][0], cy=spots[0][1], r=3, cls=f"spot {styles[name]}"))
        ends.append(f"{name} from {smooth[0]:.3g} to {smooth[-1]:.3g}")
    return svg(320, 148, parts, f"{title}: {'; '.join(ends)}", "chart")


def _panel_frame(points: Sequence[Point]) -> Frame:
    """The frame of a learning-curve panel that holds all (step, value) points, with a little room."""
    steps, values = zip(*points, strict=True)
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.06 * abs(high) or 0.5
    x_range = (min(steps), max(steps)) if max(steps) > min(steps) else (min(steps) - 1, max(steps) + 1)
    return Frame(46, 8, 262, 116, x_range, (low - pad, high + pad))


def dots(rows: Sequence[tuple[str, Mapping[str, Interval]]], title: str) -> Markup:
    """Rows of means with 95 % bars, one marker per mode, on an axis that starts at 0 (probabilities)."""
    every = [_bounds(entry) for _, modes in rows for entry in modes.values() if entry["mean"] is not None]
    if not every:
        return Markup("")
    high = 1.04 * max(high for _, high in every) or 1.0
    frame = Frame(124, 6, 264, 46.0 * len(rows), (0, high), (len(rows), 0))
    parts = [axes(frame, "probability", "", x_count=4, y_count=0)]
    spoken = []
    for index, (stage, modes) in enumerate(rows):
        parts.append(tag("text", cut(stage, 17), x=0, y=frame.at(0, index + 0.5)[1] + 4, cls="rowname"))
        for place, (mode, entry) in enumerate(modes.items()):
            if entry["mean"] is None:
                continue
            y = index + 0.5 + (place - (len(modes) - 1) / 2) * 0.36
            low_edge, high_edge = (frame.at(edge, y) for edge in _bounds(entry))
            parts.append(path([low_edge, high_edge], f"bar {mode}"))
            parts.append(marker(*frame.at(entry["mean"], y), mode))
            spoken.append(f"{stage} {mode} {entry['mean']:.3f}")
    return svg(400, frame.height + 50, parts, f"{title}: {'; '.join(spoken)}", "chart")


def interval_bar(interval: Interval, low: float, high: float, style: str, zero: bool = False) -> Markup:
    """A mean with its interval as a strip for a table cell; `zero` draws the line of no difference.

    Nothing is drawn without a mean. `low` and `high` are the ends of the scale that the table's rows share.
    """
    if interval["mean"] is None:
        return Markup("")
    frame = Frame(6, 2, 148, 16, (low, high if high > low else low + 1), (0, 1))
    parts = [path([frame.at(low, 0.5), frame.at(high, 0.5)], "track")]
    if zero:
        parts.append(path([frame.at(0, -0.1), frame.at(0, 1.1)], "zero"))
    ends = _bounds(interval)
    parts += [
        path([frame.at(end, 0.5) for end in ends], f"bar {style}"),
        marker(*frame.at(interval["mean"], 0.5), style),
    ]
    return svg(160, 20, parts, "", "strip")


def running_mean(values: Sequence[float], half: int) -> list[float]:
    """Mean over a window of up to `half` values on each side; at the ends the window is cut off.

    >>> running_mean([0.0, 3.0, 6.0, 0.0], 1)
    [1.5, 3.0, 3.0, 3.0]
    """
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return list(((sums[last] - sums[first]) / (last - first)).tolist())


def _is_steady(values: Sequence[float]) -> bool:
    """Whether values move nearly straight from one level to another, as a learning rate does: nothing to smooth."""
    way = sum(abs(later - earlier) for earlier, later in pairwise(values))
    return way <= 1.2 * (max(values) - min(values))


def _iso_f1(frame: Frame) -> list[Markup]:
    """Curves precision = F·recall / (2·recall - F), one per 0.05 of F1, labelled where they leave the frame."""
    parts = []
    for step in range(1, 20):
        f1 = step / 20
        first = max(frame.x[0], f1 / 2 + 1e-3)  # below a recall of F1 / 2 no precision is high enough
        if first >= frame.x[1]:
            continue
        recalls = np.linspace(first, frame.x[1], 160)
        precisions = f1 * recalls / (2 * recalls - f1)
        inside = (precisions >= frame.y[0]) & (precisions <= frame.y[1])
        if inside.sum() < 8:
            continue
        points = [frame.at(float(r), float(p)) for r, p in zip(recalls[inside], precisions[inside], strict=True)]
        parts.append(path(points, "iso"))
        x, y = points[-1]
        parts.append(tag("text", f"F1 {f1:.2f}", x=x - 4, y=y - 6, text_anchor="end", cls="isoname"))
    return parts


def _spot(frame: Frame, result: Result) -> Point:
    recall, precision = result.recall["mean"], result.precision["mean"]
    return frame.at(recall or 0.0, precision or 0.0)


def _cross(frame: Frame, result: Result) -> Markup:
    x, y = result.recall["mean"] or 0.0, result.precision["mean"] or 0.0
    across = [frame.at(edge, y) for edge in _bounds(result.recall)]
    upright = [frame.at(x, edge) for edge in _bounds(result.precision)]
    return path(across, f"bar {result.mode}") + path(upright, f"bar {result.mode}")


def _arrow(start: Point, end: Point, mode: str) -> Markup:
    """A line between two markers, which it does not touch, with an open head; nothing where they overlap."""
    length = math.dist(start, end)
    gap = MARKER_RADIUS + 4
    if length < 2 * gap + 6:
        return Markup("")
    ux, uy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    tip = (end[0] - gap * ux, end[1] - gap * uy)
    sides = [(tip[0] - 8 * ux + s * 4.5 * uy, tip[1] - 8 * uy - s * 4.5 * ux) for s in (1, -1)]
    body = path([(start[0] + gap * ux, start[1] + gap * uy), tip], f"arrow {mode}")
    return body + path([sides[0], tip, sides[1]], f"head {mode}")


def _point_labels(frame: Frame, results: Sequence[Result], arrows: Sequence[tuple[Point, Point]]) -> list[Markup]:
    """Stage names beside their points: on the side that is farthest from other points, labels and arrows."""
    spots = [_spot(frame, result) for result in results]
    taken = [
        (a + (b - a) * part, c + (d - c) * part) for (a, c), (b, d) in arrows for part in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    parts = []
    for result, (x, y) in zip(results, spots, strict=True):
        text = cut(f"{result.stage} {result.mode}", 26)
        half = 3.4 * len(text)
        centres = [(x + dx * (half + 12), y + dy) for dy in (-12, 20) for dx in (1, -1)]
        inside = [c for c in centres if frame.left < c[0] - half and c[0] + half < frame.left + frame.width] or centres
        others = [*taken, *(spot for spot in spots if spot != (x, y))]
        best = max(inside, key=lambda centre: min((_apart(centre, other) for other in others), default=0.0))
        taken.append(best)
        parts.append(tag("text", text, x=best[0], y=best[1], text_anchor="middle", cls=f"pointname {result.mode}"))
    return parts


def _apart(one: Point, other: Point) -> float:
    """Distance in which a label's width counts less than its height: beyond 120 pixels nothing is in the way."""
    return min(120.0, math.hypot((one[0] - other[0]) / 3, one[1] - other[1]))


def _bounds(interval: Interval) -> Point:
    mean = interval["mean"] or 0.0
    low, high = interval["low"], interval["high"]
    return (mean if low is None else low), (mean if high is None else high)


def _span(bounds: Sequence[Point], least: float = 0.24) -> Point:
    """A range within [0, 1] around all bounds, at least `least` wide."""
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    width = max(least, 1.3 * (high - low))
    start = min(max(0.0, (low + high - width) / 2), max(0.0, 1 - width))
    return start, min(1.0, start + width)
