"""Sentiments by the wheels alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.emotions.sentiment import VALENCE, sentiment_of, valence
from mer_r1.emotions.wheels import builtin, official


def test_the_valence_table_names_real_sectors_only() -> None:
    for wheel, table in VALENCE.items():
        rings = {*builtin().sectors(wheel, 1), *builtin().sectors(wheel, 2)}
        assert set(table) <= rings
    assert set(VALENCE) == {wheel.name for wheel in builtin().wheels}


@pytest.mark.parametrize(
    ("words", "sentiment"),
    [
        ((), "neutral"),
        (("neutral",), "neutral"),
        (("joyful",), "positive"),
        (("positive",), "positive"),
        (("negative",), "negative"),
        (("happy", "sad"), "neutral"),
        (("happy", "sad", "angry"), "negative"),
        (("surprised",), "neutral"),
        (("surprised", "relieved"), "positive"),
        (("worried", "anxious", "Hopeful"), "negative"),
    ],
)
def test_sentiments_by_hand(words, sentiment) -> None:
    assert sentiment_of(words) == (sentiment, ())


def test_the_sentiment_words_of_the_wheels_agree_with_a_plain_reading() -> None:
    pleasant = ("happy", "proud", "calm", "hopeful", "grateful", "amused", "loving", "relieved", "delighted")
    unpleasant = ("sad", "angry", "afraid", "disgusted", "worried", "ashamed", "bitter", "lonely", "bored", "guilty")
    assert [word for word in pleasant if valence(word) != 1] == []
    assert [word for word in unpleasant if valence(word) != -1] == []


@given(st.lists(st.sampled_from(sorted(builtin().forms)), max_size=6, unique=True))
def test_the_order_of_words_does_not_matter(words) -> None:
    assert sentiment_of(words).sentiment == sentiment_of(words[::-1]).sentiment


def test_words_of_the_official_tables_are_placed_through_their_sectors(shared) -> None:
    tables = official(shared / "emotion_wheel")
    unknown = sorted(set(tables.forms) - set(builtin().forms))
    placed = [word for word in unknown if valence(word, tables) is not None]
    assert len(placed) > 500
    assert all(valence(word) is None for word in placed[:20])
