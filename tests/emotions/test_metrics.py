"""Set metrics: by hand, by identity, against the reference values of MER-UniBench and against scikit-learn."""

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from mer_r1.emotions import metrics
from mer_r1.emotions import wheels as taxonomy
from mer_r1.emotions.metrics import NOTHING_PREDICTED, SetScores
from mer_r1.errors import UserError

LABELS = st.lists(st.sampled_from("abcdefg"), max_size=6)
WORDS = st.lists(st.sampled_from(["happy", "Sad", "angry ", "afraid", "curious", "tired", "no such word"]), max_size=5)
TOLERANCE = 1e-12


@pytest.fixture(scope="module")
def official(shared: Path) -> taxonomy.Taxonomy:
    return taxonomy.official(shared / "emotion_wheel")


@pytest.fixture(scope="module")
def reference(shared: Path) -> Path:
    return shared / "benchmarks" / "reference"


def same(value: float, expected: float | None) -> bool:
    """Equal to 1e-12, null standing for NaN."""
    return math.isnan(value) if expected is None else abs(value - expected) <= TOLERANCE


# --- one item, by hand


def test_asymmetric_precision_and_recall() -> None:
    # gold {a, b, c}, predicted {a, d}: one shared; P = 1/2, R = 1/3, F1 = 2*1/(3+2)
    scores = metrics.set_scores({"a", "b", "c"}, ["a", "d", "d"])
    assert scores == SetScores(1 / 2, 1 / 3, 2 / 5)


def test_empty_prediction_scores_zero_and_empty_gold_is_undefined() -> None:
    assert metrics.set_scores({"a"}, []) == NOTHING_PREDICTED == (0.0, 0.0, 0.0)
    assert all(math.isnan(value) for value in metrics.set_scores([], {"a"}))
    assert all(math.isnan(value) for value in metrics.set_scores([], []))


def test_any_hashable_answers_can_be_scored() -> None:
    assert metrics.set_scores({1, (2, 3)}, {1}) == SetScores(1.0, 0.5, 2 / 3)


@given(LABELS, LABELS)
def test_range_and_f1_between_precision_and_recall(gold: list[str], predicted: list[str]) -> None:
    if not gold:
        return
    scores = metrics.set_scores(gold, predicted)
    assert min(scores) >= 0
    assert max(scores) <= 1
    assert min(scores.precision, scores.recall) - 1e-15 <= scores.f1 <= max(scores.precision, scores.recall) + 1e-15


@given(LABELS.filter(bool), LABELS.filter(bool))
def test_swapping_gold_and_prediction_swaps_precision_and_recall(gold: list[str], predicted: list[str]) -> None:
    there, back = metrics.set_scores(gold, predicted), metrics.set_scores(predicted, gold)
    assert (there.precision, there.recall, there.f1) == (back.recall, back.precision, back.f1)


@given(LABELS, LABELS, st.randoms(use_true_random=False))
def test_order_and_duplicates_do_not_matter(gold: list[str], predicted: list[str], rng: random.Random) -> None:
    if not gold:
        return
    shuffled = predicted * 2
    rng.shuffle(shuffled)
    assert metrics.set_scores(gold, predicted) == metrics.set_scores(gold[::-1] + gold, shuffled)


# --- wheels


TWO_WHEELS = taxonomy.Taxonomy(
    wheels=(
        taxonomy.EmotionWheel("one", "test", {"a": "A", "b": "B", "c": "B"}, {"a": "a", "b": "b", "c": "c"}),
        taxonomy.EmotionWheel("two", "test", {"a": "X", "b": "X"}, {"a": "X1", "b": "X2"}),
    ),
    forms={word: (word,) for word in "abcz"},
    synonyms={word: (word,) for word in "abc"},
)


