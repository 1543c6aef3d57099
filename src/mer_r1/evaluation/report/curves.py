"""Learning curves from training logs: related values share a panel, and no logged value is lost.

A log is JSON lines as TRL writes them: a step and any number of named values. `PANELS` groups the names. A value
without a group gets a panel of its own, further down the page.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mer_r1.data.jsonl import object_of, read_lines
from mer_r1.errors import UserError
from mer_r1.evaluation.report.figures import lines
from mer_r1.evaluation.report.svg import Point

MAX_OTHER_PANELS = 36
# Title, what it means, and the log keys in it; the pattern's group, where there is one, names the line.
PANELS: tuple[tuple[str, str, str], ...] = (
    ("Reward", "all objectives together", r"reward"),
    ("Objectives", "mean reward of each", r"rewards/(\w+?)(?:_reward)?/mean"),
    ("Confidence, correct", "in categories of the gold words", r"(?:confidence|calibration)/(slow|fast)_correct"),
    ("Confidence, incorrect", "in all other categories", r"(?:confidence|calibration)/(slow|fast)_incorrect"),
    ("Calibration terms", "recall side (correct), precision side (incorrect)", r"calibration/delta_(\w+)"),
    ("Spread in a group", "standard deviation by objective", r"(?:spread|advantages)/(\w+?)(?:_std|_spread)?"),
    ("Groups without signal", "all rewards of a group equal, share", r"groups_without_signal"),
    ("Completion length", "tokens", r"completions/mean_length"),
    ("Loss", "minimised objective", r"(?:(eval)_)?loss"),
    ("Token accuracy", "share of tokens predicted right", r"(?:(eval)_)?mean_token_accuracy"),
    ("Entropy", "of the next token, in nats", r"entropy"),
    ("KL", "to the reference policy", r"kl"),
    ("Clipped", "share of tokens with a clipped ratio", r"clip_ratio/(?:low_mean|high_mean|region_mean)"),
    ("Time", "seconds per step", r"(?:seconds|time)/(\w+)"),
    ("Gradient norm", "before clipping", r"grad_norm"),
    ("Learning rate", "of the optimiser", r"learning_rate"),
)
_LINE_NAMES = {
    "clip_ratio/low_mean": "low",
    "clip_ratio/high_mean": "high",
    "clip_ratio/region_mean": "both",
    "loss": "train",
    "mean_token_accuracy": "train",
}
_NOT_CURVES = re.compile(
    r"step|epoch|num_tokens|total_flos|train_.*|eval_(?:runtime|.*_per_second)|num_input_tokens_seen"
)


@dataclass(frozen=True)
class Panel:
    """One drawing with what belongs to it.

    Attributes:
        title: what the panel shows.
        meaning: a phrase that explains the title; "" if none is needed.
        drawing: the SVG.
        legend: (name, style class) of each line; empty for a single line.
    """

    title: str
    meaning: str
    drawing: Markup
    legend: tuple[tuple[str, str], ...]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Log lines with a step; a half-written last line is dropped, as a killed run leaves one.

    Raises:
        UserError: the file cannot be read, another line is not a JSON object, or no line has a step.
    """
    rows = [row for row in read_lines(path, object_of) if _is_number(row.get("step"))]
    if not rows:
        raise UserError(f"{path}: no line has a step, expected JSON lines with a step and named values")
    return rows


def panels(rows: Sequence[dict[str, Any]]) -> tuple[list[Panel], list[Panel]]:
    """The panels of a log, whose lines have a "step" each: the known groups, and all other logged values.

    Returns:
        Main panels in the order of `PANELS`, then the others in alphabetical order, at most `MAX_OTHER_PANELS`.
    """
    series: dict[str, list[Point]] = {}
    for row in rows:
        for key, value in row.items():
            if not _NOT_CURVES.fullmatch(key) and _is_number(value):
                series.setdefault(key, []).append((float(row["step"]), float(value)))
    main = []
    for title, meaning, pattern in PANELS:
        claimed = {key: found for key in series if (found := re.fullmatch(pattern, key))}
        named = {
            next(filter(None, found.groups()), _LINE_NAMES.get(key, key)): series.pop(key)
            for key, found in claimed.items()
        }
        if named:
            main.append(_panel(title, meaning, named))
    rest = sorted(series)[:MAX_OTHER_PANELS]
    return main, [_panel(key, "", {key: series[key]}) for key in rest]


def _panel(title: str, meaning: str, named: dict[str, list[Point]]) -> Panel:
    # Slow and fast keep their colours everywhere, other lines take neutral ones in turn.
    others = [name for name in named if name not in ("slow", "fast")]
    styles = {name: name if name not in others else f"other{others.index(name) % 5}" for name in named}
    legend = tuple(styles.items()) if len(named) > 1 else ()
    return Panel(title, meaning, lines(named, title, styles), legend)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # no NaN, no infinity
