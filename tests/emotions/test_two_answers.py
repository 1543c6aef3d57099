"""Completions with two answers: written, read back, told from broken ones, and read in both modes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.emotions.thinking import Parsed, format_completion, parse
from mer_r1.emotions.two_answers import first_answer_end, format_twice, parse_twice, read_completion

WHOLE = "<answer> happy </answer><think> But the voice shakes. </think><answer> happy, afraid </answer>"
WORD = st.sampled_from(["happy", "sad", "ill at ease", "proud", "worn out"])


@given(st.lists(WORD, min_size=1, unique=True), st.sampled_from(["A smile.", "x < y"]), st.lists(WORD, min_size=1))
def test_what_is_written_is_read_back(first: list[str], reasoning: str, final: list[str]) -> None:
    found = parse_twice(format_twice(first, reasoning, final))
    assert (found.first, found.reasoning, found.final) == (tuple(first), reasoning, tuple(dict.fromkeys(final)))
    assert found.well_formed
    assert found.repeats == (len(set(final)) < len(final))


@pytest.mark.parametrize(
    ("completion", "first", "final", "well_formed"),
    [
        (WHOLE, ("happy",), ("happy", "afraid"), True),
        (f" {WHOLE}\n", ("happy",), ("happy", "afraid"), True),
        ("<answer> happy </answer>", ("happy",), (), False),  # one answer: nothing of it counts as final
        ("<answer> happy </answer><think> But the", ("happy",), (), False),  # cut short
        ("<answer> happy </answer><think> But </think><answer> sad, af", ("happy",), ("sad", "af"), False),
        (WHOLE + " indeed", ("happy",), ("happy", "afraid"), False),
        ("So: " + WHOLE, ("happy",), ("happy", "afraid"), False),
        (WHOLE + "<answer> calm </answer>", ("happy",), ("calm",), False),  # a third answer
        ("<think> hm </think><answer> sad </answer>", ("sad",), (), False),  # the other form
        ("<ANSWER> sad </ANSWER><think>x</think><answer> calm </answer>", ("sad",), ("calm",), False),
        ("happy", (), (), False),
        ("", (), (), False),
    ],
)
def test_forms(completion: str, first: tuple[str, ...], final: tuple[str, ...], well_formed: bool) -> None:
    found = parse_twice(completion)
    assert (found.first, found.final, found.well_formed) == (first, final, well_formed)


def test_the_form_of_one_answer_is_read_as_ever() -> None:
    text = format_completion("A smile.", ["happy"])
    assert read_completion(text) == parse(text)
    assert read_completion(text, "fast", "once") == parse(text)


def test_two_answers_are_read_by_mode() -> None:
    assert read_completion(WHOLE, "slow", "twice") == Parsed(
        "But the voice shakes.", "happy, afraid", ("happy", "afraid"), True
    )
    alone = WHOLE[: first_answer_end(WHOLE)]
    assert alone == "<answer> happy </answer>"
    assert read_completion(alone, "fast", "twice") == Parsed("", "happy", ("happy",), True)
    assert not read_completion("<answer> happy", "fast", "twice").well_formed
    assert not read_completion("Well <answer> happy </answer>", "fast", "twice").well_formed
    assert read_completion(alone, "slow", "twice").labels == ()


@given(st.lists(st.sampled_from(["<answer>", "</answer>", "<think>", "</think>", " happy", ",", "x"])).map("".join))
def test_reading_never_fails(text: str) -> None:
    found = parse_twice(text)
    assert not (found.well_formed and read_completion(text, "slow", "once").well_formed)  # no text has both forms
