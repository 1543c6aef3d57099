"""All records on the page, as a list that filters itself: by stage, mode, right or wrong, and gold word.

The page has no script. Each record carries classes, and for each choice of a filter there is a rule in the style sheet
that hides the records without its class (`:has` and `:checked`). Names of stages and words never enter the style sheet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mer_r1.emotions.wheels import Taxonomy
from mer_r1.evaluation.records import Record
from mer_r1.evaluation.report.showcase import Chip, judge

MOST_CHARACTERS = 1_500_000
"""Of all texts in the list; further clips are left out, so that the page stays small enough to be mailed."""
REASONING_CHARACTERS = 500
RIGHT = (("right", "F1 is 1"), ("partly", "F1 between 0 and 1"), ("wrong", "F1 is 0"), ("unscored", "not scored"))
"""Class of a record by its F1, and how the filter names it."""
_OVERHEAD = 260  # characters of markup per record


@dataclass(frozen=True)
class Row:
    """One record in the list; `classes` are those that the filters look for."""

    clip: str
    stage: str
    mode: str
    classes: str
    chips: list[Chip]
    gold: list[str]
    f1: float | None
    reasoning: str
    error: str | None


@dataclass(frozen=True)
class Filter:
    """One choice: its name, and (class, what the reader sees) of each of its values."""

    name: str
    title: str
    values: list[tuple[str, str]]


@dataclass(frozen=True)
class Browser:
    """The list with its filters, and how many of the clips it shows."""

    rows: list[Row]
    filters: list[Filter]
    shown: int
    clips: int


def browse(stages: Sequence[tuple[str, Sequence[Record]]], taxonomy: Taxonomy) -> Browser:
    """The first draw of every clip, mode and stage, clip by clip.

    Args:
        stages: (title, records) of each stage.
        taxonomy: wheels that judge the words.
    """
    by_clip: dict[str, list[tuple[int, Record]]] = {}
    for number, (_, records) in enumerate(stages):
        for record in records:
            if record.draw == 0:
                by_clip.setdefault(record.id, []).append((number, record))
    words = sorted({word for found in by_clip.values() for _, record in found for word in record.gold or ()})
    word_class = {word: f"w{number}" for number, word in enumerate(words)}
    rows: list[Row] = []
    shown = size = 0
    for clip in sorted(by_clip):
        found = [_row(stages[number][0], number, record, word_class, taxonomy) for number, record in by_clip[clip]]
        size += sum(map(_size, found))
        if size > MOST_CHARACTERS:
            break
        rows += found
        shown += 1
    filters = [
        Filter("stage", "Stage", [(f"s{number}", title) for number, (title, _) in enumerate(stages)]),
        Filter("mode", "Mode", [("slow", "slow"), ("fast", "fast")]),
        Filter("right", "Right or wrong", list(RIGHT)),
        Filter("word", "Gold word", [(name, word) for word, name in word_class.items()]),
    ]
    return Browser(rows, filters, shown, len(by_clip))


def _row(stage: str, number: int, record: Record, word_class: dict[str, str], taxonomy: Taxonomy) -> Row:
    f1, gold = record.scores["f1"] if record.scores else None, record.gold or []
    right = "unscored" if f1 is None else "right" if f1 == 1 else "wrong" if f1 == 0 else "partly"
    classes = [f"s{number}", record.mode, right, *(word_class[word] for word in dict.fromkeys(gold))]
    said = record.reasoning
    said = said if len(said) <= REASONING_CHARACTERS else f"{said[:REASONING_CHARACTERS]} …"
    chips = judge(record.labels, gold, taxonomy)
    return Row(record.id, stage, record.mode, " ".join(classes), chips, gold, f1, said, record.error)


def _size(row: Row) -> int:
    words = sum(len(chip.word) + 20 for chip in row.chips) + sum(map(len, row.gold))
    return _OVERHEAD + len(row.clip) + len(row.classes) + len(row.reasoning) + words + len(row.error or "")
