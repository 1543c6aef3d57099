"""Sentiment of emotion words (positive, negative or neutral) by the wheels alone, without a language model.

MER-UniBench asks a language model to turn a list of emotion words into a sentiment. The wheels hold most of what is
needed: every sector is pleasant, unpleasant, or neither. A word counts +1, -1 or 0 by the majority of the built-in
wheels that have it; a word that only the official tables know counts by the names of its sectors there. The words of a
list vote. Unlike a sampled reply, the result is reproducible.

The valence of each sector is our reading of the wheels' publications (`VALENCE`).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mer_r1.emotions.official_wheels import normalise
from mer_r1.emotions.wheels import LEVELS, Taxonomy, builtin

SENTIMENTS = ("positive", "negative", "neutral")
_PLEASANT, _UNPLEASANT = 1, -1

VALENCE: Mapping[str, Mapping[str, int]] = {
    "plutchik": {
        **dict.fromkeys(("joy", "trust", "hope", "optimism"), _PLEASANT),
        **dict.fromkeys(("fear", "sadness", "disgust", "anger"), _UNPLEASANT),
    },
    "ekman": {
        **dict.fromkeys(("enjoyment",), _PLEASANT),
        **dict.fromkeys(("anger", "contempt", "disgust", "fear", "sadness", "self-reproach"), _UNPLEASANT),
    },
    "shaver": {**dict.fromkeys(("love", "joy"), _PLEASANT), **dict.fromkeys(("anger", "sadness", "fear"), _UNPLEASANT)},
    "russell": {
        **dict.fromkeys(("pleasure", "excitement", "contentment"), _PLEASANT),
        **dict.fromkeys(("distress", "misery", "depression", "tense", "alarmed", "angry"), _UNPLEASANT),
    },
    "earl": {
        **dict.fromkeys(("lively positive", "caring", "positive thoughts", "quiet positive"), _PLEASANT),
        **dict.fromkeys(
            ("forceful negative", "helpless negative", "negative thoughts", "passive negative"), _UNPLEASANT
        ),
        "agitation": _UNPLEASANT,
    },
}
"""Built-in wheel -> sector of ring 1 or 2 -> +1 pleasant, -1 unpleasant; a sector that is missing is neither."""


class Verdict(NamedTuple):
    """The sentiment of some words: "positive", "negative" or "neutral", and the words that are on no wheel."""

    sentiment: str
    unplaced: tuple[str, ...]


def valence(word: str, taxonomy: Taxonomy | None = None) -> int | None:
    """Whether a word is pleasant (+1), unpleasant (-1) or neither (0); None where it is on no wheel.

    Args:
        word: an emotion word; case and outer blanks do not matter.
        taxonomy: further wheels for words that the built-in ones do not know, such as the official tables.

    >>> valence("Thrilled"), valence("gloomy"), valence("surprised"), valence("table")
    (1, -1, 0, None)
    """
    own = builtin()
    if normalise(word) == "neutral":
        return 0
    if normalise(word) in own.forms:
        return _sign(sum(_sector_valence(own, word, wheel.name) for wheel in own.wheels))
    if taxonomy is None or normalise(word) not in taxonomy.forms:
        return None
    sectors = {taxonomy.sector(word, wheel, level) for wheel in taxonomy.wheels for level in LEVELS}
    votes = [found for name in sectors - {None, normalise(word)} if (found := valence(str(name))) is not None]
    return _sign(sum(votes)) if votes else None


def sentiment_of(labels: Iterable[str], taxonomy: Taxonomy | None = None) -> Verdict:
    """The sentiment of the majority of the words; a tie, or no word at all, is neutral (as `[]` is in MER-UniBench).

    Args:
        labels: emotion words.
        taxonomy: see `valence`.

    >>> sentiment_of(["bitter", "disappointed", "amused", "qwerty"])
    Verdict(sentiment='negative', unplaced=('qwerty',))
    """
    votes = {label: valence(label, taxonomy) for label in labels}
    total = _sign(sum(vote for vote in votes.values() if vote is not None))
    names = {_PLEASANT: "positive", _UNPLEASANT: "negative", 0: "neutral"}
    return Verdict(names[total], tuple(label for label, vote in votes.items() if vote is None))


def _sector_valence(own: Taxonomy, word: str, wheel: str) -> int:
    """Valence of the word's sector on one wheel: the outer ring's where the table names it, else the inner ring's."""
    table = VALENCE[wheel]
    for level in reversed(LEVELS):
        if (sector := own.sector(word, wheel, level)) in table:
            return table[str(sector)]
    return 0


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
