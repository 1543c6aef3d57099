"""The report as LaTeX, Markdown or CSV tables: sets in the published order, published rows above ours.

Numbers are percent with two decimals, as the benchmark prints them; a cell without a number is a dash (empty in CSV).
Published figures are data (`published.json`, each block with its source).
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import groupby
from os.path import commonpath
from typing import Any, Literal

from mer_r1.benchmarks.mer_unibench.report import SLOW_MINUS_FAST, figure
from mer_r1.benchmarks.mer_unibench.sets import NINE, OVMERD, SETS
from mer_r1.evaluation.intervals import number_text

Form = Literal["latex", "markdown", "csv"]
MEAN = "mean"
OVMERD_COLUMNS = {
    "case1": "M1",
    "case2": "M2",
    **{f"case3_wheel{wheel}_level{level}": f"W{wheel}L{level}" for wheel in range(1, 6) for level in (1, 2)},
    "m_avg": "M-avg",
}
"""Entries of `metrics.openset_report` -> columns of the OV-MER paper, in its order."""
_LATEX = str.maketrans({sign: f"\\{sign}" for sign in "&%$#_{}"} | {"\\": r"\textbackslash{}", "−": "$-$"})
_HEADS = ("model", "mod.")


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        modalities: inputs of the model, some of A, V, T.
        values: column -> percent.
        bounds: column -> the ends of its 95 % interval, percent.
        signed: whether the values are differences.
    """

    model: str
    modalities: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    signed: bool = False

    def cell(self, column: str) -> str:
        """The value of a column as text, "" where there is none."""
        value = self.values.get(column)
        return "" if value is None else _percent(value, self.signed)

    def span(self, column: str) -> str:
        """The interval of a column as text, "" where there is none."""
        ends = self.bounds.get(column)
        return "" if ends is None else "[" + ", ".join(_percent(end, self.signed) for end in ends) + "]"


@dataclass(frozen=True)
class ScoreTable:
    """A table: column -> its head, blocks of rows with a rule between them, and notes below."""

    columns: Mapping[str, str]
    blocks: Sequence[Sequence[Row]]
    notes: Sequence[str] = ()


def score_tables(report: Mapping[str, Any], name: str = "", published: bool = False) -> list[ScoreTable]:
    """The tables of a report: the nine sets with their mean, and OV-MERD by metric, each if it was scored.

    Args:
        report: result of `report.score_benchmark`.
        name: the model's name, before each row's mode.
        published: whether the published rows come first.
    """
    tables = []
    if any(key in NINE for key in report["sets"]):
        columns = {key: SETS[key].title for key in NINE} | {MEAN: "Mean"}
        blocks, notes = _published("mer_unibench", "mer_unibench_means") if published else ([], [])
        tables.append(ScoreTable(columns, [*blocks, *_own_blocks(report, name)], [*notes, source_text(report)]))
    rows = list(_ovmerd_rows(report, name))
    if rows:
        blocks, notes = _published("ovmerd") if published else ([], [])
        tables.append(ScoreTable(OVMERD_COLUMNS, [*blocks, rows], [*notes, source_text(report)]))
    return tables


def source_text(report: Mapping[str, Any]) -> str:
    """What a report is of: model, manifests, numbers of clips and sets, wheels."""
    weights = f" ({report['weights']})" if report.get("weights") else ""
    clips = sum(entry["n_gold"] for entry in report["sets"].values())
    manifests = [entry["manifest"] for entry in report["sets"].values()]
    try:
        where = commonpath(manifests) or "."
    except ValueError:  # absolute paths and relative ones
        where = ", ".join(manifests)
    model = f"scores of {report.get('model') or 'predictions'}{weights}"
    return f"{model} on {where}: {clips} clips of {len(manifests)} test sets; wheels: {report['tables']}"


def render(table: ScoreTable, form: Form) -> str:
    """The table as text; notes are comments in LaTeX, lines below in Markdown, and left out of CSV."""
    return {"latex": _latex, "markdown": _markdown, "csv": _csv}[form](table)


def _published(*keys: str) -> tuple[list[list[Row]], list[str]]:
    """Blocks of published rows, one per choice of modalities, and their sources."""
    text = resources.files("mer_r1.benchmarks.mer_unibench").joinpath("published.json").read_text(encoding="utf-8")
    data = json.loads(text)
    blocks, notes = [], []
    for key in keys:
        rows = [Row(entry["model"], entry.get("modalities", ""), entry["scores"]) for entry in data[key]["rows"]]
        blocks += [list(group) for _, group in groupby(rows, key=lambda row: row.modalities)]
        notes.append(f"published rows: {data[key]['source']}")
    return blocks, notes


