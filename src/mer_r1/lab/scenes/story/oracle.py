"""The best possible score: an observer that knows the world's probabilities and sees the cues without error.

The posterior over (primary, second, conflict) given a scene's cues is exact: every factor of `world` is a small table.
The oracle answers with the set of one to three emotions with the highest expected F1 on the wheels, using the most
common word of each. Hiding a channel from the oracle measures the channel's value. Run

    python -m mer_r1.lab.scenes.story.oracle --scenes 2000

A model sees frames and audio instead of cues, so this is an upper bound, not a target.
"""

import argparse
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from mer_r1.emotions.metrics import mean_scores, wheel_scores
from mer_r1.emotions.wheels import builtin
from mer_r1.lab.scenes.story.world import PLAIN, SMALL_TALK, STRENGTHS, Chances, Scene, World, sample_scene, world

CHANNELS = ("face", "voice", "words")
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class State:
    """A hidden state: emotions and conflict, with prior probability."""

    primary: str
    secondary: str | None
    conflict: str | None
    prior: float


class Oracle:
    """Exact inference over the world for one choice of `Chances`."""

    def __init__(self, chances: Chances | None = None) -> None:
        self.chances = chances or Chances()
        self.taxonomy = builtin()
        self.world: World = world()
        self.states = list(self._enumerate())
        names = list(self.world.emotions)
        self._prior: Array = np.array([state.prior for state in self.states])
        self._primary = np.array([names.index(state.primary) for state in self.states])
        self._second = np.array([names.index(state.secondary or state.primary) for state in self.states])
        self._has_second = np.array([state.secondary is not None for state in self.states])
        self._acted = np.array([state.conflict is not None for state in self.states])
        pairs = sorted({(state.primary, state.conflict) for state in self.states}, key=str)
        self._patterns: Array = np.array([self._pattern_table(*pair) for pair in pairs])
        self._pattern_of = np.array([pairs.index((row.primary, row.conflict)) for row in self.states])
        self.answers = [*combinations(names, 1), *combinations(names, 2), *combinations(names, 3)]
        self._gold_sets = sorted({tuple(filter(None, (row.primary, row.secondary))) for row in self.states})
        self._to_gold = self._gold_matrix()
        self._values = self._answer_values()

    def posterior(self, scene: Scene, channels: Iterable[str] = CHANNELS) -> Array:
        """Probability of every state given the cues in `channels`, shape (len(states),), sums to 1."""
        channels = frozenset(channels)
        small = np.zeros(len(self.states))
        for shown, share in self._second_shown().items():
            likelihood = share.copy()
            if "words" in channels:
                likelihood *= self._theme_likelihood(scene.theme, shown == "theme")
            if "face" in channels:
                likelihood *= self._sign_likelihood([cue.name for cue in scene.signs], shown == "sign")
            if "voice" in channels:
                name = scene.modifier.name if scene.modifier else None
                likelihood *= self._modifier_likelihood(name, shown == "modifier")
            small += likelihood
        weights = self._prior * self._pattern_likelihood(scene, channels) * small
        return weights / weights.sum()

    def answer(self, scene: Scene, channels: Iterable[str] = CHANNELS) -> list[str]:
        """The words of the answer with the highest expected F1 given the cues in `channels`."""
        expected = self._values @ (self.posterior(scene, channels) @ self._to_gold)
        return [self.world.emotions[name].words[0] for name in self.answers[int(np.argmax(expected))]]

    def _enumerate(self) -> Iterable[State]:
        emotions = self.world.emotions
        for emotion in emotions.values():
            kinds = self.world.conflicts_of(emotion.name)
            share = self.chances.conflict if kinds else 0.0
            conflicts: dict[str | None, float] = {None: 1.0 - share}
            conflicts.update({name: share * part for name, part in kinds.items()})
            second = self.chances.second / len(emotion.seconds)
            seconds: dict[str | None, float] = {None: 1.0 - self.chances.second}
            seconds.update(dict.fromkeys(emotion.seconds, second))
            for conflict, p_conflict in conflicts.items():
                for secondary, p_second in seconds.items():
                    yield State(emotion.name, secondary, conflict, p_conflict * p_second / len(emotions))

    def _pattern_table(self, primary: str, conflict_name: str | None) -> Array:
        """P(face pattern, voice pattern | primary, conflict), shape (faces, voices), sums to 1."""
        conflict = self.world.conflicts[conflict_name] if conflict_name else None
        table = np.zeros((len(self.world.faces), len(self.world.voices)))
        for (face, voice), share in self.world.emotions[primary].ways.items():
            faces = conflict.shows if conflict and conflict.channel == "face" else {face: 1.0}
            voices = conflict.shows if conflict and conflict.channel == "voice" else {voice: 1.0}
            seen_faces = [self._seen(faces, seen, self.world.faces) for seen in self.world.faces]
            seen_voices = [self._seen(voices, seen, self.world.voices) for seen in self.world.voices]
            table += share * np.outer(seen_faces, seen_voices)
        return table

    def _pattern_likelihood(self, scene: Scene, channels: frozenset[str]) -> Array:
        """P(face and voice pattern | state), hidden channels summed out, (states,)."""
        table = self._patterns
        face, voice = list(self.world.faces).index(scene.face.name), list(self.world.voices).index(scene.voice.name)
        table = table[:, face] if "face" in channels else table.sum(axis=1)
        table = table[:, voice] if "voice" in channels else table.sum(axis=1)
        return table[self._pattern_of]

    def _seen(self, shown: Mapping[str, float], seen: str, near: Mapping[str, tuple[str, ...]]) -> float:
        """P(a pattern is seen | shares of the shown patterns)."""
        hidden = 1.0 - self.chances.shown - self.chances.near
        total = 0.0
        for true, share in shown.items():
            if near[true]:
                mistaken = self.chances.near * near[true].count(seen) / len(near[true])
                total += share * (self.chances.shown * (true == seen) + mistaken + hidden * (seen == PLAIN))
            else:
                total += share * (true == seen)
        return total

    def _second_shown(self) -> dict[str | None, Array]:
        """Channel of the second emotion -> P(channel | state), each (states,)."""
        parts = dict(zip(("sign", "modifier", "theme"), self.chances.second_in, strict=True))
        table: dict[str | None, Array] = {name: np.where(self._has_second, part, 0.0) for name, part in parts.items()}
        table[None] = 1.0 - np.sum(list(table.values()), axis=0)
        return table

    def _theme_likelihood(self, theme: str, by_second: bool) -> Array:
        """P(theme | state), (states,)."""
        rest = (1.0 - self.chances.spoken - self.chances.idle) / len(self.world.themes)
        rest += self.chances.idle * (theme == SMALL_TALK)
        emotions = self.world.emotions.values()
        spoken = np.array([self.chances.spoken * row.themes.get(theme, 0.0) for row in emotions]) + rest
        acted = {row.name: row.shows.get(theme, 0.0) for row in self.world.conflicts.values() if row.channel == "words"}
        source = self._second if by_second else self._primary
        return np.array(
            [acted.get(state.conflict or "", spoken[place]) for state, place in zip(self.states, source, strict=True)]
        )

    def _sign_likelihood(self, found: Sequence[str], by_second: bool) -> Array:
        """P(set of signs | state): one of the primary emotion (or stray), one of the second; equal signs merge."""
        signs = self.world.signs
        share = np.where(self._acted, self.chances.leak, self.chances.sign)
        stray = np.minimum(self.chances.stray, 1.0 - share)
        nothing = 1.0 - share - stray

        def first(name: str) -> Array:
            return stray / len(signs) + share * self._share_of("signs", name)[self._primary]

        def second(name: str) -> Array:
            return self._share_of("signs", name)[self._second]

        if len(found) == 2:
            one, two = found
            return by_second * (first(one) * second(two) + first(two) * second(one))
        if not found:
            return np.zeros(len(self.states)) if by_second else nothing
        one = found[0]
        return (first(one) + nothing) * second(one) if by_second else first(one)

    def _modifier_likelihood(self, name: str | None, by_second: bool) -> Array:
        """P(modifier | state), (states,)."""
        share = 1.0 if by_second else self.chances.modifier
        if name is None:
            return np.full(len(self.states), 1.0 - share)
        return share * self._share_of("modifiers", name)[self._second if by_second else self._primary]

    def _share_of(self, kind: str, name: str) -> Array:
        """P(sign or modifier | emotion), (emotions,)."""
        rows = [getattr(row, kind) for row in self.world.emotions.values()]
        return np.array([items.count(name) / len(items) for items in rows])

    def _gold_matrix(self) -> Array:
        """P(emotions named by the gold words | state), shape (states, gold sets)."""
        matrix = np.zeros((len(self.states), len(self._gold_sets)))
        places = {gold: index for index, gold in enumerate(self._gold_sets)}
        unnamed = self.chances.second_words[0]
        for index, state in enumerate(self.states):
            if state.secondary is None:
                matrix[index, places[state.primary,]] = 1.0
            else:
                matrix[index, places[state.primary,]] = unnamed
                matrix[index, places[state.primary, state.secondary]] = 1.0 - unnamed
        return matrix

    def _answer_values(self) -> Array:
        """F1 of every answer for every gold set, mean over wheels, shape (answers, gold sets)."""
        total = np.zeros((len(self.answers), len(self._gold_sets)))
        placed = np.zeros(len(self._gold_sets))
        for wheel in self.taxonomy.wheels:
            sectors = self.taxonomy.sectors(wheel)
            codes = {
                name: np.array([sector == self.taxonomy.sector(row.words[0], wheel) for sector in sectors], dtype=float)
                for name, row in self.world.emotions.items()
            }
            answers = np.array([np.max([codes[name] for name in answer], axis=0) for answer in self.answers])
            golds = np.array([np.max([codes[name] for name in gold], axis=0) for gold in self._gold_sets])
            sizes = answers.sum(1)[:, None] + golds.sum(1)[None, :]
            usable = golds.sum(1) > 0
            total += np.where(usable, 2.0 * answers @ golds.T / np.maximum(sizes, 1.0), 0.0)
            placed += usable
        return total / placed


