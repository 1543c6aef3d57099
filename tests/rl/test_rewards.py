"""Reward functions: TRL's contract, the same numbers as the metrics, None for what cannot be scored."""

import inspect
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.emotions import metrics
from mer_r1.emotions import wheels as taxonomy
from mer_r1.errors import UserError
from mer_r1.rl import rewards
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
        return metrics.wheel_scores(*arguments)

    monkeypatch.setattr(rewards, "wheel_scores", counted)
    rewards._scores.cache_clear()
    for reward in (precision_reward, recall_reward, f1_reward):
        reward(completions=[SLOW, WIDE], labels=[GOLD, GOLD])
    assert len(calls) == 2
    rewards._scores.cache_clear()


@given(st.lists(st.sampled_from(sorted(taxonomy.builtin().forms)), min_size=1, max_size=4))
def test_gold_of_known_words_earns_full_reward(labels: list[str]) -> None:
    assert rewards.gold_earns_full_reward(labels)


@pytest.mark.parametrize("labels", [[], ["no such word"], ["happy, sad"], None])
def test_gold_that_cannot_be_earned_is_told(labels: object) -> None:
    assert not rewards.gold_earns_full_reward(labels)