def _own_blocks(report: Mapping[str, Any], name: str) -> Iterator[list[Row]]:
    """The official rows, the audited rows, and the difference."""
    modes = [mode for mode in report["mean"] if mode != SLOW_MINUS_FAST]
    for kind in ("official", "audited"):
        block = [_own_row(report, mode, kind, name) for mode in modes if kind in report["mean"][mode]]
        if kind == "audited" and SLOW_MINUS_FAST in report["mean"]:
            block.append(_own_row(report, SLOW_MINUS_FAST, kind, name))
        if block:
            yield block


def _own_row(report: Mapping[str, Any], mode: str, kind: str, name: str) -> Row:
    figures = {key: figure(report["sets"][key], mode, kind) for key in NINE if key in report["sets"]}
    figures[MEAN] = report["mean"][mode][kind]
    known = {key: entry for key, entry in figures.items() if entry and _is_number(entry.get("mean"))}
    return Row(
        " ".join(filter(None, (name, mode.replace(" - ", " − "), f"({kind})"))),
        values={key: 100 * entry["mean"] for key, entry in known.items()},
        bounds={
            key: (100 * entry["low"], 100 * entry["high"])
            for key, entry in known.items()
            if entry.get("low") is not None
        },
        signed=mode == SLOW_MINUS_FAST,
    )


def _ovmerd_rows(report: Mapping[str, Any], name: str) -> Iterator[Row]:
    modes = report["sets"].get(OVMERD.name, {}).get("modes", {})
    for mode, parts in modes.items():
        metrics = parts.get("official", {}).get("report", {})
        values = {key: 100 * metrics[key]["fscore"] for key in OVMERD_COLUMNS if key in metrics}
        if values:
            title = " ".join(filter(None, (name, mode, "(official)")))
            yield Row(title, values={key: value for key, value in values.items() if _is_number(value)})


def _is_number(value: float | None) -> bool:
    return value is not None and value == value


def _percent(value: float, signed: bool) -> str:
    return number_text(value, 2, signed).replace("-", "−")


def _markdown(table: ScoreTable) -> str:
    heads = [*_HEADS, *table.columns.values()]
    lines = [_piped(heads), "|---|---|" + "---:|" * len(table.columns)]
    for row in (row for block in table.blocks for row in block):
        cells = [" ".join(filter(None, (row.cell(column), row.span(column)))) or "–" for column in table.columns]
        lines.append(_piped([row.model, ",".join(row.modalities), *cells]))
    notes = [f"{note[0].upper()}{note[1:]}." for note in table.notes]
    return "\n".join([*lines, "", *notes] if notes else lines) + "\n"


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _latex(table: ScoreTable) -> str:
    heads = [*_HEADS, *table.columns.values()]
    lines = [f"% {note}" for note in table.notes]
    lines += [r"\begin{tabular}{ll" + "r" * len(table.columns) + "}", r"\toprule"]
    lines.append(" & ".join(head.translate(_LATEX) for head in heads) + r" \\")
    for block in table.blocks:
        lines.append(r"\midrule")
        for row in block:
            cells = [row.model.translate(_LATEX), ",".join(row.modalities)]
            cells += [_latex_cell(row, column) for column in table.columns]
            lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_cell(row: Row, column: str) -> str:
    value, span = row.cell(column), row.span(column)
    if not value:
        return "--"
    return (value + (rf" {{\scriptsize {span}}}" if span else "")).translate({ord("−"): "$-$"})


def _csv(table: ScoreTable) -> str:
    """Plain numbers; the ends of intervals are rows of their own."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*_HEADS, *table.columns.values()])
    for row in (row for block in table.blocks for row in block):
        writer.writerow([row.model, row.modalities, *(_plain(row.values.get(column)) for column in table.columns)])
        for place, end in enumerate(("low", "high") if row.bounds else ()):
            ends = [row.bounds[column][place] if column in row.bounds else None for column in table.columns]
            writer.writerow([f"{row.model} {end}", row.modalities, *map(_plain, ends)])
    return stream.getvalue()


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
