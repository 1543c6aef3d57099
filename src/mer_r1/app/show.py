"""Answers as HTML, all of it escaped: fast and slow side by side, then every wheel with the effect of the reasoning."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mer_r1.app.ask import Answers
from mer_r1.app.wheel_picture import wheel_picture
from mer_r1.emotions.two_answers import ONCE, read_completion
from mer_r1.emotions.wheels import EmotionWheel, Taxonomy
from mer_r1.evaluation.clips.text import plain_wheel
from mer_r1.evaluation.clips.timeline import Entry
from mer_r1.evaluation.intervals import number_text

FOLDER = Path(__file__).parent
LEAST = 0.01
"""Probability from which a sector has a row of its own."""


def timeline_html(entries: Sequence[Entry], taxonomy: Taxonomy, note: str = "") -> str:
    """A recording's utterances as a table; `note` says whose words they are."""
    wheel = plain_wheel(taxonomy).capitalize()
    return _render("timeline.html.j2", entries=entries, when=_when, wheel=wheel, note=note)


def answers_html(answers: Answers, taxonomy: Taxonomy, gold: Sequence[str] = ()) -> str:
    """Both answers as far as they are known, what the model was not given, and the gold labels once all is there."""
    records = answers.records

    def read(mode: str) -> Any:
        form = records[mode].form if mode in records else ONCE
        return records[mode] if mode in records else read_completion(answers.texts.get(mode, ""), mode, form)

    notes = dict.fromkeys(note for record in records.values() for note in record.notes)
    shown = gold if answers.finished and not answers.problem else ()
    return _render("answers.html.j2", answers=answers, read=read, knows=taxonomy.knows, notes=list(notes), gold=shown)


def wheels_html(answers: Answers, taxonomy: Taxonomy, gold: Sequence[str] = ()) -> str:
    """The wheels with the sectors of both answers, and what the reasoning changes; "" without an answer."""
    records = {mode: record for mode, record in answers.records.items() if record.error is None}
    if not records:
        return ""
    wheels = []
    for wheel in taxonomy.wheels:
        sectors = taxonomy.sectors(wheel)
        picture = wheel_picture(wheel.name, sectors, records, taxonomy.categories(gold, wheel))
        rows = _rows(wheel, sectors, answers)
        name = "EARL" if wheel.name == "earl" else wheel.name.capitalize()
        wheels.append({"name": name, "picture": picture, "rows": rows, "rest": len(sectors) - len(rows)})
    measured = any(record.confidence for record in records.values())
    effect = bool(answers.effect)
    return _render("wheels.html.j2", wheels=wheels, gold=list(gold), measured=measured, effect=effect)


def _when(entry: Entry) -> str:
    return "–".join(f"{int(moment) // 60}:{int(moment) % 60:02d}" for moment in (entry.start, entry.end))


def _rows(wheel: EmotionWheel, sectors: Sequence[str], answers: Answers) -> list[dict[str, Any]]:
    """The sectors with a probability worth a line, or in the answer; none if nothing was compared."""
    if not answers.effect:
        return []
    named = answers.records["slow"].categories.get(wheel.name, [])
    rows = []
    for sector in sectors:
        reasoned, bare = answers.effect[wheel.name][sector]
        if max(reasoned, bare) >= LEAST or sector in named:
            change = number_text(round(reasoned - bare, 2) + 0.0, 2, True).replace("-", "−")
            row = {"sector": sector, "with": reasoned, "without": bare, "change": change, "named": sector in named}
            rows.append(row)
    return rows


@lru_cache
def _environment() -> Environment:
    loader = FileSystemLoader(FOLDER)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)
