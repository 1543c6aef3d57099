"""Anchors: which token is the first of each word of an answer, and which tokens begin words of which category."""

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import SMALL

from mer_r1.emotions.meaning import Meaning, clustered
from mer_r1.emotions.thinking import FAST_PREFILL, answer_word_spans, format_completion
from mer_r1.emotions.wheels import builtin, from_tables
from mer_r1.lab.scenes.story.world import world
from mer_r1.model.tiny import tiny
from mer_r1.rl.anchors import (
    AnswerTokens,
    _first_tokens,
    answer_tokens,
    category_mask,
    category_tokens,
    counted_anchors,
    terms_of,
)
from mer_r1.rl.method import Method
from mer_r1.rl.rollout import Rollouts, anchor_rows


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A byte-level BPE of the kind and size that the tiny policy learns."""
    texts = [format_completion("A wide smile.", [form]) for form in builtin().forms]
    return tiny(texts, replace(SMALL, vocab_size=2048)).tokenizer


END = -1
"""The token that ends a completion, for `Characters`."""


class Characters:
    """A tokenizer with a token for every character: positions can be counted by hand."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens, "as rewards and records read a completion"
        return "".join(chr(token) for token in ids if token != END)

    def batch_decode(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        return [self.decode(row, skip_special_tokens) for row in rows]


def found(text: str, prefilled: str = "") -> AnswerTokens:
    return answer_tokens(Characters().encode(text), Characters(), prefilled)


# --- where the words of an answer begin -------------------------------------------------------------------------------


def test_anchors_by_hand() -> None:
    # <think> is 7 characters, " a " 3, </think> 8, <answer> 8: the answer begins at 26, "sad" at 27, "shy" at 32.
    text = "<think> a </think><answer> sad, shy </answer>"
    assert found(text) == AnswerTokens(26, [27, 32], ["sad", "shy"])
    assert text[26:30] == " sad"


def test_a_fast_completion_goes_on_after_its_prefill() -> None:
    assert found(" sad, shy </answer>", FAST_PREFILL) == AnswerTokens(0, [1, 6], ["sad", "shy"])


def test_labels_of_several_words_and_odd_blanks() -> None:
    # An anchor is where a label begins, not each of its words; blanks and brackets around a label are no part of it.
    #       0         1         2         3         4
    #       0123456789012345678901234567890123456789012345
    text = "<answer>ill at ease ,,  [happy],\n\tSAD and shy;sad"
    assert text[8:11] == "ill"
    starts = [8, text.index("happy"), text.index("SAD"), text.index("shy"), text.rindex("sad")]
    assert found(text) == AnswerTokens(8, starts, ["ill at ease", "happy", "SAD", "shy", "sad"])


def test_the_token_that_ends_a_completion_is_no_word() -> None:
    encode = Characters().encode
    for text in ("<answer>", "<answer> ", "<think> a </think><answer> ", ""):
        assert answer_tokens([*encode(text), END], Characters()).anchors == [], text
    assert answer_tokens([*encode("<answer> sad"), END], Characters()) == AnswerTokens(8, [9], ["sad"])
    assert answer_tokens([*encode("<answer> sad, "), END], Characters()) == AnswerTokens(8, [9], ["sad"])
    assert answer_tokens([END, *encode("<answer> sad")], Characters()) == AnswerTokens(9, [10], ["sad"])


def test_the_end_token_of_the_tiny_policy_is_no_word_either(tokenizer: Any) -> None:
    for text, count in (("<think> a </think><answer>", 0), ("<answer> sad,", 1), ("<answer> sad </answer>", 1)):
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        anchors = answer_tokens(ids, tokenizer).anchors
        assert len(anchors) == count, text
        assert len(ids) - 1 not in anchors


@pytest.mark.parametrize(
    "text", ["", "<think> sad </think>", "<think> sad", "<answer></answer>", "<answer> , </answer>"]
)
def test_an_answer_without_words_has_no_anchor(text: str) -> None:
    assert found(text).anchors == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think> grim </think><ANSWER> sad </ANSWER>", " sad"),  # the parser reads tags in any case
        ("<think> grim </think> sad", " sad"),  # no answer block: what follows the reasoning is read
        ("<think> grim </think> sad </answer>", " sad"),
        ("<think> grim <answer> sad", " sad"),
        ("<answer> shy </answer><think> grim </think><answer> sad </answer>", " sad"),
    ],
)
def test_the_answer_of_a_malformed_completion_begins_behind_its_reasoning(text: str, answer: str) -> None:
    # The fast confidence removes everything before `start`: reasoning left in it would not be fast.
    tokens = found(text)
    assert text[tokens.start : tokens.anchors[0] + 3] == answer


