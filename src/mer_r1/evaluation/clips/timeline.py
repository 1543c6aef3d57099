"""The timeline of a recording: which emotion when, as a table, CSV, JSON, subtitles with emotions, and a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mer_r1.data.jsonl import write_atomically
from mer_r1.data.subtitles import Cue, format_subtitles, moment
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError, printable
from mer_r1.evaluation.clips.ask import Answered
from mer_r1.evaluation.clips.tables import write_rows
from mer_r1.evaluation.clips.text import how_sure, notes_of, plain_wheel

PICTURES = (".png", ".svg", ".pdf")
ENDINGS = (".csv", ".json", ".srt", ".vtt", *PICTURES)
_HEIGHT, _ROW = 1.2, 0.42  # inches of a picture, and of each category in it


@dataclass(frozen=True)
class Entry:
    """One utterance.

    Attributes:
        start: seconds at which it begins.
        end: seconds at which it ends.
        emotion: likeliest category; "" if unknown.
        confidence: its probability; None if unknown.
        labels: emotion words of its answers, each once.
        words: what is said.
        notes: what was missing, cut or odd.
        error: why there is no answer; "" if there is one.
    """

    start: float
    end: float
    emotion: str
    confidence: float | None
    labels: list[str]
    words: str
    notes: list[str]
    error: str


def check_timeline(path: Path) -> None:
    """Refuse the name of a timeline whose kind is unknown, or cannot be drawn here, before a model is asked.

    Raises:
        UserError: an ending of no known kind, or a picture without matplotlib.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"--timeline {printable(path)}: expected a name that ends in {', '.join(ENDINGS)}")
    if path.suffix.lower() in PICTURES:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise UserError("a picture needs matplotlib: install mer-r1 with the extra speech") from None


def entry_of(answered: Answered, taxonomy: Taxonomy) -> Entry:
    """The entry of an utterance (a clip with a section)."""
    clip, sure = answered.clip, how_sure(answered.records, taxonomy)
    start, end = clip.section or (0.0, 0.0)
    best = sure.sectors[0] if sure.sectors else ("", None)
    labels = list(dict.fromkeys(label for record in answered.records for label in record.labels))
    if not best[0]:  # no probabilities: the category of the words
        wheel = plain_wheel(taxonomy)
        best = (next((s for record in answered.records for s in record.categories.get(wheel, ())), ""), None)
    value = None if best[1] is None else round(best[1], 4)
    notes, error = notes_of(answered), answered.error or ""
    return Entry(round(start, 3), round(end, 3), best[0], value, labels, clip.subtitle, notes, error)


def entry_line(entry: Entry) -> str:
    """An entry as one line for people."""
    value = "    " if entry.confidence is None else f"{entry.confidence:.2f}"
    said = entry.error or ", ".join(entry.labels) or "(none)"
    said += f'   "{entry.words}"' if entry.words else ""
    return f"{moment(entry.start)[:-2]} - {moment(entry.end)[:-2]}  {entry.emotion or '-':<12} {value}  {said}"


def write_timeline(path: Path, entries: Sequence[Entry], taxonomy: Taxonomy, title: str = "") -> None:
    """Write a timeline, in the kind that the name's ending says.

    Raises:
        UserError: see `check_timeline`.
    """
    check_timeline(path)
    ending = path.suffix.lower()
    rows = [asdict(entry) for entry in entries]
    if ending == ".json":
        write_atomically(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    elif ending == ".csv":
        write_rows(path, [row | {"labels": ", ".join(row["labels"])} for row in rows])
    elif ending in PICTURES:
        write_atomically(path, lambda file: _draw(file, ending, entries, taxonomy, title))
    else:
        write_atomically(path, format_subtitles([_cue(entry) for entry in entries], ending))


def _cue(entry: Entry) -> Cue:
    value = "" if entry.confidence is None else f" {entry.confidence:.2f}"
    said = f"[{', '.join(entry.labels) or 'no answer'}{value}]"
    return Cue(entry.start, entry.end, f"{said}\n{entry.words}" if entry.words else said)


def _draw(path: Path, ending: str, entries: Sequence[Entry], taxonomy: Taxonomy, title: str) -> None:
    """One row per category of the plain wheel; a bar is an utterance, the darker the surer."""
    from matplotlib.figure import Figure

    names = list(taxonomy.sectors(plain_wheel(taxonomy)))
    figure = Figure(figsize=(10, _HEIGHT + _ROW * len(names)), layout="constrained")
    axes = figure.subplots()
    for entry in entries:
        if entry.emotion in names:
            place, width = names.index(entry.emotion), max(entry.end - entry.start, 0.05)
            value = 0.5 if entry.confidence is None else entry.confidence
            axes.barh(place, width, left=entry.start, height=0.8, color=f"C{place}", alpha=0.25 + 0.75 * value)
        else:
            axes.axvspan(entry.start, entry.end, color="0.9", zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, max((entry.end for entry in entries), default=1.0))
    axes.set_xlabel("seconds (darker: surer; grey: no answer)")
    axes.set_title(title or "Emotions over time", parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, format=ending[1:], dpi=120)