def test_wheel_scores_average_over_the_wheels_by_hand() -> None:
    # gold a, b; answer b, c.  Wheel one: {A, B} vs {B}: P 1, R 1/2, F 2/3.  Wheel two: {X} vs {X}: 1, 1, 1.
    scores = metrics.wheel_scores(["a", "b"], ["b", "c"], TWO_WHEELS)
    assert scores == pytest.approx((1.0, 0.75, 5 / 6))
    # Ring 2: wheel one {a, b} vs {b, c}: all 1/2.  Wheel two {X1, X2} vs {X2}: P 1, R 1/2, F 2/3.
    assert metrics.wheel_scores(["a", "b"], ["b", "c"], TWO_WHEELS, level=2) == pytest.approx((0.75, 0.5, 7 / 12))


def test_wheels_that_cannot_place_the_gold_are_left_out() -> None:
    # Only wheel one knows c; wheel two must not pull the mean down.
    assert metrics.wheel_scores(["c"], ["b"], TWO_WHEELS) == (1.0, 1.0, 1.0)


def test_an_unplaced_prediction_scores_zero_and_an_unplaced_gold_none() -> None:
    assert metrics.wheel_scores(["a"], ["z", "unknown"], TWO_WHEELS) == NOTHING_PREDICTED
    assert metrics.wheel_scores(["a"], [], TWO_WHEELS) == NOTHING_PREDICTED
    assert metrics.wheel_scores(["z", "unknown"], ["a"], TWO_WHEELS) is None
    assert metrics.wheel_scores([], ["a"], TWO_WHEELS) is None


@given(WORDS, WORDS, st.sampled_from([1, 2]))
def test_wheel_scores_ignore_case_blanks_order_and_repeats(gold: list[str], predicted: list[str], level: int) -> None:
    wheels = taxonomy.builtin()
    plain = metrics.wheel_scores(gold, predicted, wheels, level)
    dressed = metrics.wheel_scores(
        [f" {word.upper()} " for word in gold], [word.title() for word in reversed(predicted * 2)], wheels, level
    )
    assert plain == dressed
    assert plain is None or (min(plain) >= 0 and max(plain) <= 1)


@given(WORDS)
def test_the_gold_itself_scores_one(gold: list[str]) -> None:
    assert metrics.wheel_scores(gold, gold, taxonomy.builtin()) in (None, SetScores(1.0, 1.0, 1.0))


# --- corpora


def test_corpus_f_is_taken_from_the_means_not_averaged() -> None:
    # Items: ({a}, {a, b}): P 1/2, R 1;  ({a, b}, {a}): P 1, R 1/2;  empty gold: skipped.
    scores = metrics.corpus_scores([{"a"}, {"a", "b"}, set()], [{"a", "b"}, {"a"}, {"a"}])
    assert scores == (0.75, 0.75, 0.75, 2, 1)
    # The unified mean averages F1 per item instead: both are 2/3.
    items = [metrics.set_scores({"a"}, {"a", "b"}), metrics.set_scores({"a", "b"}, {"a"}), None]
    assert metrics.mean_scores(items) == (0.75, 0.75, pytest.approx(2 / 3), 2, 1)


def test_corpus_without_hits_or_without_items_gives_nan() -> None:
    no_hit = metrics.corpus_scores([{"a"}], [{"b"}])
    assert no_hit[:2] == (0.0, 0.0)
    assert math.isnan(no_hit.fscore)
    nothing = metrics.corpus_scores([set()], [{"b"}])
    assert all(math.isnan(value) for value in nothing[:3])
    assert nothing[3:] == (0, 1)
    assert all(math.isnan(value) for value in metrics.mean_scores([None])[:3])


def test_corpora_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        metrics.corpus_scores([{"a"}], [])


def test_the_report_and_the_reward_agree_on_a_single_item() -> None:
    report = metrics.openset_report({"x": "[a, b]"}, {"x": ["b", "c"]}, TWO_WHEELS)
    scores = metrics.wheel_scores(["a", "b"], ["b", "c"], TWO_WHEELS)
    assert scores is not None
    assert report["mean2_level1"]["precision"] == pytest.approx(scores.precision)
    assert report["mean2_level1"]["recall"] == pytest.approx(scores.recall)


