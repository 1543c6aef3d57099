"""The subtitles: sentences from a small grammar, several hundred to several thousand per theme.

A hash of its words (without an opener such as "well,") assigns each sentence to one split, so training, validation and
test never share a sentence; they share words and phrases.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mer_r1.data.jsonl import read_object
from mer_r1.errors import UserError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
PERSONS: dict[Split, int] = {"train": 64, "val": 12, "test": 24}
"""Number of persons (an identity with a voice) per split, unless a corpus asks for more in training."""
_SHARES: dict[Split, float] = {"train": 0.7, "val": 0.1, "test": 0.2}
_SLOT = re.compile(r"\{(\w+)\}")
_QUESTION = re.compile(r"(where|why|what|who|how does|is that|wait, why|did|do you|would|excuse me, may)\b")
_LONGEST, _SHORTEST = 9, 4
_OPENED = 0.3


def split_of(sentence: str) -> Split:
    """The split of a sentence, from a hash of its words; the same on every machine.

    >>> split_of("the weather was mild today") == split_of("The weather was mild today.")
    True
    """
    words = " ".join(re.findall(r"[a-z']+", _without_opener(sentence.lower())))
    place = int.from_bytes(hashlib.blake2b(words.encode(), digest_size=4).digest(), "big") / 2**32
    for split in SPLITS:
        place -= _SHARES[split]
        if place < 0:
            return split
    return SPLITS[-1]


def sample_sentence(theme: str, split: Split, rng: np.random.Generator) -> str:
    """A sentence of 4 to 10 words about `theme` that belongs to `split`.

    Raises:
        UserError: if the theme or split is unknown.
    """
    grammar = _grammar()
    if theme not in grammar["themes"] or split not in SPLITS:
        raise UserError(f"sentence: unknown theme {theme!r} or split {split!r} (splits: {', '.join(SPLITS)})")
    rows = grammar["themes"][theme]
    weights = _pattern_weights(theme)
    while True:
        pattern = rows["patterns"][int(rng.choice(len(weights), p=weights))]
        sentence = _fill(pattern, rows, grammar["shared"], rng)
        opener = grammar["openers"][int(rng.integers(len(grammar["openers"])))] if rng.random() < _OPENED else ""
        if _SHORTEST <= len(f"{opener} {sentence}".split()) <= _LONGEST and split_of(sentence) == split:
            return _punctuate(sentence, opener)


@lru_cache(maxsize=32)
def _pattern_weights(theme: str) -> npt.NDArray[np.float64]:
    """Probability of each pattern: proportional to the square root of its number of fillings."""
    grammar = _grammar()
    rows = grammar["themes"][theme]
    sizes = [
        np.prod([len(rows.get(slot) or grammar["shared"][slot]) for slot in _SLOT.findall(pattern)])
        for pattern in rows["patterns"]
    ]
    weights = np.sqrt(np.array(sizes, dtype=np.float64))
    return weights / weights.sum()


def _without_opener(sentence: str) -> str:
    opener = next((opener for opener in _grammar()["openers"] if sentence.startswith(opener + " ")), "")
    return sentence[len(opener) :]


@lru_cache(maxsize=1)
def _grammar() -> dict[str, Any]:
    return read_object(Path(__file__).with_name("sentences.json"))


def _fill(pattern: str, own: Mapping[str, list[str]], shared: Mapping[str, list[str]], rng: np.random.Generator) -> str:
    def fill(match: re.Match[str]) -> str:
        fillers = own.get(match[1]) or shared[match[1]]
        return fillers[int(rng.integers(len(fillers)))]

    return _SLOT.sub(fill, pattern)


def _punctuate(sentence: str, opener: str) -> str:
    mark = "?" if _QUESTION.match(sentence) else "."
    whole = f"{opener} {sentence}".strip()
    return whole[0].upper() + whole[1:] + mark
