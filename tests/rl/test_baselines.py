"""Rewards of the methods compared with: by hand, and in the shape that the trainer expects."""

import pickle
from typing import Any

import pytest

from mer_r1.emotions import wheels as taxonomy
from mer_r1.emotions.thinking import format_completion
from mer_r1.emotions.two_answers import format_twice
from mer_r1.rl.method import OBJECTIVES, Method
from mer_r1.rl.rewards import AnswerReward, TwiceFormatReward, f1_reward, reward_function, set_accuracy

WHEELS = taxonomy.builtin()
GOLD = ["happy", "afraid"]


def test_accuracy_is_the_original_reward_for_one_word() -> None:
    # R1-Omni: 1 if the answered word is the label; synonyms lie in the same categories.
    assert set_accuracy(["happy"], ["happy"], WHEELS) == 1.0
    assert set_accuracy(["happy"], ["glad"], WHEELS) == 1.0
    assert set_accuracy(["happy"], ["sad"], WHEELS) == 0.0


def test_accuracy_of_sets_is_all_or_nothing_on_each_wheel() -> None:
    assert set_accuracy(GOLD, ["scared", "glad"], WHEELS) == 1.0
    assert set_accuracy(GOLD, ["glad"], WHEELS) == 0.0  # recall 1/2 on every wheel: wrong on every wheel
    # Besides the gold ones "disgusted" lies in a sector of its own on four wheels of five; on Russell's it shares one
    # with "afraid", so that the sets are equal there.
    assert set_accuracy(GOLD, ["glad", "scared", "disgusted"], WHEELS) == pytest.approx(1 / 5)
    assert set_accuracy(["qwertz"], ["glad"], WHEELS) is None


def test_both_answers_are_rewarded_by_themselves() -> None:
    completion = format_twice(["glad"], "But the voice shakes.", ["glad", "scared"])
    columns: dict[str, Any] = {"completions": [completion], "labels": [GOLD]}
    assert AnswerReward("first_f1")(**columns) == pytest.approx([2 / 3])
    assert AnswerReward("final_f1")(**columns) == [1.0]
    cut = {"completions": [completion[: completion.rindex("<answer>")]], "labels": [GOLD]}
    assert AnswerReward("first_f1")(**cut) == pytest.approx([2 / 3])
    assert AnswerReward("final_f1")(**cut) == [0.0]  # a first answer is no reviewed one


def test_accuracy_of_an_answer_that_the_metrics_forgive() -> None:
    repeated, unplaced = (f"<think></think><answer> happy, {word} </answer>" for word in ("happy", "while cheeks"))
    columns: dict[str, Any] = {"completions": [repeated, unplaced, "<answer> happy"], "labels": [["happy"]] * 3}
    assert AnswerReward("accuracy")(**columns) == [0.0, 0.0, 0.0]
    assert AnswerReward("accuracy", strict_answers=False)(**columns) == [0.0, 0.0, 1.0]
    assert AnswerReward("accuracy", strict_labels=False)(**columns) == [1.0, 1.0, 0.0]


def test_each_of_two_answers_must_be_closed_and_clean() -> None:
    # The first answer is closed by the think block alone; the second holds a wrong label more: F 2 / (1 + 1 + 1).
    completion = "<answer> happy <think> Hm. </think><answer> happy, while cheeks </answer>"
    columns: dict[str, Any] = {"completions": [completion], "labels": [["happy"]]}
    assert AnswerReward("first_f1")(**columns) == [0.0]
    assert AnswerReward("first_f1", strict_answers=False)(**columns) == [1.0]
    assert AnswerReward("final_f1")(**columns) == pytest.approx([2 / 3])
    assert AnswerReward("final_f1", strict_labels=False)(**columns) == [1.0]
    long = format_twice(["one two three four five six"], "Hm.", ["sad"])
    assert TwiceFormatReward()(completions=[long]) == [0.0]
    assert TwiceFormatReward(strict_labels=False)(completions=[long]) == [1.0]


def test_format_of_two_answers() -> None:
    once, twice = format_completion("Hm.", ["glad"]), format_twice(["glad"], "Hm.", ["glad"])
    again = format_twice(["glad"], "Hm.", ["sad", "sad"])
    assert TwiceFormatReward()(completions=[once, twice, again]) == [0.0, 1.0, 1.0]
    assert TwiceFormatReward(distinct_words=True)(completions=[once, twice, again]) == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_method_has_its_rewards(name: str) -> None:
    method = Method(name, format_weight=0.5)
    completions = [format_completion("Hm.", ["glad"]), format_twice(["glad"], "Hm.", ["glad"]), "glad"]
    for objective in method.objectives:
        reward = reward_function(objective, WHEELS, **method.reward_options)
        assert pickle.loads(pickle.dumps(reward)).__name__ == f"{objective}_reward"
        values = reward(prompts=["?"] * 3, completions=completions, labels=[GOLD] * 3, trainer_state=None)
        assert len(values) == 3
        assert all(value is not None and 0 <= value <= 1 for value in values)
    assert len(method.weights) == len(method.objectives)


def test_weights_are_those_of_the_papers() -> None:
    assert Method("f1", format_weight=0.5).weights == (0.5, 1.0)
    assert Method("rd", format_weight=0.5).weights == (0.5, 1.0, 1.0)
    # The baselines of other papers keep their own, whatever the recipe says.
    assert Method("r1-omni", format_weight=0.5).weights == (1.0, 1.0)
    assert Method("affectgpt-r1", format_weight=0.5).weights == (1.0, 1.0)
    assert dict(zip(Method("videoauto-r1").objectives, Method("videoauto-r1").weights, strict=True)) == {
        "twice_format": 1.0, "first_f1": 0.9, "final_f1": 1.1,
    }  # fmt: skip
    assert [name for name in OBJECTIVES if Method(name).answers_twice] == ["videoauto-r1"]


def test_the_wheel_reward_is_the_f1_of_the_baseline() -> None:
    columns: dict[str, Any] = {"completions": [format_completion("", ["glad", "bored"])], "labels": [GOLD]}
    assert reward_function("f1", WHEELS)(**columns) == f1_reward(**columns)