def without_faint(chances: Chances) -> Chances:
    """The probabilities for an observer who cannot see faint cues (a faint pattern looks plain)."""
    big, small = 1.0 - chances.strengths[0], 1.0 - chances.small_strengths[0]
    sign, modifier, theme = chances.second_in
    return replace(
        chances,
        shown=chances.shown * big,
        near=chances.near * big,
        sign=chances.sign * small,
        leak=chances.leak * small,
        stray=chances.stray * small,
        modifier=chances.modifier * small,
        second_in=(sign * small, modifier * small, theme),
    )


def hide_faint(scene: Scene) -> Scene:
    """The scene for an observer who cannot see faint cues."""
    face, voice = (
        replace(cue, name=PLAIN) if cue.strength == STRENGTHS[0] else cue for cue in (scene.face, scene.voice)
    )
    signs = tuple(cue for cue in scene.signs if cue.strength != STRENGTHS[0])
    modifier = scene.modifier if scene.modifier and scene.modifier.strength != STRENGTHS[0] else None
    return replace(scene, face=face, voice=voice, signs=signs, modifier=modifier)


def channel_scores(
    n_scenes: int, seed: int = 0, chances: Chances | None = None, subsets: Sequence[Sequence[str]] | None = None
) -> dict[str, dict[str, float]]:
    """Mean precision, recall and F1, each in [0, 1], of the oracle for subsets of the channels ("face+voice").

    The standard error of a mean over 2,000 scenes is about 0.006. By default every subset including the empty one
    ("none"), and all channels without faint cues ("all but faint").
    """
    chances = chances or Chances()
    oracle = Oracle(chances)
    scenes = [sample_scene(np.random.default_rng([seed, index]), chances) for index in range(n_scenes)]
    golds = [scene.labels for scene in scenes]
    parts = [part for size in range(3, -1, -1) for part in combinations(CHANNELS, size)] if subsets is None else subsets
    table = {"+".join(part) or "none": _score(oracle, scenes, golds, part) for part in parts}
    if subsets is None:
        short_sighted = Oracle(without_faint(chances))
        table["all but faint"] = _score(short_sighted, [hide_faint(scene) for scene in scenes], golds, CHANNELS)
    return table


def _score(
    oracle: Oracle, scenes: Sequence[Scene], golds: Sequence[list[str]], channels: Sequence[str]
) -> dict[str, float]:
    means = mean_scores(
        wheel_scores(gold, oracle.answer(scene, channels), oracle.taxonomy)
        for gold, scene in zip(golds, scenes, strict=True)
    )
    return {"precision": means.precision, "recall": means.recall, "f1": means.f1}


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=2000, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0, help="seed for the scenes")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name, row in channel_scores(given.scenes, given.seed).items():
        logging.info(json.dumps({"channels": name, **{key: round(value, 3) for key, value in row.items()}}))


if __name__ == "__main__":
    _main()
