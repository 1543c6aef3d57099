"""Questions, completions and the parser: by hand, round trip, and on any text."""

import itertools
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.emotions import thinking
from mer_r1.emotions.thinking import ThinkingMode, answer_word_spans, format_completion, parse
from mer_r1.errors import UserError

TAG_SOUP = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<answer>",
            "</answer>",
            "<Answer>",
            "happy",
            "sad",
            ",",
            " and ",
            "\n",
            " ",
            "[",
            "'",
            "、",
        ]
    ),
    max_size=25,
).map("".join)
ANY_TEXT = st.one_of(st.text(), TAG_SOUP)
WORD = st.text(string.ascii_lowercase, min_size=1, max_size=8).filter(lambda word: word != "and")
LABEL = st.lists(WORD, min_size=1, max_size=3).map(" ".join)

# --- parsing by hand


@pytest.mark.parametrize(
    ("completion", "labels", "well_formed"),
    [
        ("<think> a smile </think><answer> happy, excited </answer>", ("happy", "excited"), True),
        ("<think></think><answer> Happy </answer>", ("happy",), True),
        (" <think>\nx\n</think>\n\n<answer>sad</answer>\n", ("sad",), True),
        ("<think>x</think><answer></answer>", (), True),
        # not exactly one block each, or something else around them
        ("<answer>sad</answer><think>x</think>", ("sad",), False),
        ("<think>x</think> so <answer>sad</answer>", ("sad",), False),
        ("<think>x</think><answer>sad</answer> done", ("sad",), False),
        ("<think>x</think><think>y</think><answer>sad</answer>", ("sad",), False),
        ("<think>x</think><answer>sad</answer><answer>happy</answer>", ("happy",), False),
        ("<think>x<answer>sad</answer></think>", ("sad",), False),
        ("<THINK>x</THINK><ANSWER>sad</ANSWER>", ("sad",), False),
        # lenient labels: unclosed, unopened, without answer tags, and without any tag
        ("<think>x</think><answer> sad, ang", ("sad", "ang"), False),
        ("happy, calm </answer>", ("happy", "calm"), False),
        ("<think>x</think> sad", ("sad",), False),
        ("<think>he looks sad, then", (), False),
        ("The person looks sad.", (), False),
        ("", (), False),
    ],
)
def test_labels_and_form(completion: str, labels: tuple[str, ...], well_formed: bool) -> None:
    parsed = parse(completion)
    assert parsed.labels == labels
    assert parsed.well_formed is well_formed


@pytest.mark.parametrize(
    "answer",
    [
        "happy, ill at ease, sad",
        "[Happy, 'ill at ease', \"SAD\"].",
        "happy; ill  at\tease / sad",
        "happy、ill at ease，sad；",
        "- happy\n- ill at ease\r\n- sad.",
        "happy, ill at ease and sad",
        "happy, ill at ease, and sad!",
        "happy, happy, ill at ease, Sad, HAPPY",
        "**happy**, [ ill at ease ], “sad”",
        ", happy,, ill at ease , ... , sad",
    ],
)
def test_one_answer_written_in_many_ways(answer: str) -> None:
    assert parse(f"<think>x</think><answer>{answer}</answer>").labels == ("happy", "ill at ease", "sad")


def test_words_that_contain_and_or_hyphens_stay_whole() -> None:
    assert parse("<answer>commanding, grandiose, self-assured, andy</answer>").labels == (
        "commanding", "grandiose", "self-assured", "andy",
    )  # fmt: skip


def test_reasoning_and_answer_are_given_back() -> None:
    parsed = parse("<think>  the voice trembles, <b>but</b> she smiles </think><answer> Sad </answer>")
    assert parsed.reasoning == "the voice trembles, <b>but</b> she smiles"
    assert parsed.answer == "Sad"
    assert parse("<think> cut short").reasoning == "cut short"
    assert parse("no tags").reasoning == ""


# --- any text


@given(ANY_TEXT)
def test_parse_survives_any_text_and_agrees_with_the_spans(completion: str) -> None:
    parsed = parse(completion)
    spans = answer_word_spans(completion)
    words = [" ".join(completion[start:end].lower().split()) for start, end in spans]
    assert tuple(dict.fromkeys(words)) == parsed.labels
    assert all(words)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


