"""Reward functions: TRL's contract, the same numbers as the metrics, None for what cannot be scored."""

import inspect
import itertools
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.emotions import metrics
from mer_r1.emotions import wheels as taxonomy
from mer_r1.emotions.meaning import Meaning
from mer_r1.emotions.thinking import parse
from mer_r1.errors import UserError
from mer_r1.rl import rewards
from mer_r1.rl.method import Method
from mer_r1.rl.rewards import FormatReward, SetReward, f1_reward, format_reward, precision_reward, recall_reward

GOLD = ["happy", "afraid"]
SLOW = "<think> a wide smile </think><answer> glad </answer>"
WIDE = "<think></think><answer> glad, scared, disgusted </answer>"
BROKEN = "glad"


def test_asymmetric_case_by_hand() -> None:
    # On each of the five wheels the gold words lie in two sectors. "glad" meets one of them: P 1, R 1/2, F 2/3.
    # "disgusted" lies in a third sector on every wheel but Russell's, where annoyed and afraid share "distress".
    columns: dict[str, Any] = {"prompts": ["?"] * 2, "completions": [SLOW, WIDE], "labels": [GOLD] * 2}
    assert precision_reward(**columns) == pytest.approx([1.0, (4 * 2 / 3 + 1) / 5])
    assert recall_reward(**columns) == pytest.approx([0.5, 1.0])
    assert f1_reward(**columns) == pytest.approx([2 / 3, (4 * 4 / 5 + 1) / 5])


def test_rewards_are_the_metrics() -> None:
    scores = metrics.wheel_scores(GOLD, ["glad", "scared", "disgusted"], taxonomy.builtin())
    assert scores is not None
    columns: dict[str, Any] = {"prompts": ["?"], "completions": [WIDE], "labels": [GOLD]}
    assert (precision_reward(**columns)[0], recall_reward(**columns)[0], f1_reward(**columns)[0]) == tuple(scores)


def test_format_is_strict_and_needs_no_gold() -> None:
    assert format_reward(prompts=["?"] * 3, completions=[SLOW, WIDE, BROKEN], trainer_state=None) == [1.0, 1.0, 0.0]


def test_repeated_words_break_the_format_only_where_asked() -> None:
    once, twice = (f"<think> a </think><answer> {words} </answer>" for words in ("sad, angry", "sad, angry, Sad"))
    assert format_reward(completions=[once, twice]) == [1.0, 1.0]
    assert FormatReward(distinct_words=True)(completions=[once, twice, BROKEN]) == [1.0, 0.0, 0.0]


def test_unknown_phrases_break_the_format_only_where_asked() -> None:
    completions = [answer("glad", "while cheeks"), answer("glad"), answer()]
    assert FormatReward()(completions=completions) == [1.0, 1.0, 1.0]
    wheels = taxonomy.builtin()
    assert FormatReward(known=wheels)(completions=completions) == [0.0, 1.0, 1.0]
    reward = rewards.reward_function("format", wheels, known_words=True)
    assert reward(completions=completions) == [0.0, 1.0, 1.0]


def test_talk_of_an_absent_channel_earns_nothing_where_asked() -> None:
    seen = "<think> I see a smile. So glad. </think><answer> glad </answer>"
    completions = [seen, seen, [{"role": "assistant", "content": seen}], answer("glad"), "I see"]
    columns: dict[str, Any] = {
        "completions": completions,
        "absent": [["video"], ["audio", "subtitle"], ["subtitle", "video"], ["video"], []],
    }
    assert FormatReward()(**columns) == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert FormatReward(absent_channels=True)(**columns) == [0.0, 1.0, 0.0, 1.0, 0.0]
    columns["labels"] = [["glad"]] * 4 + [None]
    wheels = taxonomy.builtin()
    asked = {name: rewards.reward_function(name, wheels, absent_channels=True) for name in ("format", "recall")}
    assert asked["format"](**columns) == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert asked["recall"](**columns) == [0.0, 1.0, 0.0, 1.0, None]
    assert recall_reward(**columns) == [1.0, 1.0, 1.0, 1.0, None]
    for reward, absent in itertools.product(asked.values(), (None, [["video"]])):
        with pytest.raises(UserError, match="column `absent` with 5 lists"):
            reward(**columns | {"absent": absent})


