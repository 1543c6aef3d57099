"""An answer for people: labels, one plain line of how sure the model is, what was missing, and the reasoning.

How sure: the model's own probabilities of the categories of one wheel (`PLAIN_WHEEL`), averaged over its answers. They
say how sure the model is, not how often it is right.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mer_r1.emotions.wheels import Taxonomy
from mer_r1.evaluation.clips.ask import Answered
from mer_r1.evaluation.records import Record

PLAIN_WHEEL = "ekman"
"""The wheel that people know; of other tables the first one counts."""
SURE, FAIRLY_SURE = 0.75, 0.5
"""Lowest probabilities of the likeliest category for these words."""
UNKNOWN_MARK = "(?)"
_LEAST = 0.1  # a second category below this probability is not named


class Sure(NamedTuple):
    """The likeliest categories with their probabilities, in words for people."""

    sectors: tuple[tuple[str, float], ...]
    how: str
    agreement: str

    def __str__(self) -> str:
        """One plain line."""
        named = " or ".join(f"{sector} ({value:.2f})" for sector, value in self.sectors[:2])
        told = f"most likely {named}: {self.how}" if named else self.how
        return f"{told}; {self.agreement}" if self.agreement else told


def plain_wheel(taxonomy: Taxonomy) -> str:
    """Name of the wheel that is shown to people."""
    names = [wheel.name for wheel in taxonomy.wheels]
    return PLAIN_WHEEL if PLAIN_WHEEL in names else names[0]


def how_sure(records: Sequence[Record], taxonomy: Taxonomy) -> Sure:
    """How sure a model is of a clip, by its answers in one or two modes."""
    wheel = plain_wheel(taxonomy)
    told = [record.confidence[wheel] for record in records if record.confidence.get(wheel)]
    means = {name: sum(one[name] for one in told) / len(told) for name in (told[0] if told else ())}
    ranked = sorted(means.items(), key=lambda item: -item[1])
    sectors = tuple((name, value) for place, (name, value) in enumerate(ranked) if not place or value >= _LEAST)
    if not any(record.labels for record in records):
        how = "no emotion word in the answer"
    elif not sectors:
        how = "unknown (this model gives no probabilities)"
    else:
        best = sectors[0][1]
        how = "sure" if best >= SURE else "fairly sure" if best >= FAIRLY_SURE else "not sure"
    return Sure(sectors, how, _agreement([set(record.categories.get(wheel, ())) for record in records]))


def _agreement(found: Sequence[set[str]]) -> str:
    if len(found) != 2 or not all(found):
        return ""
    if found[0] == found[1]:
        return "slow and fast agree"
    return "slow and fast agree in part" if found[0] & found[1] else "slow and fast disagree"


def marked_labels(record: Record, taxonomy: Taxonomy) -> str:
    """The labels of an answer, those that no wheel knows marked."""
    marks = (label if taxonomy.knows(label) else f"{label} {UNKNOWN_MARK}" for label in record.labels)
    return ", ".join(marks) or "(none)"


def unknown_words(records: Sequence[Record], taxonomy: Taxonomy) -> list[str]:
    """Labels that no wheel knows, each once."""
    return list(dict.fromkeys(word for record in records for word in record.labels if not taxonomy.knows(word)))


def notes_of(answered: Answered) -> list[str]:
    """What was missing, cut or odd, each once."""
    return list(dict.fromkeys(note for record in answered.records for note in record.notes))


def lines_of(answered: Answered, taxonomy: Taxonomy, wheels: bool = False) -> Iterator[tuple[str, str | None]]:
    """The lines of an answer, each with its style.

    Args:
        answered: a clip and its records.
        taxonomy: wheels and words.
        wheels: whether to show the categories on every wheel too.
    """
    clip = answered.clip
    if answered.error is not None:
        yield f"{clip.id}: {answered.error.removeprefix(f'{clip.id}: ')}", "red"
        return
    yield clip.id, "bold"
    if clip.subtitle.strip():
        by = f"   ({answered.asked.words_by})" if answered.asked.words_by else ""
        yield f'  words        "{clip.subtitle.strip()}"{by}', None
    for record in answered.records:
        doubt = f"   ({record.doubt})" if record.doubt and not unknown_words([record], taxonomy) else ""
        doubt += "" if record.finish_reason == "stop" else "   (cut off: see --max-new-tokens)"
        yield f"  {record.mode:<12} {marked_labels(record, taxonomy)}{doubt}", None
    yield f"  how sure     {how_sure(answered.records, taxonomy)}", None
    if told := notes_of(answered):
        yield f"  note         {'; '.join(told)}", "yellow"
    if unknown := unknown_words(answered.records, taxonomy):
        yield f"  {UNKNOWN_MARK:<12} on no emotion wheel: {', '.join(unknown)}", "yellow"
    if wheels:
        yield from ((line, None) for record in answered.records for line in _wheels(record))
    for record in answered.records:
        if record.reasoning:
            yield f"  reasoning    {record.reasoning}", None


def _wheels(record: Record) -> Iterator[str]:
    for wheel, sectors in record.categories.items():
        values: Mapping[str, float] = record.confidence.get(wheel, {})
        top = sorted(values, key=lambda sector: -values[sector])[:3]
        shown = ", ".join(f"{sector} {values[sector]:.2f}" for sector in top)
        yield f"  {f'{record.mode} {wheel}':<14} {', '.join(sectors) or '-'}   (confidence: {shown or '-'})"