def test_report_keys_and_m_avg() -> None:
    gold = {"x": "[happy, afraid]", "y": "[curious]"}
    report = metrics.openset_report(gold, {"x": "[glad]", "y": "[bored, interested]"}, taxonomy.builtin())
    cases = ["case1", "case2", *(f"case3_wheel{wheel}_level{level}" for level in (1, 2) for wheel in range(1, 6))]
    assert list(report) == [*cases, "mean5_level1", "mean5_level2", "m_avg"]
    fscores = [report[case]["fscore"] for case in cases]
    assert math.isnan(report["m_avg"]["fscore"]) == any(map(math.isnan, fscores))
    assert report["case3_wheel1_level1"] == {
        "precision": 0.75, "recall": 0.75, "fscore": 0.75, "n_scored": 2, "n_skipped": 0,
    }  # fmt: skip
    assert report["case3_wheel2_level1"]["n_skipped"] == 1  # Ekman's families have no place for curiosity


# --- sentiment, against scikit-learn too


def test_weighted_f1_by_hand() -> None:
    # a: tp 1, gold 2, predicted 1 -> F 2/3; b: tp 1, gold 1, predicted 2 -> F 2/3; weighted: 2/3.
    assert metrics.weighted_f1(["a", "a", "b"], ["a", "b", "b"]) == pytest.approx(2 / 3)
    # c is predicted but never gold: no weight; a: tp 1, gold 2, predicted 1.
    assert metrics.weighted_f1(["a", "a"], ["a", "c"]) == pytest.approx(2 / 3)
    assert math.isnan(metrics.weighted_f1([], []))
    assert math.isnan(metrics.accuracy([], []))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=40))
def test_weighted_f1_and_accuracy_equal_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    gold, predicted = map(list, zip(*pairs, strict=True))
    expected = f1_score(gold, predicted, average="weighted", zero_division=0)
    assert metrics.weighted_f1(gold, predicted) == pytest.approx(expected, abs=1e-12)
    assert metrics.accuracy(gold, predicted) == pytest.approx(accuracy_score(gold, predicted), abs=1e-12)


def test_sentiment_neutral_and_unreadable_replies_count_as_negative() -> None:
    gold = {"a": 1.5, "b": -0.2, "c": 0, "d": -3, "e": 0.1}
    predicted = {"a": "positive", "b": "neutral", "c": "positive", "d": "Positive", "e": None}
    report = metrics.sentiment_report(gold, predicted)
    # c is dropped. Gold + - - +, predicted + - - -: accuracy 3/4; F(+) = 2/3, F(-) = 4/5, two of each.
    assert report == {"waf": pytest.approx(11 / 15), "accuracy": 0.75, "n_scored": 4, "n_skipped": 1}


@pytest.mark.parametrize("value", ["1.0", None, True, math.nan])
def test_sentiment_gold_must_be_a_number(value: object) -> None:
    with pytest.raises(UserError, match="gold of 'a'"):
        metrics.sentiment_report({"a": value}, {"a": "positive"})


def test_sentiment_with_only_neutral_gold_is_an_error() -> None:
    with pytest.raises(UserError, match="nothing to score"):
        metrics.sentiment_report({"a": 0.0}, {"a": "positive"})


# --- names


@pytest.mark.parametrize("report", ["openset", "hit-rate", "sentiment"])
def test_missing_predictions_are_named_and_extra_ones_ignored(report: str) -> None:
    wheels = taxonomy.builtin()
    score = {
        "openset": lambda gold, predicted: metrics.openset_report(gold, predicted, wheels),
        "hit-rate": lambda gold, predicted: metrics.hit_rate_report(gold, predicted, wheels),
        "sentiment": metrics.sentiment_report,
    }[report]
    value: object = 1.0 if report == "sentiment" else "happy"
    gold = {f"clip{number}": value for number in range(5)}
    with pytest.raises(UserError, match=r"4 of 5 .*'clip1', 'clip2', 'clip3', \.\.\."):
        score(gold, {"clip0": "happy"})
    full = dict.fromkeys(gold, "happy")
    assert repr(score(gold, full)) == repr(score(gold, {**full, "another": "sad"}))