def test_unscorable_rows_give_none_and_are_counted() -> None:
    logged: dict[str, float] = {}
    gold = [["happy"], [], None, ["no such word"], "[happy]"]
    values = recall_reward(prompts=None, completions=[SLOW] * 5, labels=gold, log_metric=logged.__setitem__)
    assert values == [1.0, None, None, None, 1.0]
    assert logged == {"unscorable": 0.6}


def test_an_answer_without_words_scores_zero_not_none() -> None:
    columns: dict[str, Any] = {"completions": ["<think></think><answer> </answer>", BROKEN, ""], "labels": [GOLD] * 3}
    assert recall_reward(**columns) == precision_reward(**columns) == f1_reward(**columns) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("labels", [None, [["happy"]]])
def test_a_missing_or_short_gold_column_is_an_error(labels: object) -> None:
    with pytest.raises(UserError, match="labels"):
        f1_reward(prompts=["?"] * 2, completions=[SLOW, SLOW], labels=labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "completion",
    [
        [{"role": "assistant", "content": SLOW}],
        [{"role": "assistant", "content": [{"type": "text", "text": SLOW}]}],
        [{"role": "assistant", "content": SLOW[:20]}, {"role": "assistant", "content": SLOW[20:]}],
    ],
)
def test_conversational_completions_read_the_same(completion: list[dict[str, Any]]) -> None:
    assert format_reward(completions=[completion]) == [1.0]
    assert f1_reward(completions=[completion], labels=[GOLD]) == f1_reward(completions=[SLOW], labels=[GOLD])


@pytest.mark.parametrize("content", [None, 3, [{"type": "image"}], [None]])
def test_messages_without_text_are_empty_texts(content: object) -> None:
    assert rewards.completion_text([{"role": "assistant", "content": content}]) == ""


def test_names_and_pickles_as_trl_needs_them() -> None:
    for reward in (precision_reward, recall_reward, f1_reward, SetReward("f1", taxonomy.builtin(), level=2)):
        copy = pickle.loads(pickle.dumps(reward))
        assert copy.__name__ == reward.__name__
        columns: dict[str, Any] = {"completions": [WIDE], "labels": [GOLD]}
        assert copy(**columns) == reward(**columns)
    assert recall_reward.__name__ == "recall_reward"
    assert format_reward.__name__ == "format_reward"


def test_trl_can_see_the_keyword_arguments_it_passes() -> None:
    for reward in (f1_reward, format_reward):
        kinds = [parameter.kind for parameter in inspect.signature(reward).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD in kinds
        values = reward(
            prompts=["?"], completions=[SLOW], completion_ids=[[1]], labels=[GOLD], trainer_state=None,
            log_extra=lambda name, column: None, log_metric=lambda name, value: None,
        )  # fmt: skip
        assert len(values) == 1


def test_level_and_wheels_are_chosen() -> None:
    # "furious" and "angry" share sectors on ring 1 of every wheel but are apart on ring 2 of Plutchik's and Ekman's.
    columns: dict[str, Any] = {"completions": ["<answer>furious</answer>"], "labels": [["angry"]]}
    assert SetReward("f1")(**columns) == [1.0]
    assert SetReward("f1", level=2)(**columns) == pytest.approx([3 / 5])


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(UserError, match="objective"):
        SetReward("accuracy")  # type: ignore[arg-type]


def test_one_completion_is_scored_once_for_all_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Any) -> metrics.SetScores | None:
        calls.append(arguments)
        return metrics.label_scores(*arguments)

    monkeypatch.setattr(rewards, "label_scores", counted)
    rewards._scores.cache_clear()
    for reward in (precision_reward, recall_reward, f1_reward):
        reward(completions=[SLOW, WIDE], labels=[GOLD, GOLD])
    assert len(calls) == 2
    rewards._scores.cache_clear()


@given(st.lists(st.sampled_from(sorted(taxonomy.builtin().forms)), min_size=1, max_size=4))
def test_gold_of_known_words_earns_full_reward(labels: list[str]) -> None:
    assert rewards.gold_earns_full_reward(labels)


