"""Answers in every form that models use: the right words, or nothing that could be scored by accident."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.emotions.answers import answer_words, rule_doubt, unknown_words
from mer_r1.emotions.thinking import format_completion, parse
from mer_r1.emotions.wheels import builtin

HAPPY_SAD = [
    "1. happy\n2. sad",
    "1) happy\n2) sad",
    "1. happy, 2. sad",
    "Emotions: happy, sad",
    "happy | sad",
    "happy + sad",
    "happy & sad",
    "happy or sad",
    "happy (0.8), sad (0.2)",
    "happy: 0.8, sad: 0.2",
    '{"emotions": ["happy", "sad"]}',
    "happy<br>sad",
    "happy, sad<|im_end|>",
    "Happy. Sad.",
    "happy,\u200bsad",
    "(A) happy, (B) sad",
    "[happy, sad]",
    "['happy', 'sad']",
    '["Happy", "Sad"]',
    "{'happy': 0.8, 'sad': 0.2}",
    '{"happy": 0.8, "sad": 0.2}',
    '{"emotions":[{"label":"happy","score":0.8},{"label":"sad","score":0.1}]}',
    "A. happy\nB. sad",
    "A) happy B) sad",
    "(D) happy, sad",
    "- happy\n- sad",
    "* happy\n* sad",
    "**happy**, **sad**",
    "`happy`, `sad`",
    "\\boxed{happy, sad}",
    "\\boxed{happy}, \\boxed{sad}",
    "$\\boxed{\\text{happy}}$, sad",
    "happy\uff1bsad",
    "happy\u3001sad",
    "happy\uff0csad",
    "\u3010happy\uff0csad\u3011",
    "\u2460 happy \u2461 sad",
    "happy\\nsad",
    "happy 0.8, sad 0.2",
    "happy=0.8; sad=0.2",
    "happy 80%, sad 20%",
    "80% happy, 20% sad",
    "happy (80%), sad (20 %)",
    "\U0001f60a happy \U0001f622 sad",
    "<b>happy</b>, <i>sad</i>",
    "<ul><li>happy</li><li>sad</li></ul>",
    "happy&nbsp;&amp; sad",
    "The emotions are happy and sad",
    "The person's emotions are: happy, sad.",
    "Answer: happy, sad",
    "Final answer: happy, sad",
    "Primary emotion: happy\nSecondary emotion: sad",
    "# Emotions\n- happy\n- sad",
    '```json\n{"emotions": ["happy", "sad"]}\n```',
    "```\nhappy, sad\n```",
    "happy/sad",
    "happy, and sad!",
    "HAPPY -> SAD",
    "happy \u2192 sad",
    "happy \u2013 sad",
    "happy | sad</s>",
    "happy, sad<end_of_turn>",
    "\uff48\uff41\uff50\uff50\uff59, sad",
    "happy\uff080.8\uff09, sad",
    "happy\u2028sad",
    "1: happy, 2: sad",
    "happy; sad;",
    "happy (score: 0.8), sad (confidence 0.3)",
    "Emotion: happy, Emotion: sad",
    "happy\r\nsad",
    "\u201chappy\u201d, \u2018sad\u2019",
    "happy, sad, happy",
    "\u2022happy \u2022sad",
    "Option A: happy, Option B: sad",
    "emotions = [happy, sad]",
    "happy,sad,",
    "{happy, sad}",
    "<emotion>happy</emotion><emotion>sad</emotion>",
    "happy & sad & ",
    "1.happy 2.sad",
    "happy (8/10), sad (2/10)",
    "happy: 8/10\nsad: 2/10",
    "happy as well as sad",
    "happy~sad",
    "- **Happy**\n- **Sad**",
    'Emotion labels: ["happy", "sad"]',
    "&lt;b&gt;happy&lt;/b&gt; sad",
    "\ufeffhappy, sad",
]
UNREAD = [
    "She is happy but tired",
    "D",
    "(D)",
    "B.",
    "happy but sad",
    "not happy, sad",
    "\u5f00\u5fc3",
    "I cannot tell",
    "happy (because she smiles)",
    "happy: she smiles",
    "joy - she smiles",
    "\U0001f60a",
    "...",
    "happy sad",
    "N/A",
    '{"reason": "she smiles and laughs"}',
    "Speaker 1: happy",
    "42",
    "1.",
    "<br>",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "no emotion",
    "happy with a hint of sadness",
    "rad\u043e\u0441\u0442\u044c",
    "happy\tsad",
]


@pytest.mark.parametrize("answer", HAPPY_SAD)
def test_the_words_are_found_in_any_form(answer: str) -> None:
    assert answer_words(answer) == ("happy", "sad")


@pytest.mark.parametrize("answer", UNREAD)
def test_what_is_no_list_of_words_is_not_read(answer: str) -> None:
    assert answer_words(answer) is None


def test_words_that_hold_separators_or_are_several_stay_whole() -> None:
    answer = "ill at ease, self-assured, commanding, Very Happy, mixed feelings, grandiose"
    assert answer_words(answer) == tuple(answer.lower().split(", "))


def test_an_empty_answer_has_no_words() -> None:
    assert [answer_words(answer) for answer in ("", " \n", "[]", "{}")] == [()] * 4


def test_a_word_with_a_score_of_zero_is_not_named() -> None:
    assert answer_words('{"happy": 0.9, "sad": 0.0, "confidence": 0.7}') == ("happy",)


def test_every_word_of_the_wheels_is_read() -> None:
    assert [form for form in builtin().forms if answer_words(form) != (form,)] == []


@given(st.lists(st.sampled_from(sorted(builtin().forms)), min_size=1, max_size=6, unique=True))
def test_an_answer_in_form_is_read_as_training_reads_it(labels: list[str]) -> None:
    answer = parse(format_completion("Because.", labels)).answer
    assert answer_words(answer) == parse(format_completion("Because.", labels)).labels


@given(
    st.text()
    | st.lists(st.sampled_from(["happy", "sad", "1. ", "(", ")", ":", "0.8", ",", "<", ">", "\\n", "A)"])).map("".join)
)
def test_no_answer_breaks_the_reader(answer: str) -> None:
    words = answer_words(answer)
    assert words is None or all(0 < len(word) <= 60 and word == word.strip().lower() for word in words)


@pytest.mark.parametrize(
    "piece", ["<think>", " ", "\n", "[", "and ", "a,", "<", "(", "\\boxed{", "1. ", "(0.8", "&lt;", '{"a":']
)
def test_long_answers_come_back(piece: str) -> None:
    answer_words(piece * (19_000 // len(piece)))  # a quadratic scan would not come back
    assert answer_words("happy, " * 20_000) is None


def test_what_no_wheel_knows_is_named() -> None:
    assert unknown_words(["Happy", "neutral", "heureux"], builtin()) == ["heureux"]
    assert rule_doubt(["heureux"], builtin()) == "no wheel knows any of its words"
    assert rule_doubt(["heureux", "sad"], builtin()) == "no wheel knows heureux"
    assert (
        rule_doubt(["sad", "neutral"], builtin()) is rule_doubt(["heureux"], None) is rule_doubt([], builtin()) is None
    )
