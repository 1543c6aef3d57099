"""Write a run folder as one HTML file that can be mailed, archived, and opened without a network.

`run.json` names the parts. Each is read on its own, and a missing or broken part becomes a sentence in its place: half
a run still has a readable page.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import write_atomically
from mer_r1.emotions.metrics import wheel_scores
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.intervals import DASH, Interval, number_text
from mer_r1.evaluation.records import SCORE_NAMES, Record
from mer_r1.evaluation.report import all_records, figures, showcase
from mer_r1.evaluation.report.run_folder import Stage, read_clips, read_part, read_run, read_stages, seed_of, wheels_of
from mer_r1.evaluation.summary import Difference, compare

REPORT_FILE = "report.html"
MOST_CONSTANT_WORDS = 3
CANDIDATES = 10
"""Clips near the mean of which the first with a film is the example."""


@dataclass(frozen=True)
class Compared:
    """A row of a table of paired differences."""

    name: str
    style: str
    difference: Difference


def write_report(run_dir: Path | str, out: Path | str | None = None) -> Path:
    """Write the page about a run.

    Args:
        run_dir: folder with `run.json` and what it names; every part may be missing.
        out: file to write; `report.html` in the run folder if None.

    Raises:
        UserError: `run_dir` is not a folder, or the page cannot be written.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: expected the folder of a run")
    page = Path(out) if out is not None else run_dir / REPORT_FILE
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, clock=clock)
    environment.globals.update(strip=figures.interval_bar, score_names=SCORE_NAMES)
    text = environment.get_template("report.html.j2").render(contents(run_dir))
    try:
        page.parent.stat()  # no folder is made for a name that is mistyped
        # A completion may hold half a surrogate pair, which UTF-8 cannot write.
        write_atomically(page, text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"{page}: cannot write the report: {error.strerror}") from error
    return page


def contents(run_dir: Path) -> dict[str, Any]:
    """All values of the template, read from a run folder."""
    run, problem = read_run(run_dir)
    taxonomy, wheels_problem = wheels_of(run)
    clips, clips_problem = read_clips(run_dir, run)
    stages = read_stages(run_dir, run, taxonomy, clips)
    judged = [stage for stage in stages if stage.summary]
    differences = stage_differences(judged, seed_of(run))
    senses, senses_problems = _senses(run_dir, run, judged, taxonomy, clips)
    results = [
        figures.Result(stage.title, mode, row["precision"], row["recall"])
        for stage in judged
        for mode, row in _modes(stage).items()
    ]
    return {
        "title": _title(run, run_dir),
        "problems": [line for line in (problem, wheels_problem) if line],
        "facts": [*_facts(run, judged), ("Wheels", taxonomy.title)],
        "stages": stages,
        "judged": judged,
        "f1_scale": _scale([row["f1"] for stage in judged for row in _modes(stage).values()]),
        "differences": differences,
        "difference_scale": _scale([row.difference["f1"] for row in differences], zero=True),
        "gain": _gain(differences, judged),
        "senses": senses,
        "senses_scale": _scale([row.difference["f1"] for row in senses], zero=True),
        "senses_problems": senses_problems,
        "picture": figures.precision_recall(results),
        "confidence": _confidence(judged),
        "cards": _cards(judged, clips, taxonomy),
        "clips_problem": clips_problem,
        "settings": list(_flat(run.get("settings"))),
        "versions": list(_flat(run.get("versions"))),
        **_explained(run, stages, clips, taxonomy),
    }


def _explained(
    run: Mapping[str, Any], stages: Sequence[Stage], clips: Mapping[str, Clip], taxonomy: Taxonomy
) -> dict[str, Any]:
    """What the numbers are about: an example, what F1 means, all records, the recipes."""
    judged = [stage for stage in stages if stage.summary]
    return {
        "judge": partial(showcase.judge, taxonomy=taxonomy),
        "example": _example(judged, clips, taxonomy),
        "constant": _constant(judged, taxonomy),
        "oracle": run["oracle"] if isinstance(run.get("oracle"), int | float) else None,
        "browser": all_records.browse([(stage.title, stage.records) for stage in judged], taxonomy),
        "recipes": [(stage.title, rows) for stage in stages if (rows := list(_flat(_given(stage.recipe))))],
    }


def _title(run: dict[str, Any], run_dir: Path) -> str:
    title = run.get("title")
    return title if isinstance(title, str) and title.strip() else run_dir.resolve().name


def stage_differences(stages: Sequence[Stage], seed: int = 0) -> list[Compared]:
    """Paired differences: each stage minus the one before in each mode, then slow minus fast at every stage."""
    rows = []
    for before, after in pairwise(stages):
        for mode in ThinkingMode:
            difference = compare(after.records, before.records, mode, seed=seed)
            if difference["n"]:
                rows.append(Compared(f"{after.title} {mode} − {before.title} {mode}", mode, difference))
    for stage in stages:
        for difference in stage.summary["differences"].values() if stage.summary else ():
            rows.append(Compared(f"{stage.title} slow − {stage.title} fast", "both", difference))
    return rows


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A number with a true minus sign; a dash for None, NaN and infinity."""
    return number_text(value, digits, signed).replace("-", "−")


def clock(seconds: float | None) -> str:
    """A duration for display.

    >>> clock(3725)
    '1 h 2 min'
    """
    if seconds is None or not math.isfinite(seconds):
        return DASH
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _senses(
    run_dir: Path, run: Mapping[str, Any], judged: Sequence[Stage], taxonomy: Taxonomy, clips: Mapping[str, Clip]
) -> tuple[list[Compared], list[str]]:
    """Cost of an exchanged channel: the last stage's scores minus those with the channel exchanged."""
    conditions = run.get("conditions")
    if not isinstance(conditions, dict) or not conditions:
        return [], ["No condition is named in run.json, so the use of the senses was not measured."]
    if not judged:
        return [], ["No stage has records to compare the exchanged clips with."]
    rows, problems = [], []
    for name, path in conditions.items():
        records, problem = read_part(run_dir, path, f"records of “{name}”", taxonomy, clips)
        compared = [(mode, compare(judged[-1].records, records, mode, seed=seed_of(run))) for mode in ThinkingMode]
        found = [Compared(name, mode, difference) for mode, difference in compared if difference["n"]]
        rows += found
        if problem or not found:
            problems.append(problem or f"“{name}” has no scored clip in common with {judged[-1].title}.")
    return rows, problems