# --- what the metrics forgive and the rewards do not ------------------------------------------------------------------

WORDS = sorted(taxonomy.builtin().forms)
JUNK = ["while cheeks", "the speaker says so", "qwertz"]
OPEN = "<think> a </think><answer> glad"


def answer(*words: str) -> str:
    return f"<think> a </think><answer> {', '.join(words)} </answer>"


def rewarded(completion: str, gold: object = GOLD, **options: bool) -> tuple[float | None, ...]:
    names = ("precision", "recall", "f1")
    chosen = [rewards.reward_function(name, taxonomy.builtin(), **options) for name in names]
    return tuple(reward(completions=[completion], labels=[gold])[0] for reward in chosen)


@pytest.mark.parametrize(
    "completion",
    [
        OPEN,
        "<think> a </think> glad",
        "glad </answer>",
        "<answer> glad </answer><answer> glad",
        "<answer> glad</think>",
    ],
)
def test_an_answer_that_is_not_closed_earns_nothing(completion: str) -> None:
    assert rewarded(completion) == (0.0, 0.0, 0.0)
    assert rewarded(completion, strict_answers=False) == pytest.approx((1.0, 1 / 2, 2 / 3))
    assert rewarded(completion, gold=["qwertz"]) == (None, None, None)


def test_the_last_answer_is_the_closed_one_that_counts() -> None:
    assert rewarded("<answer> sad <answer> glad </ANSWER> I think.") == pytest.approx((1.0, 1 / 2, 2 / 3))


def test_a_phrase_that_no_wheel_places_counts_as_a_wrong_label() -> None:
    # On every wheel the gold has two categories and "glad" hits one: P 1, R 1/2, F 2/3. One wrong label more: P 1/2,
    # F 2 * 1 / (2 + 1 + 1); two: P 1/3, F 2 / 5.
    assert rewarded(answer("glad", "while cheeks")) == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    assert rewarded(answer("glad", "while cheeks", "qwertz")) == pytest.approx((1 / 3, 1 / 2, 2 / 5))
    assert rewarded(answer("glad", "while cheeks"), strict_labels=False) == pytest.approx((1.0, 1 / 2, 2 / 3))
    assert rewarded(answer("while cheeks")) == (0.0, 0.0, 0.0)


def test_a_word_that_one_wheel_places_is_no_junk() -> None:
    wheels = taxonomy.builtin()
    placed = {wheel.name: wheels.sector("aloof", wheel) is not None for wheel in wheels.wheels}
    assert set(placed.values()) == {True, False}
    completion = answer("glad", "aloof")  # left out where it is not on the wheel, as in the metrics
    assert rewarded(completion) == rewarded(completion, strict_labels=False)


def test_a_word_said_again_counts_as_a_wrong_label_once_each_time() -> None:
    assert rewarded(answer("glad", "Glad")) == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    assert rewarded(answer("glad", "glad", "glad")) == pytest.approx((1 / 3, 1 / 2, 2 / 5))
    assert rewarded(answer("glad", "qwertz", "qwertz")) == pytest.approx((1 / 3, 1 / 2, 2 / 5))
    assert rewarded(answer("glad", "happy")) == pytest.approx((1.0, 1 / 2, 2 / 3)), "synonyms are two words"
    assert rewarded(answer("glad", "glad"), strict_labels=False) == pytest.approx((1.0, 1 / 2, 2 / 3))


def test_words_of_the_gold_are_no_junk() -> None:
    gold = ["happy", "Qwertz  of sorts"]
    assert rewarded(answer("glad", "qwertz of sorts"), gold) == (1.0, 1.0, 1.0)
    assert rewarded(answer("glad", "qwertz of sorts", "qwertz of sorts"), gold)[0] == pytest.approx(1 / 2)