def test_repeated_words_are_anchors_of_their_own() -> None:
    assert len(found("<answer> sad, sad </answer>").anchors) == 2


words = st.sampled_from(["happy", "sad", "ill at ease", "schadenfreude", "naïve", "悲しい", "frustrated", "🙂 glad"])
answers = st.lists(words, min_size=1, max_size=4)


@given(labels=answers, reasoning=st.text(st.characters(exclude_characters="<>", codec="utf-8"), max_size=30))
@settings(deadline=None)
def test_each_anchor_is_the_token_that_brings_the_first_character_of_its_word(
    tokenizer: Any, labels: list[str], reasoning: str
) -> None:
    text = format_completion(reasoning, labels)
    ids = tokenizer(text)["input_ids"]
    tokens = answer_tokens(ids, tokenizer)
    spans = answer_word_spans(text)
    assert len(tokens.anchors) == len(spans)
    assert tokens.words == [text[start:end] for start, end in spans]
    for anchor, (start, _) in zip(tokens.anchors, spans, strict=True):
        before = tokenizer.decode(ids[:anchor], skip_special_tokens=True)
        after = tokenizer.decode(ids[: anchor + 1], skip_special_tokens=True)
        assert len(before) <= start < len(after)
    assert reasoning.strip() not in tokenizer.decode(ids[tokens.start :]) or len(reasoning.strip()) < 3


@given(ids=st.lists(st.integers(0, 600), max_size=40))
@settings(deadline=None)
def test_any_tokens_can_be_read(tokenizer: Any, ids: list[int]) -> None:
    for prefilled in ("", FAST_PREFILL):
        tokens = answer_tokens(ids, tokenizer, prefilled)
        assert tokens.anchors == sorted(set(tokens.anchors))
        assert all(0 <= tokens.start <= anchor < len(ids) for anchor in tokens.anchors)


def test_the_words_of_the_scenes_begin_with_tokens_of_their_categories(tokenizer: Any) -> None:
    """The whole chain: an answer, its anchor, and the tokens that stand for the categories of its word."""
    taxonomy = builtin()
    tokens, names = category_tokens(taxonomy, tokenizer)
    owners: dict[int, set[int]] = {}
    for token, category in zip(tokens.token_ids.tolist(), tokens.category.tolist(), strict=True):
        owners.setdefault(token, set()).add(category)
    vocabulary = sorted({word for emotion in world().emotions.values() for word in emotion.words})
    ambiguous = []
    for word in vocabulary:
        ids = tokenizer(format_completion("A face.", [word]))["input_ids"]
        (anchor,) = answer_tokens(ids, tokenizer).anchors
        gold = {index for index, held in enumerate(category_mask([word], taxonomy, names)) if held}
        placed = {names[index][0] for index in gold}  # where no wheel places the word, its token may stand for others
        stands_for = {index for index in owners.get(ids[anchor], set()) if names[index][0] in placed}
        assert stands_for <= gold, word
        if not stands_for:
            ambiguous.append(f"{word} ({tokenizer.decode([ids[anchor]])!r})")
    # A word whose first token also begins a word of another sector, as "joy" and "joyless", says nothing anywhere.
    assert len(ambiguous) <= len(vocabulary) // 5, ", ".join(ambiguous)


# --- which tokens begin words of which category -----------------------------------------------------------------------

TABLES = {
    "wheels": [
        {"name": "sides", "source": "made up", "sectors": {"good": {"joy": []}, "bad": {"fear": []}}},
        {"name": "whole", "source": "made up", "sectors": {"any": {"emotion": []}}},
    ],
    "families": {
        "joy": {"places": ["joy", "emotion"], "words": {"happy": ["happily"], "glad": []}},
        "fear": {"places": ["fear", "emotion"], "words": {"hapless": [], "afraid": []}},
    },
}


