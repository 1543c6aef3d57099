"""The generative model of the built-in scenes: emotions -> cues in three channels -> gold labels.

Emotions are coded *jointly*: each shows in a few ways, and a way is a pair (face pattern, voice pattern). Most face
patterns are shared by emotions that differ only in the voice, and vice versa. The theme of the words narrows the choice
or misleads. In a conflict one channel is acted (a social smile, polite words, a controlled voice) and the other
channels are genuine. A second emotion adds one small sign in one channel. Each channel shows its pattern only with some
probability and strength, so a perfect score is impossible; `oracle` computes the best possible one. The tables are in
`world.json`, the probabilities in `Chances`.

The world is made for learning and for studying methods; it is not a theory of human expression.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mer_r1.data.jsonl import read_object

Item = TypeVar("Item")
STRENGTHS = ("faint", "moderate", "evident")
PLAIN = "plain"
SMALL_TALK = "talk"


@dataclass(frozen=True)
class Chances:
    """All probabilities of the world, each in [0, 1].

    Attributes:
        second: P(a scene has a second emotion).
        conflict: P(one channel is acted), for emotions with a valence.
        conflict_kinds: P(the acted channel is the face, the words, the voice | conflict).
        shown: P(face and voice show their pattern); otherwise a neighbouring (`near`) or plain pattern.
        near: P(face and voice show a neighbouring pattern).
        spoken: P(the words are about the emotion's theme); otherwise small talk (`idle`) or a random theme.
        idle: P(the words are small talk although the emotion has other themes).
        sign: P(the primary emotion adds a sign of face or head), without a conflict.
        leak: P(the primary emotion adds a sign | conflict).
        stray: P(a meaningless sign replaces the primary emotion's sign).
        modifier: P(the primary emotion adds a modifier of the voice).
        second_in: P(the second emotion shows as a sign, as a modifier, as the theme); the rest: not at all.
        strengths: P(faint, moderate, evident) of a face or voice pattern.
        small_strengths: P(faint, moderate, evident) of signs and modifiers.
        second_words: P(the second emotion has 0, 1, 2 gold words).
        two_words: P(the primary emotion has two gold words instead of one).
    """

    second: float = 0.55
    conflict: float = 0.25
    conflict_kinds: tuple[float, float, float] = (0.45, 0.25, 0.3)
    shown: float = 0.92
    near: float = 0.04
    spoken: float = 0.88
    idle: float = 0.08
    sign: float = 0.5
    leak: float = 0.85
    stray: float = 0.06
    modifier: float = 0.35
    second_in: tuple[float, float, float] = (0.5, 0.2, 0.25)
    strengths: tuple[float, float, float] = (0.15, 0.35, 0.5)
    small_strengths: tuple[float, float, float] = (0.2, 0.4, 0.4)
    second_words: tuple[float, float, float] = (0.1, 0.75, 0.15)
    two_words: float = 0.35


@dataclass(frozen=True)
class Emotion:
    """One emotion: `valence` -1, 0 or 1; `ways` (face, voice) -> probability; other fields as in `world.json`."""

    name: str
    valence: int
    words: tuple[str, ...]
    ways: Mapping[tuple[str, str], float]
    themes: Mapping[str, float]
    signs: tuple[str, ...]
    modifiers: tuple[str, ...]
    seconds: tuple[str, ...]


@dataclass(frozen=True)
class Conflict:
    """An acted channel: `shows` gives the patterns that it shows instead; for emotions of one `valence`."""

    name: str
    channel: str
    valence: int
    shows: Mapping[str, float]


@dataclass(frozen=True)
class World:
    """The tables of `world.json`. `faces`, `voices`: pattern -> neighbouring patterns."""

    emotions: Mapping[str, Emotion]
    faces: Mapping[str, tuple[str, ...]]
    voices: Mapping[str, tuple[str, ...]]
    themes: tuple[str, ...]
    signs: tuple[str, ...]
    modifiers: tuple[str, ...]
    conflicts: Mapping[str, Conflict]
    valence: Mapping[str, Mapping[str, int]]

    def conflicts_of(self, emotion: str) -> dict[str, float]:
        """Conflict -> probability, among the conflicts of the emotion's valence; {} if there is none."""
        kinds = dict(zip(("face", "words", "voice"), Chances.conflict_kinds, strict=True))
        valence = self.emotions[emotion].valence
        return {name: kinds[row.channel] for name, row in self.conflicts.items() if row.valence == valence}


@dataclass(frozen=True)
class Cue:
    """One observed cue: `name`, `strength` (one of `STRENGTHS`), and `of`, its emotion (None: no emotion)."""

    name: str
    strength: str
    of: str | None


@dataclass(frozen=True)
class GoldWord:
    """One gold label and its emotion."""

    word: str
    emotion: str


@dataclass(frozen=True)
class Scene:
    """The content of one clip: emotions, observable cues, gold words.

    Attributes:
        primary: the main emotion.
        secondary: the second emotion, or None.
        conflict: name of the conflict, or None.
        face: pattern of the face.
        voice: pattern of the voice.
        theme: topic of the words.
        theme_of: the emotion of the theme, or None for small talk or acted words.
        signs: 0 to 2 further signs of face and head.
        modifier: a small change of the voice, or None.
        gold: 1 to 4 gold words.
    """

    primary: str
    secondary: str | None
    conflict: str | None
    face: Cue
    voice: Cue
    theme: str
    theme_of: str | None
    signs: tuple[Cue, ...]
    modifier: Cue | None
    gold: tuple[GoldWord, ...]

    @property
    def labels(self) -> list[str]:
        """The gold words."""
        return [gold.word for gold in self.gold]


@lru_cache(maxsize=1)
def world() -> World:
    """The tables of `world.json`, read once."""
    tables = read_object(Path(__file__).with_name("world.json"))
    emotions = {name: _emotion(name, row) for name, row in tables["emotions"].items()}
    return World(
        emotions=emotions,
        faces={name: tuple(row["near"]) for name, row in tables["faces"].items()},
        voices={name: tuple(row["near"]) for name, row in tables["voices"].items()},
        themes=tuple(tables["themes"]),
        signs=tuple(tables["signs"]),
        modifiers=tuple(tables["modifiers"]),
        conflicts={
            name: Conflict(name, row["channel"], row["valence"], _shares(row["shows"]))
            for name, row in tables["conflicts"].items()
        },
        valence={
            "face": {name: row["valence"] for name, row in tables["faces"].items()},
            "voice": {name: row["valence"] for name, row in tables["voices"].items()},
            "words": tables["themes"],
        },
    )


def _emotion(name: str, row: Mapping[str, Any]) -> Emotion:
    return Emotion(
        name=name,
        valence=row["valence"],
        words=tuple(row["words"]),
        ways=_shares({(face, voice): weight for face, voice, weight in row["ways"]}),
        themes=_shares(row["themes"]),
        signs=tuple(row["signs"]),
        modifiers=tuple(row["modifiers"]),
        seconds=tuple(row["with"]),
    )


def _shares(weights: Mapping[Item, float]) -> dict[Item, float]:
    total = sum(weights.values())
    return {item: weight / total for item, weight in weights.items()}


def sample_scene(rng: np.random.Generator, chances: Chances | None = None) -> Scene:
    """Draw one scene. The order of random draws is part of the format: changing it changes every corpus."""
    chances = chances or Chances()
    tables = world()
    primary = tables.emotions[pick(rng, list(tables.emotions))]
    secondary = tables.emotions[pick(rng, primary.seconds)] if rng.random() < chances.second else None
    conflict = _conflict(rng, primary, chances)
    channel = _second_channel(rng, chances) if secondary else None
    face, voice = _patterns(rng, primary, conflict, chances)
    theme, theme_of = _theme(rng, primary, secondary if channel == "theme" else None, conflict, chances)
    return Scene(
        primary=primary.name,
        secondary=secondary.name if secondary else None,
        conflict=conflict.name if conflict else None,
        face=face,
        voice=voice,
        theme=theme,
        theme_of=theme_of,
        signs=_signs(rng, primary, secondary if channel == "sign" else None, conflict, chances),
        modifier=_modifier(rng, primary, secondary if channel == "modifier" else None, chances),
        gold=_gold(rng, primary, secondary, chances),
    )


def _conflict(rng: np.random.Generator, primary: Emotion, chances: Chances) -> Conflict | None:
    possible = world().conflicts_of(primary.name)
    if rng.random() >= chances.conflict or not possible:
        return None
    return world().conflicts[_weighted(rng, possible)]


def _second_channel(rng: np.random.Generator, chances: Chances) -> str | None:
    rest = 1.0 - sum(chances.second_in)
    return _weighted(rng, dict(zip(("sign", "modifier", "theme", None), (*chances.second_in, rest), strict=True)))


def _patterns(
    rng: np.random.Generator, primary: Emotion, conflict: Conflict | None, chances: Chances
) -> tuple[Cue, Cue]:
    """Face and voice: one of the emotion's ways, with the acted channel replaced, then noise."""
    face, voice = _weighted(rng, primary.ways)
    acted = conflict.channel if conflict else None
    if conflict and acted == "face":
        face = _weighted(rng, conflict.shows)
    if conflict and acted == "voice":
        voice = _weighted(rng, conflict.shows)
    cues = []
    for channel, pattern, near in (("face", face, world().faces), ("voice", voice, world().voices)):
        seen = _seen(rng, pattern, near[pattern], chances)
        strength = _weighted(rng, dict(zip(STRENGTHS, chances.strengths, strict=True)))
        own = seen == pattern and channel != acted and seen != PLAIN
        cues.append(Cue(seen, strength, primary.name if own else None))
    return cues[0], cues[1]


def _seen(rng: np.random.Generator, pattern: str, near: Sequence[str], chances: Chances) -> str:
    luck = rng.random()
    if luck < chances.shown or not near:
        return pattern
    return pick(rng, near) if luck < chances.shown + chances.near else PLAIN


def _theme(
    rng: np.random.Generator, primary: Emotion, spoken_by: Emotion | None, conflict: Conflict | None, chances: Chances
) -> tuple[str, str | None]:
    if conflict and conflict.channel == "words":
        return _weighted(rng, conflict.shows), None
    luck = rng.random()
    source = spoken_by or primary
    theme = _weighted(rng, source.themes)
    if luck < chances.spoken:
        return theme, source.name
    return (SMALL_TALK if luck < chances.spoken + chances.idle else pick(rng, world().themes)), None


def _signs(
    rng: np.random.Generator, primary: Emotion, secondary: Emotion | None, conflict: Conflict | None, chances: Chances
) -> tuple[Cue, ...]:
    """At most one sign per emotion; a stray sign replaces the primary emotion's."""
    cues: dict[str, Cue] = {}
    luck = rng.random()
    share = chances.leak if conflict else chances.sign
    own, stray = pick(rng, primary.signs), pick(rng, world().signs)
    if luck < share:
        cues[own] = _small_cue(rng, own, primary.name, chances)
    elif luck < share + chances.stray:
        cues[stray] = _small_cue(rng, stray, None, chances)
    if secondary:
        sign = pick(rng, secondary.signs)
        cues[sign] = _small_cue(rng, sign, secondary.name, chances)
    return tuple(cues.values())


def _modifier(rng: np.random.Generator, primary: Emotion, secondary: Emotion | None, chances: Chances) -> Cue | None:
    luck = rng.random()
    source = secondary or primary
    name = pick(rng, source.modifiers)
    if secondary is None and luck >= chances.modifier:
        return None
    return _small_cue(rng, name, source.name, chances)


def _small_cue(rng: np.random.Generator, name: str, of: str | None, chances: Chances) -> Cue:
    return Cue(name, _weighted(rng, dict(zip(STRENGTHS, chances.small_strengths, strict=True))), of)


def _gold(
    rng: np.random.Generator, primary: Emotion, secondary: Emotion | None, chances: Chances
) -> tuple[GoldWord, ...]:
    """1-2 words of the primary and 0-2 of the second emotion; common words are more likely than rare ones."""
    counts = [1 + (rng.random() < chances.two_words)]
    if secondary:
        counts.append(_weighted(rng, dict(zip((0, 1, 2), chances.second_words, strict=True))))
    gold: list[GoldWord] = []
    for emotion, count in zip((primary, secondary), counts, strict=False):
        if emotion:
            gold += [GoldWord(word, emotion.name) for word in _words(rng, emotion, int(count))]
    return tuple(gold)


def _words(rng: np.random.Generator, emotion: Emotion, count: int) -> list[str]:
    weights = 1.0 / (1.0 + 0.5 * np.arange(len(emotion.words)))
    chosen = rng.choice(len(emotion.words), size=count, replace=False, p=weights / weights.sum())
    return [emotion.words[index] for index in chosen]


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """Draw one item, all with the same probability."""
    return items[int(rng.integers(len(items)))]


def _weighted(rng: np.random.Generator, shares: Mapping[Item, float]) -> Item:
    """Draw one key of `shares` by its probability (they sum to 1)."""
    edges = np.cumsum(list(shares.values()))
    place = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
    return list(shares)[min(place, len(shares) - 1)]