def test_a_sentence_is_malformed_and_the_longest_phrases_are_not() -> None:
    longest = max(taxonomy.builtin().forms, key=lambda form: len(form.split()))
    at_most = " ".join(["word"] * rewards.MOST_LABEL_WORDS)
    assert len(longest.split()) == 4
    assert format_reward(completions=[answer(longest), answer(at_most), answer(f"sad, {at_most} more")]) == [1, 1, 0]
    assert FormatReward(strict_labels=False)(completions=[answer(f"{at_most} more")]) == [1.0]


def test_the_longest_official_phrase_is_a_label(shared: Any) -> None:
    official = taxonomy.official(shared / "emotion_wheel")
    assert max(len(form.split()) for form in official.forms) == rewards.MOST_LABEL_WORDS


pieces = st.lists(st.sampled_from([*WORDS, *JUNK]), max_size=5)
golds = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4)


@given(golds, pieces, st.sampled_from(["<think></think><answer>{}</answer>", "<answer>{}", "{}</answer>", "{}"]))
def test_strict_rewards_lie_between_zero_and_the_official_score(gold: list[str], words: list[str], form: str) -> None:
    completion = form.format(", ".join(words))
    official = metrics.wheel_scores(gold, parse(completion).labels, taxonomy.builtin())
    assert official is not None
    assert rewarded(completion, gold, strict_answers=False, strict_labels=False) == tuple(official)
    for strict, lenient in zip(rewarded(completion, gold), official, strict=True):
        assert strict is not None
        assert 0 <= strict <= lenient <= 1


@given(golds, st.lists(st.sampled_from(WORDS), min_size=1, max_size=5, unique=True))
def test_clean_answers_earn_the_official_score(gold: list[str], words: list[str]) -> None:
    official = metrics.wheel_scores(gold, words, taxonomy.builtin())
    assert official is not None
    assert rewarded(answer(*words), gold) == tuple(official)


@given(golds, st.permutations([*JUNK, "glad", "Glad", "scared"]), st.integers(1, 6))
def test_the_order_of_the_labels_does_not_matter(gold: list[str], words: list[str], length: int) -> None:
    part = words[:length]
    assert rewarded(answer(*part), gold) == rewarded(answer(*sorted(part)), gold)


def test_gold_with_repeated_unplaced_or_long_labels_earns_full_reward() -> None:
    sentence = "someone whose cheeks tell a very long story"
    assert rewards.gold_earns_full_reward(["happy", "Happy", "no such word", sentence])
    assert not rewards.gold_earns_full_reward([sentence])


@pytest.mark.parametrize("labels", [[], ["no such word"], ["happy, sad"], None])
def test_gold_that_cannot_be_earned_is_told(labels: object) -> None:
    assert not rewards.gold_earns_full_reward(labels)


# --- words compared by meaning


def test_rewards_compare_words_as_the_taxonomy_does() -> None:
    vectors = {"qualm": (1.0, 0.0), "scruple": (0.8, 0.6), "zzqx": (0.0, 1.0)}
    meaning = Meaning(lambda texts: np.array([vectors[text.split()[-1]] for text in texts]), "", 0.7)
    by_meaning = replace(taxonomy.builtin(), matching="meaning", meaning=meaning)
    reward = rewards.reward_function("precision", by_meaning, matching="meaning")
    completions = [
        answer("qualm"),
        answer("scruple"),
        answer("scruple", "zzqx"),
        answer("scruple", "scruple"),
        answer(),
    ]
    # No wheel has any of these words. A repeated word is a wrong one, an unknown one is compared like any other.
    assert reward(completions=completions, labels=[["qualm"]] * 5) == pytest.approx([1.0, 0.8, 0.4, 0.4, 0.0])
    assert SetReward("f1")(completions=completions[:1], labels=[["qualm"]]) == [None]
    assert rewards.gold_earns_full_reward(["qualm"], by_meaning)
    assert not rewards.gold_earns_full_reward(["qualm"])


def test_a_method_and_a_taxonomy_that_compare_in_different_ways_are_refused() -> None:
    with pytest.raises(UserError, match="matching=meaning: words are compared by wheels here"):
        rewards.reward_function("recall", taxonomy.builtin(), **Method(matching="meaning").reward_options)
    with pytest.raises(ValueError, match="matching=both has no accuracy"):
        Method(method="r1-omni", matching="both")