class Letters:
    """A tokenizer whose tokens are three characters, numbered as they are first seen."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[self[text[i : i + 3]] for i in range(0, len(text), 3)] for text in texts]}

    def __getitem__(self, piece: str) -> int:
        return self.ids.setdefault(piece, len(self.ids))


def test_first_tokens_with_and_without_a_blank_and_capitalised() -> None:
    letters = Letters()
    assert _first_tokens(["glad"], letters)["glad"] == {letters[piece] for piece in ("gla", "Gla", " gl", " Gl")}
    assert _first_tokens([], letters) == {}


def test_a_token_of_two_categories_of_one_partition_is_left_out() -> None:
    # "hap" begins happy (good) and hapless (bad): on the wheel "sides" it stands for neither; on "whole" there is only
    # one category, and it stands for that.
    letters = Letters()
    tokens, names = category_tokens(from_tables(TABLES), letters)
    assert names == [("sides", "good"), ("sides", "bad"), ("whole", "any")]
    assert tokens.partition.tolist() == [0, 0, 1]
    of = {name: set(tokens.token_ids[tokens.category == index].tolist()) for index, name in enumerate(names)}
    assert of["sides", "good"] == {letters[piece] for piece in ("gla", "Gla", " gl", " Gl")}
    assert of["sides", "bad"] == {letters[piece] for piece in ("afr", "Afr", " af", " Af")}
    assert letters["hap"] not in of["sides", "good"] | of["sides", "bad"]
    assert letters["hap"] in of["whole", "any"]


COLLISIONS = {"plutchik": 280, "ekman": 228, "shaver": 250, "russell": 275, "earl": 273}
"""Tokens of the tiny tokenizer that begin words of several sectors of a wheel, and so stand for none of them there."""


def test_collisions_of_the_tiny_tokenizer(tokenizer: Any) -> None:
    """Shown with -s. Qwen's pre-tokeniser makes `>happy` one piece: hence the blank before each word of an answer."""
    taxonomy = builtin()
    tokens, names = category_tokens(taxonomy, tokenizer)
    counts = {}
    for wheel in taxonomy.wheels:
        words = {sector: taxonomy.forms_of(wheel, sector) for sector in taxonomy.sectors(wheel)}
        owners: dict[int, dict[str, list[str]]] = {}
        for sector, members in words.items():
            for word in members:
                for token in _first_tokens([word], tokenizer)[word]:
                    owners.setdefault(token, {}).setdefault(sector, []).append(word)
        shared = {token: found for token, found in owners.items() if len(found) > 1}
        counts[wheel.name] = len(shared)
        for token, found in sorted(shared.items()):
            examples = "; ".join(f"{sector}: {', '.join(members[:3])}" for sector, members in found.items())
            print(f"{wheel.name} {tokenizer.decode([token])!r} {examples}")  # noqa: T201
        used = {
            token
            for token, category in zip(tokens.token_ids.tolist(), tokens.category.tolist(), strict=True)
            if names[category][0] == wheel.name
        }
        assert used == set(owners) - set(shared)
    assert counts == COLLISIONS, "another tokenizer or other words: look at them (-s), then write the counts here"


def test_word_level_has_one_category_per_base_word() -> None:
    letters = Letters()
    tokens, names = category_tokens(from_tables(TABLES), letters, level="word")
    assert sorted(names) == [("words", word) for word in ("afraid", "glad", "hapless", "happy")]
    assert tokens.partition.tolist() == [0] * 4
    glad = names.index(("words", "glad"))
    assert letters["gla"] in tokens.token_ids[tokens.category == glad].tolist()
    assert letters["hap"] not in tokens.token_ids.tolist()  # happy and hapless are two categories now


def test_which_categories_hold_a_label() -> None:
    taxonomy = from_tables(TABLES)
    _, sectors = category_tokens(taxonomy, Letters())
    assert category_mask(["Happily "], taxonomy, sectors) == [True, False, True]
    assert category_mask(["unheard of"], taxonomy, sectors) == [False, False, False]
    _, words = category_tokens(taxonomy, Letters(), level="word")
    assert [name for name, held in zip(words, category_mask(["happily"], taxonomy, words), strict=True) if held] == [
        ("words", "happy")
    ]


def test_categories_need_not_be_emotions() -> None:
    """Any set-valued answer will do: here a chess player's candidate moves, by piece."""
    taxonomy = SimpleNamespace(
        wheels=[SimpleNamespace(name="pieces")],
        sectors=lambda _: ("knight", "rook"),
        forms_of=lambda _, piece: {"knight": ["Nf3", "Nc3"], "rook": ["Rd1"]}[piece],
    )
    tokens, names = category_tokens(taxonomy, Letters())  # type: ignore[arg-type]
    assert names == [("pieces", "knight"), ("pieces", "rook")]
    assert tokens.num_categories == 2


# --- which words count, and the terms of answers ----------------------------------------------------------------------

