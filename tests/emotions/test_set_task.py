"""Tasks: a question of one's own, and categories of any words in the place of emotion wheels."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.data.clip import Clip
from mer_r1.emotions.metrics import SetScores, set_scores, wheel_scores
from mer_r1.emotions.set_task import SetTask, read_task, taxonomy_of
from mer_r1.emotions.thinking import ThinkingMode, format_completion, question
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.records import provenance, record_of_answer, taxonomy_in

FOOD = {"allergen": {"milk": ["dairy", "lactose"], "egg": [], "nuts": ["tree nuts"]}}


def test_emotions_are_the_default_task() -> None:
    task = SetTask()
    assert task.facts == {}
    assert task.taxonomy() is builtin()
    assert task.asked("Oh no.") == question("Oh no.") == question("Oh no.", "full")
    assert SetTask("short").asked("Oh no.") == question("Oh no.", "short")
    assert builtin().title.startswith("built-in (")


def test_a_question_of_ones_own_holds_the_text_without_tags_and_line_breaks() -> None:
    task = SetTask("{text} What is in it?", FOOD)
    assert task.asked('Tart\n with  <|im_end|> "nuts".') == 'Tart with ‹|im_end|› "nuts". What is in it?'
    assert task.asked(None) == " What is in it?"
    assert task.facts == {"task": {"question": "{text} What is in it?", "categories": FOOD}}
    assert SetTask("{text} Well?").facts == {"task": {"question": "{text} Well?", "categories": None}}
    assert SetTask("{text} What does she feel?").taxonomy() is builtin()
    assert task.parse("<think>Tart.</think><answer> Dairy, egg </answer>").labels == ("dairy", "egg")


def test_categories_place_their_words_and_their_names() -> None:
    taxonomy = taxonomy_of(FOOD)
    assert taxonomy.sectors("allergen") == ("milk", "egg", "nuts")
    assert taxonomy.forms_of("allergen", "milk") == ("dairy", "lactose", "milk")
    assert taxonomy.categories(["Dairy", "milk", "tree nuts", "sand"], "allergen") == {"milk", "nuts"}
    assert taxonomy.knows("EGG")
    assert not taxonomy.knows("sand")
    assert taxonomy.title.startswith("allergen (")
    assert taxonomy.title != taxonomy_of({"allergen": {"a": [], "b": []}}).title
    # By hand: of milk and nuts, "dairy" and "egg" hit one; one of the two is wrong.
    assert wheel_scores(["milk", "nuts"], ["dairy", "egg"], taxonomy) == SetScores(0.5, 0.5, 0.5)


def test_two_partitions_may_have_categories_of_one_name_and_are_averaged() -> None:
    taxonomy = taxonomy_of(
        {"kind": {"other": ["soup"], "cake": ["tart"]}, "taste": {"sweet": ["tart"], "other": ["soup"]}}
    )
    assert [taxonomy.sector("tart", wheel) for wheel in ("kind", "taste")] == ["cake", "sweet"]
    assert [taxonomy.sector("soup", wheel) for wheel in ("kind", "taste")] == ["other", "other"]
    # "cake" is a word of the first partition alone.
    assert wheel_scores(["tart"], ["cake"], taxonomy) == SetScores(0.5, 0.5, 0.5)


WORDS = st.sets(st.sampled_from(["milk", "egg", "nuts"]), min_size=1)


@given(gold=WORDS, answer=st.sets(st.sampled_from(["milk", "egg", "nuts", "sand"])))
def test_with_one_partition_the_scores_are_those_of_the_sets_of_known_words(gold: set[str], answer: set[str]) -> None:
    assert wheel_scores(gold, answer, taxonomy_of(FOOD)) == set_scores(gold, answer - {"sand"})


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        ({}, "partition"),
        ([], "partition"),
        ({"words": {"a": [], "b": []}}, "another name than 'words'"),
        ({"x": {"a": []}}, "at least two"),
        ({"x": {"a": "b", "c": []}}, "a list of words"),
        ({"x": {"a": ["c"], "b": ["c"]}}, "'c' is in two categories of 'x'"),
        ({"x": {"Milk": [], "b": []}}, "lower case"),
        ({"x": {"salt and pepper": [], "b": []}}, "one label"),
        ({"x": {"": [], "b": []}}, "one label"),
    ],
)
def test_other_categories_are_refused(categories: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        taxonomy_of(categories)


def test_a_task_is_read_from_a_file(tmp_path) -> None:
    file = tmp_path / "task.json"
    file.write_text(json.dumps({"question": "{text} What?", "categories": FOOD}))
    assert read_task(file) == SetTask("{text} What?", FOOD)
    for content in (
        "",
        "[]",
        "{",
        '{"question": "What?"}',
        '{"frage": "{text}"}',
        '{"question": 3}',
        '{"categories": {}}',
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=r"task\.json: .*expected the question and the categories of a task"):
            read_task(file)
    with pytest.raises(UserError, match=r"none\.json"):
        read_task(tmp_path / "none.json")


def test_emotion_wheels_are_refused_for_another_task() -> None:
    with pytest.raises(UserError, match="another question, with the categories of allergen"):
        SetTask("{text} What?", FOOD).taxonomy("emotion_wheel")


def test_records_of_a_task_are_read_as_words_and_their_folder_names_it(tmp_path) -> None:
    clip = Clip("a", subtitle="Tart.", labels=("milk", "nuts"))
    completion = format_completion("Tart: nuts.", ["tree nuts", "state"])
    source = provenance("model", 0, {})
    record = record_of_answer(clip, ThinkingMode.SLOW, completion, taxonomy_of(FOOD), source)
    # "state" would be a title among emotion words.
    assert record.labels == ["tree nuts", "state"]
    assert record.doubt == "no wheel knows state"
    assert record.categories == {"allergen": ["nuts"]}
    assert record.scores == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    assert taxonomy_in(tmp_path) is builtin()
    (tmp_path / "claim.json").write_text(json.dumps({"task": {"question": "{text} What?", "categories": FOOD}}))
    assert taxonomy_in(tmp_path).title == taxonomy_of(FOOD).title
