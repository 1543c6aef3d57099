"""Annotations of a scene as text: reasoning, description, remark, and labels of careful and generous annotators.

The cold start's *reasoning* imitates careful annotators: it names evident cues, most moderate ones and no faint ones,
names a visible conflict and concludes with the careful labels. The base stage's *description* lists cues without a
conclusion, its *broad labels* are many and partly wrong, and its *remark* is a short comment that concludes with as few
words as a careful annotator's. All texts come from the observed cues only, so they contain the errors of annotators:
this noise is part of the world. A clip without one of its channels has texts that speak of the others only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mer_r1.data.jsonl import read_object
from mer_r1.lab.scenes.story.world import PLAIN, STRENGTHS, Cue, Scene, pick, world

KEEP_MODERATE = 0.75
KEEP_FAINT = 0.7
BROAD_KEEP = 0.85
BROAD_ADD = 0.5
CAREFUL_FIRST = 0.97
CAREFUL_FURTHER = {"faint": 0.0, "moderate": 0.45, "evident": 0.7}
LONGEST = 35
CHANNELS = frozenset({"face", "voice", "words"})


@dataclass(frozen=True)
class Texts:
    """The texts of one scene. All label lists are non-empty."""

    reasoning: str
    description: str
    broad_labels: list[str]
    careful_labels: list[str]
    remark: str


def write_texts(scene: Scene, low_voice: bool, rng: np.random.Generator, channels: frozenset[str] = CHANNELS) -> Texts:
    """All texts of a scene, about the given channels; the description mentions whether the speaker's voice is low."""
    careful = careful_labels(scene, rng, channels)
    reasoned, described = reasoning(scene, careful, rng, channels), description(scene, low_voice, rng, channels)
    broad = broad_labels(scene, rng, channels)
    remark = reasoning(scene, careful_labels(scene, rng, channels), rng, channels)
    return Texts(reasoned, described, broad, careful, remark)


def careful_labels(scene: Scene, rng: np.random.Generator, channels: frozenset[str] = CHANNELS) -> list[str]:
    """The first gold word with `CAREFUL_FIRST`, further gold words with `CAREFUL_FURTHER` by their visible evidence.

    A careful annotator prefers omitting a word to writing a wrong one.
    """
    kept = []
    for index, gold in enumerate(scene.gold):
        chance = CAREFUL_FURTHER[_evidence(scene, gold.emotion, channels)] if index else CAREFUL_FIRST
        if rng.random() < chance:
            kept.append(gold.word)
    return kept or [scene.gold[0].word]


def broad_labels(scene: Scene, rng: np.random.Generator, channels: frozenset[str] = CHANNELS) -> list[str]:
    """Each gold word with 0.85, and words of emotions that share the visible face or voice with 0.5 and 0.25."""
    kept = [gold.word for gold in scene.gold if rng.random() < BROAD_KEEP]
    neighbours = _neighbours(scene, channels)
    for chance in (BROAD_ADD, BROAD_ADD / 2):
        if neighbours and rng.random() < chance:
            name = neighbours.pop(int(rng.integers(len(neighbours))))
            words = world().emotions[name].words
            kept.append(words[int(rng.integers(min(4, len(words))))])
    return kept or [scene.gold[0].word]


def reasoning(
    scene: Scene, conclusion: Sequence[str], rng: np.random.Generator, channels: frozenset[str] = CHANNELS
) -> str:
    """Two to five short sentences, at most 35 words: cues, conflict, conclusion. Faint cues are never named."""
    small_cues = _small(scene, channels)
    named = {cue: _named(cue, rng) for cue in (scene.face, scene.voice, *small_cues)}
    face, voice = named[scene.face] and "face" in channels, named[scene.voice] and "voice" in channels
    parts = [_opening(scene, face, voice, rng, channels)]
    if "words" in channels:
        words = _say("words", rng, words=_phrase("words", scene.theme, "evident", rng))
        parts.insert(int(rng.integers(2)), words)
    conflict = _visible_conflict(scene, face, voice, channels)
    if conflict:
        parts.append(_say(conflict, rng))
    small = [_phrase(_kind(scene, cue), cue.name, cue.strength, rng) for cue in small_cues if named[cue]]
    ending = _ending(scene, conclusion, rng)
    if small:
        parts.append(_say("small", rng, small=" and ".join(small)))
    while len(" ".join([*parts, ending]).split()) > LONGEST and len(parts) > 2:
        parts.pop()
    return " ".join([*parts, ending])