# On the wheel "sides" joy and fear are two categories, on "whole" one. "dull" is on no wheel.
JOY_FEAR = category_tokens(from_tables(TABLES), Letters())
NAN = math.nan


def read(*answers: list[str], slow: Any = None, fast: Any = None) -> Rollouts:
    """Rollouts with these words as answers, and confidences in good, bad | any at each word."""
    found = [AnswerTokens(0, list(range(len(words))), words) for words in answers]
    values = (None if table is None else torch.tensor(table) for table in (slow, fast))
    return Rollouts([], [], anchor_rows(found), *values, answers=found)


def counted(rule: str, *answers: list[str]) -> list[list[int]]:
    return counted_anchors(rule, from_tables(TABLES), JOY_FEAR, read(*answers)).int().tolist()


def test_mentions_are_counted_once_for_each_wheel() -> None:
    answers = ["dull", "happy", "glad", "afraid", "happy"], ["dull"], [], ["Afraid"]
    expected = [
        [0, 0, 0],  # dull is on no wheel
        [1, 1, 1],  # happy: good, any
        [0, 0, 0],  # glad: good again, any again
        [1, 1, 0],  # afraid: bad for the first time, any again
        [0, 0, 0],
        [0, 0, 0],  # the second answer
        [1, 1, 1],  # the fourth begins anew
    ]
    assert counted("mentions", *answers) == expected
    assert counted("first", *answers) == [[0] * 3, [1] * 3, *[[0] * 3] * 4, [1] * 3]
    assert counted("all", *answers) == [[1] * 3] * 7


@pytest.mark.parametrize("rule", Method.ALLOWED["anchors"])
def test_without_words_nothing_counts(rule: str) -> None:
    assert counted(rule, [], []) == []


@given(st.lists(st.lists(st.sampled_from(["happy", "glad", "afraid", "dull"]), max_size=5), min_size=1, max_size=4))
def test_repeating_a_word_adds_no_anchor_that_counts(answers: list[list[str]]) -> None:
    for rule in ("mentions", "first"):
        once = [row for row in counted(rule, *answers) if any(row)]
        again = [row for row in counted(rule, *(words + words for words in answers)) if any(row)]
        assert once == again


def test_the_words_have_to_be_there() -> None:
    rollouts = read(["happy"], slow=[[0.5, 0.25, 0.9]])
    rollouts.answers = []
    with pytest.raises(ValueError, match=r"expected the word of each of 1 anchors in rollouts.answers, got 0"):
        terms_of(Method(), from_tables(TABLES), JOY_FEAR, [["happy"]], rollouts)


SLOW = [[0.4, 0.1, 0.5], [0.2, 0.2, 0.8], [0.3, 0.3, 0.2]]
FAST = [[0.2, 0.2, 0.1], [0.1, 0.4, 0.3], [0.1, 0.3, 0.6]]
"""At "happy" and "afraid" of the first answer and "dull" of the second: good, bad | any."""


def terms(**choices: Any) -> tuple[Any, Any]:
    found = terms_of(
        Method(**choices),
        from_tables(TABLES),
        JOY_FEAR,
        [["glad"], ["glad"], ["glad"]],
        read(["happy", "afraid"], ["dull"], [], slow=SLOW, fast=FAST),
        torch.tensor([[0.9, 0.3, 0.5]] * 3),
    )
    return tuple(None if term is None else [round(value, 5) for value in term.tolist()] for term in found)


def log(value: float) -> float:
    return math.log(value)