def _modes(stage: Stage) -> Mapping[str, Any]:
    return stage.summary["modes"] if stage.summary else {}


def _scale(intervals: Iterable[Interval], zero: bool = False) -> tuple[float, float]:
    """Left and right end of a scale that holds all intervals (and 0), with a little room."""
    ends = [end for entry in intervals for end in (entry["mean"], entry["low"], entry["high"]) if end is not None]
    ends += [0.0] if zero else []
    if not ends:
        return 0.0, 1.0
    room = 0.04 * (max(ends) - min(ends)) or 0.02
    return min(ends) - room, max(ends) + room


def _gain(differences: Sequence[Compared], judged: Sequence[Stage]) -> Compared | None:
    """The headline: slow thinking at the last stage minus slow thinking at the one before."""
    if len(judged) < 2:
        return None
    wanted = f"{judged[-1].title} slow − {judged[-2].title} slow"
    return next((row for row in differences if row.name == wanted), None)


def _confidence(judged: Sequence[Stage]) -> list[tuple[str, str, Markup]]:
    panels = []
    meanings = {"correct": "named by the gold words; higher is better", "incorrect": "not named; lower is better"}
    for side, meaning in meanings.items():
        rows = [(s.title, {mode: row[f"confidence_{side}"] for mode, row in _modes(s).items()}) for s in judged]
        drawing = figures.dots(rows, f"Confidence in {side} categories")
        if drawing:
            panels.append((f"{side.capitalize()} categories", meaning, drawing))
    return panels


def _cards(
    judged: Sequence[Stage], clips: Mapping[str, Clip], taxonomy: Taxonomy
) -> list[tuple[str, list[showcase.Card]]]:
    if not judged:
        return []
    stages = [(stage.title, stage.records) for stage in judged]
    groups = zip(("Best", "Worst"), showcase.pick(judged[-1].records), strict=True)
    return [
        (name, [showcase.card(record, stages, clips.get(record.id), taxonomy) for record in records])
        for name, records in groups
        if records
    ]


def _example(
    judged: Sequence[Stage], clips: Mapping[str, Clip], taxonomy: Taxonomy
) -> tuple[showcase.Card, str | None, list[Record]] | None:
    """A typical clip, if possible with a film, its film, and its records at the last stage, fast before slow."""
    near = showcase.typical(judged[-1].records)[:CANDIDATES] if judged else []
    if not near:
        return None
    films = ((record, showcase.film(clips.get(record.id))) for record in near)
    record, film = next((pair for pair in films if pair[1]), (near[0], None))
    found = {other.mode: other for other in judged[-1].records if other.id == record.id and other.draw == 0}
    both = [found[mode] for mode in ("fast", "slow") if mode in found]
    card = showcase.card(record, [], clips.get(record.id), taxonomy)
    return card, film, both


def _constant(judged: Sequence[Stage], taxonomy: Taxonomy) -> tuple[str, float] | None:
    """The best constant answer to the last stage's clips: words are added as long as the mean F1 rises."""
    gold = {record.id: record.gold for record in judged[-1].records if record.scores and record.gold} if judged else {}
    # Words of equal sectors are equal answers.
    words = {tuple(taxonomy.sector(w, wheel.name) for wheel in taxonomy.wheels): w for ws in gold.values() for w in ws}
    answer: list[str] = []
    best = 0.0
    while True:
        tried = [(_mean_f1([*answer, word], gold.values(), taxonomy), word) for word in sorted(words.values())]
        f1, word = max(tried, default=(0.0, ""))
        if f1 <= best + 1e-9 or len(answer) == MOST_CONSTANT_WORDS:
            return (", ".join(answer), best) if answer else None
        best, answer = f1, [*answer, word]


def _mean_f1(answer: Sequence[str], gold: Iterable[Sequence[str]], taxonomy: Taxonomy) -> float:
    scores = [found.f1 for words in gold if (found := wheel_scores(words, answer, taxonomy)) is not None]
    return math.fsum(scores) / max(len(scores), 1)


def _given(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stage that are set to anything."""
    return {name: value for name, value in recipe.items() if value not in (None, False, "", [], {})}


def _facts(run: Mapping[str, Any], judged: Sequence[Stage]) -> list[tuple[str, str]]:
    facts = []
    if judged:
        facts.append(("Clips", str(len({record.id for record in judged[-1].records}))))
        facts.append(("Models", "; ".join(stage.summary["model"] for stage in judged if stage.summary)))
    if isinstance(run.get("manifest"), str):
        facts.append(("Manifest", run["manifest"]))
    seeds = sorted({record.seed for stage in judged for record in stage.records})
    if seeds:
        facts.append(("Seed", ", ".join(map(str, seeds[:5]))))
    seconds = run.get("seconds")
    if isinstance(seconds, dict):
        facts.append(("Time", clock(sum(value for value in seconds.values() if isinstance(value, int | float)))))
    commit = run.get("commit")
    if isinstance(commit, str):
        facts.append(("Commit", commit[:12]))
    return facts


def _flat(value: object, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, value if isinstance(value, str) else json.dumps(value, default=str)
