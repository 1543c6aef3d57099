"""The reports as tables for the terminal: percent with one decimal, as the leaderboard prints them."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mer_r1.benchmarks.mme_emotion.scores.audit import NAMES
from mer_r1.benchmarks.mme_emotion.tasks import TASKS
from mer_r1.evaluation.intervals import interval_text, number_text

if TYPE_CHECKING:
    from rich.table import Table

OVERALL = "overall"
_CHECKS = {
    "fewer_ratings": "fewer ratings than steps",
    "more_ratings": "more ratings than steps",
    "skipped_ratings": "ratings that the task's parser skips",
    "above_one": "ratings above 1",
    "failed_extractions": "failed extractions judged as answers",
    "repeated_ids": "items with a repeated id",
}


def official_table(report: Mapping[str, Any]) -> "Table":
    """The official numbers, one row per task (and mode), then the paired differences where slow and fast are there."""
    table = _table("Official scores (percent)", ("count", "Rec", "Rea", "CoT", "avg step"))
    for name, mode, entry in _rows(report):
        cells = [_percent(entry[key]) for key in NAMES]
        table.add_row(_named(name, mode), str(entry["count"]), *cells, f"{entry['avg_step']:.1f}")
    for title, difference in report.get("differences", {}).items():
        table.add_section()
        table.add_row(_named(title, ""), "pairs", "", "", "", "")
        for name, entry in {**difference["tasks"], OVERALL: difference["overall"]}.items():
            table.add_row(
                _named(name, ""),
                str(entry["n"]),
                *(interval_text(entry[key], 1, signed=True, scale=100, gap="\n") for key in NAMES),
            )
        table.caption = "differences: of the same clips, audited (lost items count as 0), with 95 %"
    return table


def audited_table(report: Mapping[str, Any]) -> "Table":
    """The audited numbers with their intervals, and their differences from the official ones."""
    title = "Audited scores: failed, unparsed and missing items count as 0 (percent)"
    table = _table(title, ("n", "lost", "Rec", "Rea", "CoT"))
    for name, mode, entry in _rows(report, "audited"):
        lost = f"{entry['n_failed']}+{entry['n_unparsed']}+{entry['n_missing']}"
        table.add_row(_named(name, mode), str(entry["n"]), lost, *(_change(entry[key]) for key in NAMES))
    table.caption = "lost: failed + unparsed + missing; after each score its change from the official one, and 95 %"
    return table


def category_tables(report: Mapping[str, Any]) -> Iterator["Table"]:
    """The scores by gold label, for tasks whose categories the benchmark reports."""
    for mode, entry in _modes(report).items():
        for name, task in entry["tasks"].items():
            if TASKS[name].has_categories:
                table = _table(f"{name} {mode}".strip(), ("count", "Rec", "Rea", "CoT", "avg step"))
                for label, row in task["categories"].items():
                    cells = [_percent(row[key]) for key in NAMES]
                    table.add_row(_named(label, ""), str(row["count"]), *cells, f"{row['avg_step']:.1f}")
                yield table


def agreement_table(agreement: Mapping[str, Any]) -> "Table":
    """Agreement of judgements of the same items, and the scores of each run."""
    table = _table("Agreement of judgements", ("n", "same Rec", "kappa", "same steps", "Rec", "Rea", "CoT"))
    for name, pair in agreement["pairs"].items():
        shares = [pair["same_recognition"], pair["kappa"], pair["same_step_ratings"]]
        cells = [number_text(value) for value in shares]
        table.add_row(_named(name, ""), str(pair["n"]), *cells, "", "", "")
    table.add_section()
    for name, run in agreement["runs"].items():
        cells = [_percent(run[key]) for key in NAMES]
        table.add_row(_named(name, ""), str(run["count"]), "", "", "", *cells)
    return table


def label_table(report: Mapping[str, Mapping[str, Any]]) -> "Table":
    """Label-match recognition (no judge) of each mode."""
    table = _table(
        "Recognition by label match, no judge: not the benchmark's score (percent)",
        ("n", "not understood", "recognition", "any word hits"),
    )
    for mode, entry in report.items():
        for name, row in {**entry["tasks"], OVERALL: entry["overall"]}.items():
            cells = [interval_text(row[key], 1, scale=100) for key in ("recognition", "any_hit")]
            table.add_row(_named(name, mode), str(row["n"]), str(row["n_unread"]), *cells)
    return table


def notes(report: Mapping[str, Any]) -> list[str]:
    """Notes on the official numbers, one line each."""
    lines = []
    for mode, entry in _modes(report).items():
        checks = entry["audited"]["overall"]["checks"]
        missing = [name for name in TASKS if name not in entry["tasks"]]
        before = f"{mode}: " if "modes" in report else ""
        if len({name.rpartition(" #")[0] for name in entry.get("agreement", {}).get("runs", ())}) > 1:
            lines.append(f"{before}scored as {entry['judge']} judged; see --judge for the others")
        if missing:
            lines.append(f"{before}overall is over {len(entry['tasks'])} of 8 tasks; missing: {', '.join(missing)}")
        for kind, meaning in _CHECKS.items():
            found = checks[kind]
            if found["n"]:
                shown = ", ".join(found["ids"]) + (", ..." if found["n"] > len(found["ids"]) else "")
                lines.append(f"{before}{found['n']} {meaning} ({shown})")
        if not entry["audited"]["missing_known"]:
            lines.append(f"{before}missing items are unknown: give the manifest with --manifest")
    return lines


def _modes(report: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = report.get("modes", {"": report})
    return found


def _rows(report: Mapping[str, Any], part: str | None = None) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    modes = {mode: entry[part] if part else entry for mode, entry in _modes(report).items()}
    for name in (*TASKS, OVERALL):
        for mode, entry in modes.items():
            row = entry["overall"] if name == OVERALL else entry["tasks"].get(name)
            if row is not None:
                yield name, mode, row


def _table(title: str, heads: tuple[str, ...]) -> "Table":
    from rich.table import Table

    table = Table("", title=title)
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _named(name: str, mode: str) -> Any:
    from rich.text import Text

    return Text(f"{name} {mode}".strip())  # names may look like markup


def _change(figure: Mapping[str, Any]) -> str:
    """The audited score, its change from the official one, and its interval on a line of its own."""
    score, change = _percent(figure["audited"]), number_text(figure["change"], 1, signed=True, scale=100)
    span = "" if figure["low"] is None else f"\n[{_percent(figure['low'])}, {_percent(figure['high'])}]"
    return f"{score} {change}{span}"


def _percent(value: float | None) -> str:
    return number_text(value, 1, scale=100)