def test_a_list_where_names_are_expected_is_refused() -> None:
    with pytest.raises(UserError, match="gold: expected a JSON object"):
        metrics.sentiment_report([1.0], {"a": "positive"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="predictions: expected a JSON object"):
        metrics.openset_report({"a": "happy"}, ["happy"], taxonomy.builtin())  # type: ignore[arg-type]


def test_a_lone_bracket_is_reported_with_its_clip() -> None:
    with pytest.raises(UserError, match="prediction of 'clip'"):
        metrics.openset_report({"clip": "[happy]"}, {"clip": "["}, taxonomy.builtin())


# --- hit rate


def test_hit_rate_by_hand() -> None:
    gold = {"x": "a", "y": "b", "z": "a, b"}
    report = metrics.hit_rate_report(gold, {"x": "[a, b]", "y": "[]", "z": "[a, c]"}, TWO_WHEELS)
    # Wheel one: x {A} in {A, B}: 1 (mscore 1/2); y: 0; z {A, B} in {A, B}: 2, so a hit rate can exceed 1 (mscore 1).
    assert report["wheel1"] == {"hitrate": 1.0, "mscore": pytest.approx(0.5), "n_scored": 3, "n_skipped": 0}
    assert report["wheel2"]["hitrate"] == pytest.approx(2 / 3)
    assert report["mean2"]["hitrate"] == pytest.approx(5 / 6)


def test_the_vocabulary_of_mscore_is_looked_up_as_written() -> None:
    # "A" hits after lower-casing, but the reference does not lower-case the vocabulary, so it holds no category.
    report = metrics.hit_rate_report({"x": "A"}, {"x": "a"}, TWO_WHEELS)
    assert (report["wheel1"]["hitrate"], report["wheel1"]["mscore"]) == (1.0, 0.0)


def test_hit_rate_of_unplaced_gold_is_nan() -> None:
    report = metrics.hit_rate_report({"x": "neutral"}, {"x": "[happy]"}, taxonomy.builtin())
    assert math.isnan(report["wheel1"]["hitrate"])
    assert math.isnan(report["mean5"]["hitrate"])
    assert report["wheel1"]["n_skipped"] == 1


# --- the reference implementation's numbers


def test_every_openset_pair_of_the_reference(reference: Path, official: taxonomy.Taxonomy) -> None:
    data = json.loads((reference / "ovset_pairs.json").read_text(encoding="utf-8"))
    labels = {key: dict(zip(data["names"], values, strict=True)) for key, values in data["labels"].items()}
    assert len(data["pairs"]) == 30
    for pair in data["pairs"]:
        gold = dict(list(labels[pair["gold"]].items())[: pair["subset"]])
        report = metrics.openset_report(gold, labels[pair["pred"]], official)
        wrong = [
            (case, key)
            for case, scores in pair["scores"].items()
            for key, expected in scores.items()
            if not same(report[case][key], expected)
        ]
        assert not wrong, (pair["gold"], pair["pred"], pair["subset"], wrong)


def test_every_hit_rate_set_of_the_reference(reference: Path, official: taxonomy.Taxonomy) -> None:
    sets = json.loads((reference / "hitrate.json").read_text(encoding="utf-8"))
    assert len(sets) == 10
    for number, item in enumerate(sets):
        report = metrics.hit_rate_report(item["gold"], item["pred"], official)
        wrong = [
            (wheel, key)
            for wheel, scores in item["out"].items()
            for key, expected in scores.items()
            if not same(report[wheel][key], expected)
        ]
        assert not wrong, (number, item["vocabulary"], wrong)


def test_every_sentiment_set_of_the_reference(reference: Path) -> None:
    sets = json.loads((reference / "sentiment_waf.json").read_text(encoding="utf-8"))
    assert len(sets) == 11
    scored = 0
    for item in sets:
        expected = item["out"]
        if not isinstance(expected, dict):  # all gold neutral: the reference raises
            with pytest.raises(UserError):
                metrics.sentiment_report(item["gold"], item["pred"])
            continue
        report = metrics.sentiment_report(item["gold"], item["pred"])
        assert all(same(report[key], value) for key, value in expected.items()), expected
        scored += 1
    assert scored >= 10
