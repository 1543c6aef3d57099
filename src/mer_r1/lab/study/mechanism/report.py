"""Runs the mechanism's study and writes its JSON, tables and picture."""

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mer_r1.data.claim import check_claim
from mer_r1.data.jsonl import read_object, write_atomically
from mer_r1.errors import UserError
from mer_r1.evaluation.records import commit
from mer_r1.lab.study.mechanism.formulas import FORMULAS, SHARED, SHARES
from mer_r1.lab.study.mechanism.policy import make_clips
from mer_r1.lab.study.mechanism.train import Setup, cold_start, evaluate, reinforce, slow_f1
from mer_r1.lab.study.results.intervals import Estimate, estimate
from mer_r1.lab.study.results.tables import shown, table

SIGHTS = (0.0, 0.3, 1.0)
"""How much of the clip the slow answer sees past its reasoning."""
NAME = "mechanism"
COLD = "cold"
REFERENCE = "ad"
_BLOCK = re.compile(r"(<!-- mechanism:(differences|early|details) -->\n).*?(<!-- end -->)", re.DOTALL)


def run_study(setup: Setup, out: Path, command: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Train and evaluate every formula at every sight; finished ones in `out` are kept.

    Returns:
        The study's JSON, also in `out/mechanism.json`: settings, and for each sight and formula the mean scores and
        the slow F1 of each seed.

    Raises:
        UserError: if `out` holds a study of another size.
    """
    path = out / f"{NAME}.json"
    data: dict[str, Any] = (
        read_object(path) if path.exists() else {"setup": asdict(setup), "seconds": 0.0, "results": {}}
    )
    check_claim(path, data["setup"], asdict(setup), "choose another folder with --out")
    data |= {"command": command, "commit": commit(), "torch": torch.__version__}
    for sight in SIGHTS:
        found = data["results"].setdefault(str(sight), {})
        left = [name for name in (COLD, *FORMULAS) if name not in found]
        started = time.process_time()
        start = cold_start(setup, sight) if left else {}
        test = make_clips(setup.seeds, setup.test_clips, torch.Generator().manual_seed(99))
        for name in left:
            early, last = (start, start) if name == COLD else reinforce(FORMULAS[name], start, setup, sight)
            early_f1 = slow_f1(early, test, setup, sight)
            found[name] = {**evaluate(last, test, setup, sight), "early_f1": early_f1}
            now = time.process_time()
            data["seconds"], started = round(data["seconds"] + now - started, 1), now
            write_atomically(path, json.dumps(data) + "\n")
            say(f"sight {sight:g}, {_title(name)}: F1 {found[name]['slow']['f1']:.3f}")
    return data


def _title(name: str) -> str:
    return FORMULAS[name].title if name in FORMULAS else "cold start"


def difference(data: Mapping[str, Any], name: str, sight: float, when: str = "f1") -> Estimate:
    """Slow F1 of a formula minus that of AD, paired by seed, with its 95 % t interval; or "early_f1"."""
    found = data["results"][str(sight)]
    return estimate([a - b for a, b in zip(found[name][when], found[REFERENCE][when], strict=True)])


def difference_rows(data: Mapping[str, Any], when: str = "f1") -> tuple[list[str], list[list[str]]]:
    """Head and rows of slow F1 minus AD per formula and sight; intervals without 0 are bold."""
    rows = []
    for name in (name for name in FORMULAS if name != REFERENCE):
        cells = []
        for sight in SIGHTS:
            number = difference(data, name, sight, when)
            text = shown(number, 4, signed=True)
            decided = number["low"] is not None and number["high"] is not None and number["low"] * number["high"] > 0
            cells.append(f"**{text}**" if decided else text)
        rows.append([_title(name), *cells])
    head = "slow F1 minus AD" if when == "f1" else "the same after a third of the steps"
    return [head, *(f"sight {sight:g}" for sight in SIGHTS)], rows


def detail_rows(data: Mapping[str, Any], sight: float) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a sight's scores, with the share of F1's variance that the reasoning explains."""
    head = [f"sight {sight:g}", "slow R / P / F1", "fast R / P / F1", "words slow / fast", "explained by reasoning"]
    rows = []
    for name in (COLD, *FORMULAS):
        found = data["results"][str(sight)][name]
        modes = [found["slow"], found["fast"]]
        scores = [" / ".join(f"{mode[key]:.3f}" for key in ("recall", "precision", "f1")) for mode in modes]
        words = " / ".join(f"{mode['words']:.2f}" for mode in modes)
        rows.append([_title(name), *scores, words, f"{found['explained']:.3f}"])
    return head, rows


def blocks(data: Mapping[str, Any]) -> dict[str, str]:
    """The generated parts of a page, in Markdown: the differences with their provenance, and the details."""
    setup = data["setup"]
    size = f"{setup['seeds']} paired seeds, {setup['steps']} RL steps, {setup['draws']} draws on {setup['test_clips']}"
    size += f" test clips per seed; 95 % t intervals; {data['seconds'] / 60:.0f} CPU minutes"
    note = f"{size}; commit {str(data['commit'])[:10]}, torch {data['torch']}. Command: `{data['command']}`"
    details = [table(*detail_rows(data, sight)) for sight in SIGHTS]
    differences, early = (table(*difference_rows(data, when)) for when in ("f1", "early_f1"))
    return {"differences": f"{differences}\n\n{note}", "early": early, "details": "\n\n".join(details)}


def terminal_table(data: Mapping[str, Any]) -> Table:
    """The differences for the console, mean and half of the interval; intervals without 0 are bold."""
    head, rows = difference_rows(data)
    found = Table(*head, box=SIMPLE_HEAD)
    for title, *cells in rows:
        texts = [Text(title)]
        for cell in cells:
            mean, _, high = (float(part) for part in re.findall(r"[+-][.\d]+", cell))
            texts.append(Text(f"{mean:+.4f}±{high - mean:.4f}", "bold" if cell.startswith("**") else ""))
        found.add_row(*texts)
    return found


def fill_page(text: str, data: Mapping[str, Any]) -> str:
    """Put the tables between the markers `<!-- mechanism:differences -->` and `<!-- end -->` of a page."""
    made = blocks(data)
    return _BLOCK.sub(lambda match: f"{match[1]}{made[match[2]]}\n{match[3]}", text)


def write_report(data: Mapping[str, Any], out: Path) -> Path:
    """Write the tables and the picture; returns the path of the tables."""
    draw(data, out / f"{NAME}.png")
    draw(data, out / f"{NAME}_early.png", "early_f1")
    page, made = out / f"{NAME}.md", blocks(data)
    pictures = [f"![{name}]({name}.png)" for name in (NAME, f"{NAME}_early")]
    parts = [pictures[0], made["differences"], pictures[1], made["early"], made["details"]]
    write_atomically(page, "\n\n".join(["# The mechanism", *parts]) + "\n")
    return page


def publish(out: Path, docs: Path) -> list[Path]:
    """Copy JSON and picture to `docs/study/mechanism/` and fill the page `docs/mechanism.md`.

    Raises:
        UserError: if `docs` has no such page.
    """
    page, folder = docs / f"{NAME}.md", docs / "study" / NAME
    if not page.is_file():
        raise UserError(f"{page}: no such page; --docs takes the folder of the documentation")
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{NAME}{end}" for end in (".json", ".png", "_early.png")]
    copied = [Path(shutil.copyfile(out / name, folder / name)) for name in names]
    page.write_text(fill_page(page.read_text(encoding="utf-8"), read_object(copied[0])), encoding="utf-8")
    return [*copied, page]


STYLES = (("#0072b2", "o", "-"), ("#d55e00", "s", "--"), ("#000000", "D", ":"))
"""Colour (Okabe and Ito), marker and line: told apart without colour too."""
LIMITS = (-0.035, 0.025)
"""Range of the pictures; what lies outside is in the table."""


def draw(data: Mapping[str, Any], path: Path, when: str = "f1") -> None:
    """Draw slow F1 minus AD over sight, one panel per formulation, with the noise control in grey behind it."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    *panels, last = figure.subplots(2, 5, sharex=True, sharey=True).flat
    for panel, (name, formula) in zip(panels, SHARED.items(), strict=False):  # noise, the last, has no panel
        for share, style in zip(SHARES, STYLES, strict=False):
            noise = [number["mean"] for number in _numbers(data, f"noise-{share}", when)]
            panel.plot(SIGHTS, noise, style[2], color="#999999", linewidth=1, label=f"noise control, {share:.0%}")
            _curve(panel, _numbers(data, f"{name}-{share}", when), style, f"{share:.0%} of the variance")
        panel.set_title(formula.title, fontsize=10)
        means = [number["mean"] or 0.0 for share in SHARES for number in _numbers(data, f"{name}-{share}", when)]
        if min(means) < LIMITS[0]:
            panel.text(0.5, 0.9, "lower values: see the table", transform=panel.transAxes, ha="center", fontsize=7)
    for name, style in zip(("f1", "rd", "landed"), STYLES, strict=True):
        _curve(last, _numbers(data, name, when), style, _title(name))
    last.set(ylim=LIMITS)
    last.legend(frameon=False, fontsize=7)
    for panel in (*panels, last):
        panel.axhline(0, color="#333333", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xticks(SIGHTS, [f"{sight:g}" for sight in SIGHTS])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.supxlabel("sight: how much of the clip the answer sees past its reasoning", fontsize=10)
    times = "" if when == "f1" else " after a third of the steps"
    figure.supylabel(f"slow F1 minus AD{times}, 95 % interval", fontsize=10)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _numbers(data: Mapping[str, Any], name: str, when: str) -> list[Estimate]:
    return [difference(data, name, sight, when) for sight in SIGHTS]


def _curve(panel: Any, numbers: Sequence[Estimate], style: tuple[str, str, str], label: str) -> None:
    mean, low, high = ([float(number[end] or 0.0) for number in numbers] for end in ("mean", "low", "high"))
    bars = [[m - x for m, x in zip(mean, low, strict=True)], [x - m for m, x in zip(mean, high, strict=True)]]
    look = dict(zip(("color", "marker", "linestyle"), style, strict=True))
    panel.errorbar(SIGHTS, mean, yerr=bars, label=label, markersize=4, capsize=2, linewidth=1.4, **look)
