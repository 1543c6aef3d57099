"""Figures of the studies (matplotlib, PNG), one per study, from the same JSON as the tables."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mer_r1.lab.study.results.claims import by_seed, estimate_at
from mer_r1.lab.study.results.intervals import Estimate, estimate
from mer_r1.lab.study.runs.variants import STUDIES, runs_with, titles_of

COLOURS = {"slow": "#1b6ca8", "fast": "#d1721c", "auto": "#2d8a4e", "oracle": "#777777"}
DPI = 110


def draw(data: Mapping[str, Any], path: Path) -> None:
    """Draw the figure of a study (result of `collect.collect`) to a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    DRAWERS.get(STUDIES[data["study"]].shows, _rows)(axes, data)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})  # the same numbers give the same bytes
    pyplot.close(figure)


def _bar(number: Estimate) -> list[list[float]]:
    mean = number["mean"] or 0.0
    low, high = number["low"], number["high"]
    return [[mean - (mean if low is None else low)], [(mean if high is None else high) - mean]]


def _rows(axes: Any, data: Mapping[str, Any]) -> None:
    """F1 of each variant, slow and fast: mean and 95 % interval over seeds, one dot per seed."""
    titles = titles_of(data)
    for place, variant in enumerate(titles):
        for shift, mode in ((-0.14, "slow"), (0.14, "fast")):
            values = [value for value in by_seed(data["numbers"], (variant, "sampled", mode, "f1")).values() if value]
            number = estimate(values)
            if number["mean"] is None:
                continue
            axes.plot(values, [place + shift] * len(values), ".", color=COLOURS[mode], alpha=0.3)
            label = mode if place == 0 else None
            axes.errorbar(
                number["mean"], place + shift, xerr=_bar(number), fmt="o", color=COLOURS[mode], capsize=3, label=label
            )
    axes.set(yticks=range(len(titles)), yticklabels=list(titles.values()), xlabel=f"F1 ({data['split']} scenes)")
    axes.invert_yaxis()
    axes.legend(frameon=False)


def _weights(axes: Any, data: Mapping[str, Any]) -> None:
    """Effective weights of recall and precision during training: measured, and predicted (dotted) for RD."""
    for variant, title, runs in runs_with("theory", data):
        steps = min((run["step"] for run in runs), key=len)
        (line,) = axes.plot(steps, _means(runs, "measured_recall", len(steps)), "-", label=f"{title}: recall")
        precision = _means(runs, "measured_precision", len(steps))
        axes.plot(steps, precision, "--", color=line.get_color(), label=f"{title}: precision")
        if variant == "rd":
            for objective, label in (("recall", "+ RD: predicted"), ("precision", None)):
                axes.plot(steps, _means(runs, f"predicted_{objective}", len(steps)), ":", color="black", label=label)
    axes.axhline(1.0, color="#bbbbbb", linewidth=0.8)
    axes.set(xlabel="step", ylabel="effective weight")
    axes.legend(frameon=False, fontsize=8, ncols=2)


def _means(runs: Sequence[Mapping[str, Any]], key: str, length: int) -> list[float | None]:
    return [estimate([run[key][place] for run in runs])["mean"] for place in range(length)]


def _tokens(axes: Any, data: Mapping[str, Any]) -> None:
    """F1 over generated tokens: the curve over all thresholds, with fast, slow, auto and the oracle marked."""
    marks = {"fast": "v", "slow": "^", "auto": "o", "oracle": "*"}
    for index, (variant, title, runs) in enumerate(runs_with("auto", data)):
        colour = f"C{index}"
        length = min(len(run["curve"]) for run in runs)
        mean = [[estimate([run["curve"][p][axis] for run in runs])["mean"] for axis in (1, 2)] for p in range(length)]
        axes.plot([x for x, _ in mean], [y for _, y in mean], color=colour, alpha=0.5, label=title)
        for how, mark in marks.items():
            tokens, f1 = (estimate_at(data, variant, "auto", how, key) for key in ("tokens", "f1"))
            label = how if index == 0 else None
            axes.plot(tokens["mean"], f1["mean"], mark, color=colour, markersize=8, label=label)
    axes.set(xlabel="generated tokens per clip", ylabel="F1 (test scenes)")
    axes.legend(frameon=False, fontsize=8, ncols=2)


DRAWERS: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {"theory": _weights, "auto": _tokens}
"""`Study.shows` -> the figure; scores (`_rows`) otherwise."""