@pytest.mark.parametrize(
    ("choices", "plus", "minus"),
    [
        # Conditional: good 0.8 and 0.5 of 1, bad 0.2 and 0.5, any 1. U: good 0.9, bad 0.6 | any 1.
        ({"calibration": "answer"}, [(0.9 + 1) / 2, NAN], [(0.9 / 1.5 + 1) / 2, NAN]),
        # Raw: U good 1 - 0.6 * 0.8, bad 1 - 0.9 * 0.8 | any 0.5, at the first word alone.
        ({"calibration": "answer", "conditional": False}, [(0.52 + 0.5) / 2, NAN], [(0.52 / 0.8 + 1) / 2, NAN]),
        ({"calibration": "answer", "anchors": "first"}, [(0.8 + 1) / 2, NAN], [(0.8 + 1) / 2, NAN]),
        # Every word: "dull" gives the second answer a term, 0.5 of each.
        ({"calibration": "answer", "anchors": "all"}, [0.95, (0.5 + 1) / 2], [0.8, (0.5 + 1) / 2]),
        # log 0.8 - log 0.5 on one wheel, nothing on the other; without the condition log 0.4 / 0.2 and log 0.5 / 0.1.
        ({"calibration": "reasoning"}, [log(1.6) / 2, NAN], None),
        ({"calibration": "reasoning", "conditional": False}, [(log(2) + log(5)) / 2, NAN], None),
        # "all" reads the first word, even one that no wheel places.
        ({"calibration": "reasoning", "anchors": "all"}, [log(1.6) / 2, log(0.5 / 0.25) / 2], None),
        # The reference has good 0.75, bad 0.25: 0.8 exceeds it.
        ({"calibration": "hinge"}, [0.0, NAN], [0.0, NAN]),
        ({"calibration": "hinge", "anchors": "all"}, [0.0, log(0.5 / 0.75) / 2], [0.0, log(0.25 / 0.5)]),
        ({"calibration": "hinge", "conditional": False}, [(log(0.4 / 0.9)) / 2, NAN], [0.0, NAN]),
        # Differences: good log 1.6 and log 0.5 / 0.2, bad log 0.5 / 0.2 and log 0.8 / 0.5, averaged over both words.
        (
            {"calibration": "difference"},
            [(log(1.6) + log(2.5)) / 4, NAN],
            [(log(2.5) + log(1.6)) / 2, NAN],
        ),
        (
            {"calibration": "difference", "conditional": False, "anchors": "first"},
            [(log(2) + log(5)) / 2, NAN],
            [log(2), NAN],
        ),
        ({"calibration": "difference", "confidence_clip": 0.1}, [0.1, NAN], [0.1, NAN]),
    ],
)
def test_terms_of_answers_by_hand(choices: dict[str, Any], plus: list[float], minus: list[float] | None) -> None:
    found = terms(**choices)
    assert found[0] == pytest.approx([*plus, NAN], abs=1e-5, nan_ok=True)
    assert found[1] == (None if minus is None else pytest.approx([*minus, NAN], abs=1e-5, nan_ok=True))


def test_noise_has_terms_of_no_answer_and_of_no_confidence() -> None:
    torch.manual_seed(0)
    labels = [["glad"]] * 2000 + [["unheard of"]] * 2
    found = terms_of(Method(calibration="noise"), from_tables(TABLES), JOY_FEAR, labels, read(*[[]] * 2002))
    for term in found:
        assert term is not None
        assert term.isnan().tolist() == [False] * 2000 + [True] * 2
        assert abs(term[:2000].mean().item()) < 0.1
        assert term[:2000].std().item() == pytest.approx(1.0, abs=0.1)
    assert abs(torch.corrcoef(torch.stack(found)[:, :2000])[0, 1].item()) < 0.1
    torch.manual_seed(0)
    again = terms_of(Method(calibration="noise"), from_tables(TABLES), JOY_FEAR, labels, read(*[[]] * 2002))
    torch.testing.assert_close(again, found, equal_nan=True)


def test_missing_confidences_are_told() -> None:
    for calibration, rollouts, lacking in (
        ("answer", read(["happy"]), "no slow confidences"),
        ("reasoning", read(["happy"], slow=[[0.5, 0.25, 0.9]]), "no fast confidences"),
        ("hinge", read(["happy"], slow=[[0.5, 0.25, 0.9]]), "needs reference_fast"),
    ):
        with pytest.raises(ValueError, match=rf"calibration={calibration}.*{lacking}"):
            terms_of(Method(calibration=calibration), from_tables(TABLES), JOY_FEAR, [["glad"]], rollouts)


# --- clusters of meaning in place of sectors


def test_clusters_of_the_vocabulary_are_the_categories(tokenizer: Any) -> None:
    # "happy" and "glad" have one direction, "anger" another: two clusters, named by their most central words.
    directions = {"happy": [1.0, 0.0], "glad": [1.0, 0.0], "anger": [0.0, 1.0]}
    meaning = Meaning(lambda texts: np.array([directions[text.split()[-1]] for text in texts]), "two", 0.5)
    taxonomy = clustered(replace(builtin(), matching="meaning", meaning=meaning), ["happiness", "glad", "angry"])
    tokens, names = category_tokens(taxonomy, tokenizer)
    assert names == [("meaning", "anger"), ("meaning", "glad")]
    assert tokens.partition.tolist() == [0, 0]
    first = tokenizer(" glad", add_special_tokens=False)["input_ids"][0]
    assert first in tokens.token_ids[tokens.category == 1]
    assert category_mask(["Happily", "sad"], taxonomy, names) == [False, True]
