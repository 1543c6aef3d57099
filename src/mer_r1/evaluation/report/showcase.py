"""The clips on the page: where slow thinking was most and least right, with everything needed to judge for oneself.

The choice is not hand-picked: the highest and the lowest F1 of slow thinking at the last stage, equal ones in the
order of their ids.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mer_r1.data.clip import Clip
from mer_r1.data.media.container import MediaLimits
from mer_r1.data.media.encode import data_url, jpeg, wav
from mer_r1.data.media.read import Media, read_media
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.records import Record

FRAMES = 4
JPEG_QUALITY = 82
_LIMITS = MediaLimits(max_frames=FRAMES, max_side=224, max_seconds=15.0)


@dataclass(frozen=True)
class Chip:
    """An answered word and how the gold words' categories judge it: "hit", "part", "miss" or "unknown"."""

    word: str
    verdict: str
    said: str


@dataclass(frozen=True)
class Answer:
    """What was answered in one mode."""

    mode: str
    chips: list[Chip]
    scores: Mapping[str, float] | None
    error: str | None


@dataclass(frozen=True)
class Card:
    """One clip on the page; what is not there is None or empty, and `notes` say why.

    Attributes:
        id: The clip.
        f1: Of slow thinking at the last stage.
        subtitle: What is said.
        description: What a generated scene was meant to show.
        gold: Annotated words.
        answers: (stage title, answers) of every stage that has any, slow before fast.
        reasoning: Of slow thinking at the last stage.
        completion: The same, raw.
        frames: (data URI, seconds) of up to `FRAMES` pictures.
        sound: Data URI of the sound.
        notes: What is missing or was left out.
    """

    id: str
    f1: float
    subtitle: str
    description: str
    gold: list[str]
    answers: list[tuple[str, list[Answer]]]
    reasoning: str
    completion: str
    frames: list[tuple[str, float]]
    sound: str | None
    notes: list[str]


def pick(records: Iterable[Record], count: int = 4) -> tuple[list[Record], list[Record]]:
    """The best and the worst slow records, up to `count` each; no clip is in both."""
    scored = [(r.scores["f1"], r) for r in records if r.mode == ThinkingMode.SLOW and r.scores and r.error is None]
    best_first = [record for _, record in sorted(scored, key=lambda pair: (-pair[0], pair[1].id))]
    best = best_first[: min(count, math.ceil(len(best_first) / 2))]
    worst_first = [record for _, record in sorted(scored, key=lambda pair: (pair[0], pair[1].id))]
    chosen = {record.id for record in best}
    return best, [record for record in worst_first if record.id not in chosen][:count]


def card(record: Record, stages: Sequence[tuple[str, Sequence[Record]]], clip: Clip | None, taxonomy: Taxonomy) -> Card:
    """Everything the page shows of one clip.

    Args:
        record: Slow thinking at the last stage.
        stages: (title, records) of every stage.
        clip: Row of the manifest; None if there is none.
        taxonomy: Judges the words one by one.
    """
    answers = []
    for title, records in stages:
        found = sorted((other for other in records if other.id == record.id), key=lambda r: r.mode, reverse=True)
        said = [Answer(r.mode, judge(r.labels, record.gold or [], taxonomy), r.scores, r.error) for r in found]
        answers += [(title, said)] if said else []
    notes = [] if clip else ["The clip is not in the manifest: no picture, sound or subtitle."]
    media = Media()
    try:
        media = read_media(clip.video, clip.audio, _LIMITS) if clip else media
        notes += media.notes
    except UserError as error:
        notes.append(f"No picture or sound: {_without_folder(str(error), clip)}")
    description: Any = (clip.meta if clip else {}).get("description")
    return Card(
        id=record.id,
        f1=(record.scores or {"f1": math.nan})["f1"],
        subtitle=clip.subtitle if clip else "",
        description=description if isinstance(description, str) else "",
        gold=record.gold or [],
        answers=answers,
        reasoning=record.reasoning,
        completion=record.completion,
        frames=_pictures(media),
        sound=data_url("audio/wav", wav(media.waveform, media.sampling_rate)) if media.waveform is not None else None,
        notes=notes,
    )


def judge(labels: Iterable[str], gold: Sequence[str], taxonomy: Taxonomy) -> list[Chip]:
    """Each answered word against the gold words, by the wheels that can place both the word and any gold word."""
    golds = {wheel.name: taxonomy.categories(gold, wheel) for wheel in taxonomy.wheels}
    chips = []
    for word in labels:
        sectors = {name: taxonomy.sector(word, name) for name, categories in golds.items() if categories}
        placed = {name: sector for name, sector in sectors.items() if sector is not None}
        right = sum(sector in golds[name] for name, sector in placed.items())
        if not placed:
            chips.append(Chip(word, "unknown", "no wheel can judge this word"))
            continue
        verdict = "hit" if right == len(placed) else "part" if right else "miss"
        chips.append(Chip(word, verdict, f"right on {right} of {len(placed)} wheels"))
    return chips


def _without_folder(text: str, clip: Clip | None) -> str:
    """A message that names a clip's files without the folder they happen to lie in: the page may be passed on."""
    for path in (clip.video, clip.audio) if clip else ():
        text = text.replace(str(path), path.name) if path else text
    return text


def _pictures(media: Media) -> list[tuple[str, float]]:
    if media.frames is None or media.frame_seconds is None:
        return []
    urls = (data_url("image/jpeg", jpeg(frame.transpose(1, 2, 0), JPEG_QUALITY)) for frame in media.frames)
    return [(url, float(moment)) for url, moment in zip(urls, media.frame_seconds, strict=True)]