def description(scene: Scene, low_voice: bool, rng: np.random.Generator, channels: frozenset[str] = CHANNELS) -> str:
    """A list of the cues, most faint ones included, with the speaker's pitch and without a conclusion."""
    faces = [("face", scene.face), *(("signs", cue) for cue in scene.signs)]
    voices = [("voice", scene.voice), *([("modifiers", scene.modifier)] if scene.modifier else [])]
    named = []
    for cues in (faces, voices):
        kept = [cue for cue in cues if cue[1].strength != "faint" or rng.random() < KEEP_FAINT]
        phrases = [_phrase(kind, cue.name, cue.strength, rng) for kind, cue in kept]
        named.append(", ".join(phrases) or _phrase("face" if cues is faces else "voice", PLAIN, "evident", rng))
    rows = _lexicon()["description"]
    pitch = pick(rng, rows["pitch"]["low" if low_voice else "high"])
    words = _phrase("words", scene.theme, "evident", rng)
    face = pick(rng, rows["face"]).format(face=named[0])
    voice = pick(rng, rows["voice"]).format(pitch=pitch, voice=named[1])
    sentences = {"face": face, "voice": voice, "words": pick(rng, rows["words"]).format(words=words)}
    return " ".join(sentence for channel, sentence in sentences.items() if channel in channels)


def _evidence(scene: Scene, emotion: str, channels: frozenset[str]) -> str:
    """The greatest strength among the emotion's cues; a theme counts as moderate, no cue as faint."""
    large = [cue for channel, cue in (("face", scene.face), ("voice", scene.voice)) if channel in channels]
    found = [cue.strength for cue in (*large, *_small(scene, channels)) if cue.of == emotion]
    found += ["moderate"] if scene.theme_of == emotion and "words" in channels else []
    return max(found, key=STRENGTHS.index, default="faint")


def _neighbours(scene: Scene, channels: frozenset[str]) -> list[str]:
    """Other emotions that can show the visible face pattern or the visible voice pattern."""
    gold = {word.emotion for word in scene.gold}
    seen = scene.face.name if "face" in channels else None
    heard = scene.voice.name if "voice" in channels else None
    return [
        name
        for name, row in world().emotions.items()
        if name not in gold and any(face == seen or voice == heard for face, voice in row.ways)
    ]


def _small(scene: Scene, channels: frozenset[str]) -> list[Cue]:
    signs = scene.signs if "face" in channels else ()
    return [*signs, *([scene.modifier] if scene.modifier and "voice" in channels else [])]


def _kind(scene: Scene, cue: Cue) -> str:
    return "modifiers" if cue is scene.modifier else "signs"


def _named(cue: Cue, rng: np.random.Generator) -> bool:
    luck = rng.random()
    return cue.strength == "evident" or (cue.strength == "moderate" and luck < KEEP_MODERATE)


def _opening(scene: Scene, face: bool, voice: bool, rng: np.random.Generator, channels: frozenset[str]) -> str:
    kind = {(True, True): "both", (True, False): "face", (False, True): "voice", (False, False): "neither"}[face, voice]
    if not channels >= {"face", "voice"}:  # nothing is said of the channel that is missing
        kind = ("face" if "face" in channels else "voice") + ("_alone" if face or voice else "_silent")
    return _say(
        kind,
        rng,
        face=_phrase("face", scene.face.name, scene.face.strength, rng),
        voice=_phrase("voice", scene.voice.name, scene.voice.strength, rng),
    )


def _visible_conflict(scene: Scene, face: bool, voice: bool, channels: frozenset[str]) -> str | None:
    """The disagreement between the named cues that an annotator mentions, or None."""
    valence = world().valence
    in_face = valence["face"][scene.face.name] if face else 0
    in_voice = valence["voice"][scene.voice.name] if voice else 0
    in_words = valence["words"][scene.theme] if "words" in channels else 0
    if in_face * in_voice < 0:
        return "smile_conflict" if in_face > 0 else "face_conflict"
    heard = in_voice or in_face
    if heard * in_words >= 0:
        return None
    return "words_conflict" if "voice" in channels else "words_conflict_seen"


def _ending(scene: Scene, conclusion: Sequence[str], rng: np.random.Generator) -> str:
    """The conclusion: the primary emotion's words, then, after a "perhaps", those of the second emotion."""
    emotion = {gold.word: gold.emotion for gold in scene.gold}
    lead = emotion.get(conclusion[0], conclusion[0])
    first = [word for word in conclusion if emotion.get(word, word) == lead]
    second = [word for word in conclusion if emotion.get(word, word) != lead]
    slots = {"first": " or ".join(first), "second": " or ".join(second)}
    return _say("end_two" if second else "end_one", rng, **slots)


def _say(kind: str, rng: np.random.Generator, **slots: str) -> str:
    return pick(rng, _lexicon()["reasoning"][kind]).format(**slots)


def _phrase(kind: str, name: str, strength: str, rng: np.random.Generator) -> str:
    """A noun phrase for one cue, with an adverb of degree if the phrase has a slot for one."""
    lexicon = _lexicon()
    degree = pick(rng, lexicon["degrees"][strength])
    return pick(rng, lexicon[kind][name]).format(d=degree)


@lru_cache(maxsize=1)
def _lexicon() -> Mapping[str, Any]:
    return read_object(Path(__file__).with_name("phrases.json"))
