"""Clips on the page: a typical one, the best and the worst of slow thinking, with all that is needed to judge them.

The choice is not hand-picked: the typical clip is the one whose F1 of slow thinking at the last stage is nearest to the
mean, the others have the highest and the lowest; ties by id.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mer_r1.data.clip import Clip
from mer_r1.data.media.container import DECODING_ERRORS, MediaLimits, open_container
from mer_r1.data.media.encode import JPEG_TYPE, MP4_TYPE, WAV_TYPE, data_url, jpeg, mp4, wav
from mer_r1.data.media.read import Media, read_media
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.records import Record

FRAMES = 4
JPEG_QUALITY = 82
_LIMITS = MediaLimits(max_frames=FRAMES, max_side=224, max_seconds=15.0)
_FILM = MediaLimits(max_frames=90, fps=8.0, max_side=320, max_seconds=15.0)
_FILM_BYTES = 600_000
"""Largest file that is embedded as it is."""


@dataclass(frozen=True)
class Chip:
    """An answered word and its verdict by the gold words' categories: "hit", "part", "miss" or "unknown"."""

    word: str
    verdict: str
    said: str


@dataclass(frozen=True)
class Answer:
    """An answer in one mode."""

    mode: str
    chips: list[Chip]
    scores: Mapping[str, float] | None
    error: str | None


@dataclass(frozen=True)
class Card:
    """One clip on the page; missing parts are None or empty, and `notes` say why.

    Attributes:
        id: the clip.
        f1: F1 of slow thinking at the last stage.
        subtitle: what is said in the clip.
        description: intended content of a generated scene.
        gold: annotated words.
        answers: (stage title, answers) of every stage that has any, slow before fast.
        reasoning: reasoning of slow thinking at the last stage.
        completion: its raw completion.
        frames: (data URI, seconds) of up to `FRAMES` frames.
        sound: data URI of the audio.
        notes: missing or omitted parts, of what the model was given and of what the page shows.
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
    best = sorted(scored, key=lambda pair: (-pair[0], pair[1].id))[: min(count, math.ceil(len(scored) / 2))]
    chosen = {record.id for _, record in best}
    worst_first = sorted(scored, key=lambda pair: (pair[0], pair[1].id))
    return [record for _, record in best], [record for _, record in worst_first if record.id not in chosen][:count]


def typical(records: Iterable[Record]) -> list[Record]:
    """The scored slow records, those whose F1 is nearest to the mean first."""
    scored = [(r.scores["f1"], r) for r in records if r.mode == ThinkingMode.SLOW and r.scores and r.error is None]
    mean = math.fsum(f1 for f1, _ in scored) / max(len(scored), 1)
    return [record for _, record in sorted(scored, key=lambda pair: (abs(pair[0] - mean), pair[1].id))]


def film(clip: Clip | None) -> str | None:
    """A clip's video as a data URL that browsers play: the file itself if it is small and H.264, else without sound."""
    if clip is None or clip.video is None:
        return None
    try:
        if clip.audio is None and clip.video.stat().st_size <= _FILM_BYTES:
            with open_container(clip.video, _FILM.max_pixels) as file:
                tracks = [(track.type, track.codec_context and track.codec_context.name) for track in file.streams]
                if "mp4" in file.format.name and {*tracks} <= {("video", "h264"), ("audio", "aac")}:
                    return data_url(MP4_TYPE, clip.video.read_bytes())
        media = read_media(clip.video, None, _FILM)
        return None if media.frames is None else data_url(MP4_TYPE, mp4(media.frames, media.fps or 1.0))
    except (UserError, *DECODING_ERRORS):
        return None


def card(record: Record, stages: Sequence[tuple[str, Sequence[Record]]], clip: Clip | None, taxonomy: Taxonomy) -> Card:
    """The card of one clip.

    Args:
        record: record of slow thinking at the last stage.
        stages: (title, records) of every stage.
        clip: row of the manifest; None if it is missing.
        taxonomy: wheels that judge the words.
    """
    answers = []
    for title, records in stages:
        found = sorted((other for other in records if other.id == record.id), key=lambda r: r.mode, reverse=True)
        said = [Answer(r.mode, judge(r.labels, record.gold or [], taxonomy), r.scores, r.error) for r in found]
        answers += [(title, said)] if said else []
    media, notes = _media_of(clip, record.notes)
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
        sound=data_url(WAV_TYPE, wav(media.waveform, media.sampling_rate)) if media.waveform is not None else None,
        notes=[*(f"The model's input: {note}." for note in record.notes), *notes],
    )


def _media_of(clip: Clip | None, seen: Sequence[str]) -> tuple[Media, list[str]]:
    """Frames and audio of a clip, and what is missing of them; `seen` are the notes about the model's input."""
    if clip is None:
        return Media(), ["The clip is not in the manifest: no video, audio or subtitle."]
    try:
        media = read_media(clip.video, clip.audio, _LIMITS)
    except UserError as error:
        text = str(error)
        for path in filter(None, (clip.video, clip.audio)):
            text = text.replace(str(path), path.name)  # without its folder, since the page may be shared
        return Media(), [f"No video or audio: {text}"]
    return media, [f"On this page: {note}." for note in media.notes if note not in seen]


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


def _pictures(media: Media) -> list[tuple[str, float]]:
    if media.frames is None or media.frame_seconds is None:
        return []
    urls = (data_url(JPEG_TYPE, jpeg(frame.transpose(1, 2, 0), JPEG_QUALITY)) for frame in media.frames)
    return [(url, float(moment)) for url, moment in zip(urls, media.frame_seconds, strict=True)]
