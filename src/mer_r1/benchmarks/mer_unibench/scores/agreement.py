"""Agreement of the two ways of comparing words: does a comparison by meaning say what people and wheels say?

Asked of the bare embedding model and of the comparison with its mends (`emotions.meaning`): does it place synonyms
above other pairs, words of one sector above those of different ones, and opposites below the floor? Of the comparison:
does it rank systems as the wheels do?
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress, permutations
from typing import Any

from mer_r1.emotions.meaning import Meaning
from mer_r1.emotions.metrics import label_scores, mean_scores
from mer_r1.emotions.sentiment import valence
from mer_r1.emotions.wheels import Taxonomy, parse_labels
from mer_r1.errors import UserError
from mer_r1.evaluation.intervals import known_mean

ANTONYMS = """
accepted/rejected admiration/contempt affectionate/cold amused/unamused angry/content at_ease/nervous
attracted/disgusted awake/sleepy brave/afraid calm/agitated calm/excited caring/indifferent cheerful/gloomy
comfortable/uncomfortable confident/insecure curious/bored delighted/miserable determined/hesitant eager/reluctant
elated/depressed
energetic/tired friendly/hostile grateful/resentful happy/not_happy happy/sad happy/unhappy hopeful/hopeless humble/smug
interested/uninterested joyful/sorrowful lively/lethargic love/hate optimistic/pessimistic patient/impatient
pleased/annoyed proud/ashamed relaxed/tense relieved/worried respectful/contemptuous safe/threatened sad/not_sad
satisfied/dissatisfied serene/anxious serious/playful shy/bold sure/unsure surprised/unsurprised sympathetic/heartless
trusting/suspicious victorious/defeated
"""
"""Opposites in everyday English, written for this project."""
SHOWN = ("nostalgic", "bittersweet", "relieved", "wistful", "surprised", "resigned")
"""Words whose neighbours are shown: mixed, rare, or hard to place."""
NEIGHBOURS = 5
PAIRS = 3_000
"""Most pairs of a kind that are compared; more are drawn."""


def word_agreement(meaning: Meaning, taxonomy: Taxonomy, seed: int = 0) -> dict[str, Any]:
    """What a comparison by meaning says of the word tables of a taxonomy.

    Args:
        meaning: similarity of words.
        taxonomy: its synonym tables and sectors are the judgement that is compared with.
        seed: random seed of the pairs.

    Returns:
        `synonyms`, `sectors` and `valence`: two kinds of pairs each, with their numbers `n`, the probability `auc` that
        of two pairs the one of the first kind is more alike (0.5 for chance), and the shares `above` the floor;
        `antonyms`; all by `cosine`, the bare model, and `mended`, with opposites at 0. `not apart`: opposites above the
        floor. `neighbours`: word -> its nearest base words, with similarities.
    """
    words = sorted(set(filter(None, map(taxonomy.base, taxonomy.forms))))
    meaning.read(map(meaning.key, (*words, *SHOWN)))
    found: dict[str, Any] = {"meaning": repr(meaning), "wheels": taxonomy.title}
    found |= {name: _contrast(meaning, *both) for name, both in _kinds(words, taxonomy, seed).items()}
    antonyms = [pair.replace("_", " ").split("/") for pair in ANTONYMS.split()]
    shares = {name: _above(values, meaning.floor) for name, values in _both(meaning, antonyms).items()}
    found["antonyms"] = {"n": len(antonyms), **shares}
    found["not apart"] = ["/".join(pair) for pair in antonyms if meaning.similarity(*pair) > 0]
    found["neighbours"] = {word: _nearest(meaning, word, words) for word in SHOWN}
    return found


def system_agreement(
    labels: Mapping[str, Sequence[object]], by_wheels: Taxonomy, by_meaning: Taxonomy
) -> dict[str, Any]:
    """How alike two ways of comparing words rank systems, each system in turn taken for the gold of the others.

    Args:
        labels: system -> its labels of each clip (strings or lists), all in the same order.
        by_wheels: one way.
        by_meaning: the other one.

    Returns:
        `n_systems`, `n_clips`; `systems`, the mean over golds of Spearman's rank correlation of the other systems' mean
        F1, with the lowest one; `clips`, that of all single answers' F1; `f1`, both ways' means.

    Raises:
        UserError: fewer than three systems, or systems with different numbers of clips.
    """
    from scipy.stats import spearmanr

    if len(labels) < 3 or len(set(map(len, labels.values()))) != 1:
        raise UserError("systems: expected at least three, with the labels of the same clips in the same order")
    words = {name: [parse_labels(value) for value in values] for name, values in labels.items()}
    ranked: dict[str, list[list[float]]] = {name: [] for name in words}
    answers: list[list[float]] = []
    for gold, system in permutations(words, 2):
        rows = list(zip(words[gold], words[system], strict=True))
        scores = [[label_scores(*row, way) for row in rows] for way in (by_wheels, by_meaning)]
        ranked[gold].append([mean_scores(way).f1 for way in scores])
        answers += [[w.f1, m.f1] for w, m in zip(*scores, strict=True) if w is not None and m is not None]
    of_golds = [float(spearmanr(*zip(*points, strict=True)).statistic) for points in ranked.values()]
    columns = list(zip(*answers, strict=True))
    return {
        "n_systems": len(words),
        "n_clips": len(rows),
        "systems": {"mean": known_mean(of_golds), "lowest": min(of_golds)},
        "clips": float(spearmanr(*columns).statistic),
        "f1": {"wheels": known_mean(columns[0]), "meaning": known_mean(columns[1])},
    }


Pairs = Sequence[Sequence[str]]


def _kinds(words: Sequence[str], taxonomy: Taxonomy, seed: int) -> dict[str, tuple[Pairs, Pairs]]:
    """Pairs of words that a taxonomy calls alike, and pairs that it calls different, in three ways."""
    draw = random.Random(seed)
    pairs = [draw.sample(words, 2) for _ in range(4 * PAIRS)]
    shared = [_shared(taxonomy, *pair) for pair in pairs]
    signs = [(valence(left, taxonomy) or 0) * (valence(right, taxonomy) or 0) for left, right in pairs]
    synonyms = [(base, label) for base, labels in taxonomy.synonyms.items() for label in labels if base != label]
    draw.shuffle(synonyms)
    apart = list(compress(pairs, [share == 0 for share in shared]))
    return {
        "synonyms": (synonyms, apart),
        "sectors": (list(compress(pairs, [share > 0.5 for share in shared])), apart),
        "valence": tuple(list(compress(pairs, [sign == wanted for sign in signs])) for wanted in (1, -1)),  # type: ignore[dict-item]
    }


def _contrast(meaning: Meaning, alike: Pairs, different: Pairs) -> dict[str, Any]:
    from scipy.stats import mannwhitneyu

    sides = [_both(meaning, pairs[:PAIRS]) for pairs in (alike, different)]
    found: dict[str, Any] = {"n": [len(pairs[:PAIRS]) for pairs in (alike, different)]}
    for name in ("cosine", "mended"):
        first, second = (side[name] for side in sides)
        auc = float(mannwhitneyu(first, second).statistic) / (len(first) * len(second)) if first and second else None
        found[name] = {"auc": auc, "above": [_above(values, meaning.floor)["above"] for values in (first, second)]}
    return found


def _both(meaning: Meaning, pairs: Pairs) -> dict[str, list[float]]:
    """The cosine of each pair of words as the bare model has it, and with opposites at 0."""
    keys = [tuple(map(meaning.key, pair)) for pair in pairs]
    meaning.read(word for pair in keys for word in pair)
    return {
        "cosine": [meaning.cosine(*pair) for pair in keys],
        "mended": [0.0 if meaning.opposed(*pair) else meaning.cosine(*pair) for pair in keys],
    }


def _above(values: Sequence[float], floor: float) -> dict[str, float | None]:
    return {"mean": known_mean(values), "above": known_mean(value >= max(floor, 1e-9) for value in values)}


def _shared(taxonomy: Taxonomy, left: str, right: str) -> float:
    """Share of the wheels that place both words which place them in one sector; 0 where none places both."""
    places = [(taxonomy.sector(left, wheel), taxonomy.sector(right, wheel)) for wheel in taxonomy.wheels]
    return known_mean([a == b for a, b in places if a and b]) or 0.0


def _nearest(meaning: Meaning, word: str, words: Iterable[str]) -> dict[str, float]:
    near: Callable[[str], float] = lambda other: meaning.similarity(word, other)  # noqa: E731
    others = sorted((other for other in words if meaning.key(other) != meaning.key(word)), key=near, reverse=True)
    return {other: near(other) for other in others[:NEIGHBOURS]}