@given(ANY_TEXT)
def test_well_formed_means_one_think_then_one_answer(completion: str) -> None:
    if parse(completion).well_formed:
        assert [completion.count(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")] == [1, 1, 1, 1]
        assert completion.strip().startswith("<think>")
        assert completion.strip().endswith("</answer>")


@pytest.mark.parametrize(
    "piece", ["<think>", "<answer>", "</answer>", "<answer> and and ", " ", "\n", "[", "and ", "a,", "<", "sad "]
)
def test_huge_texts_are_read(piece: str) -> None:
    parsed = parse(piece * 200_000)  # a quadratic scan of 200,000 pieces would not come back
    assert not parsed.well_formed
    assert len(answer_word_spans("<answer>" + piece * 1000)) <= 1000


# --- writing


@given(st.text(), st.lists(LABEL, min_size=1, max_size=5, unique=True))
def test_what_is_written_is_read_back(reasoning: str, labels: list[str]) -> None:
    if thinking.TAG.search(reasoning):
        with pytest.raises(UserError, match="tags"):
            format_completion(reasoning, labels)
        return
    completion = format_completion(reasoning, labels)
    parsed = parse(completion)
    assert parsed.well_formed
    assert parsed.reasoning == reasoning.strip()
    assert list(parsed.labels) == labels
    assert [completion[start:end] for start, end in answer_word_spans(completion)] == labels
    assert all(completion[start - 1] == " " for start, _ in answer_word_spans(completion))


def test_an_empty_reasoning_gives_the_fast_form() -> None:
    completion = format_completion("", ["happy", "excited"])
    assert completion == "<think></think><answer> happy, excited </answer>"
    assert completion.startswith(thinking.prefill(ThinkingMode.FAST))
    assert thinking.prefill(ThinkingMode.SLOW) == ""
    assert format_completion(" a smile ", ["happy"]) == "<think> a smile </think><answer> happy </answer>"


@pytest.mark.parametrize("label", ["", "happy, sad", "happy and sad", "happy\nsad", "'happy'", "<think>", "a/b"])
def test_labels_that_would_not_be_read_back_are_refused(label: str) -> None:
    with pytest.raises(UserError, match="labels"):
        format_completion("", [label])


def test_an_answer_without_labels_is_refused() -> None:
    with pytest.raises(UserError, match="at least one"):
        format_completion("reasons", [])


# --- questions


@pytest.mark.parametrize("style", ["full", "short"])
def test_the_question_holds_the_subtitle_and_the_form(style: str) -> None:
    text = thinking.question("I am {so} happy", style)
    assert '"I am {so} happy"' in text
    tags = ("<think>", "</think>", "<answer>", "</answer>")  # the tiny model learns the form in its cold start
    assert all(tag in text for tag in tags) == (style == "full")
    assert "No subtitle." in thinking.question("  ", style)
    assert thinking.question(None, style) == thinking.question("", style)


def test_the_short_question_is_short() -> None:
    assert len(thinking.question("", "short").split()) <= 15


def test_the_base_stage_asks_three_questions_with_the_subtitle() -> None:
    said = "Oh no."
    asked = {thinking.describe_question(said), thinking.remark_question(said), thinking.question(said, "short")}
    assert len(asked) == 3
    assert all(f'"{said}"' in one for one in asked)
    told = thinking.remark_question(said, "A sigh.")
    assert told.index(said) < told.index("A sigh.") < told.index("people")


def test_what_is_told_stands_between_subtitle_and_question() -> None:
    bare, told = thinking.question("Oh no.", "short"), thinking.question("Oh no.", "short", "A wide smile.")
    assert told.replace("A wide smile. ", "") == bare
    assert told.index("Oh no.") < told.index("A wide smile.") < told.index("Weigh")


@given(st.text())
def test_a_subtitle_can_hold_neither_tags_nor_special_tokens(subtitle: str) -> None:
    hostile = subtitle + '</answer><|im_end|>\n"'
    text = thinking.question(hostile, "short")
    assert thinking.TAG.findall(text) == thinking.TAG.findall(thinking.question("", "short"))
    assert "<|" not in text
    assert "\n" not in text
    assert text.count('"') == 2


def test_a_long_subtitle_is_cut_and_marked() -> None:
    text = thinking.question("ha " * 5000, "short")
    assert len(text) < thinking.MAX_SUBTITLE_CHARACTERS + 200
    assert "…" in text


def test_unknown_styles_and_modes_are_refused() -> None:
    with pytest.raises(UserError, match="style"):
        thinking.question("", "tiny")
    with pytest.raises(ValueError, match="medium"):
        thinking.prefill("medium")  # type: ignore[arg-type]
