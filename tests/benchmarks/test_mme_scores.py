"""MME-Emotion's arithmetic: equal to the reference in every oddity, and honest about what that hides."""

import io
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.benchmarks.mme_emotion.judged import Judged, first_judgements, read_judged
from mer_r1.benchmarks.mme_emotion.scores.agreement import agreement_report, cohen_kappa, runs_of
from mer_r1.benchmarks.mme_emotion.scores.audit import audited_report, checked, count_steps, official_report
from mer_r1.benchmarks.mme_emotion.scores.compare import paired_report, score_report
from mer_r1.benchmarks.mme_emotion.scores.label_match import LabelItem, gold_labels, label_report, match, stated_words
from mer_r1.benchmarks.mme_emotion.scores.official import (
    ItemScores,
    category,
    category_totals,
    item_scores,
    parse_ratings,
    score_field,
    totals,
)
from mer_r1.benchmarks.mme_emotion.tasks import TASKS, task_named
from mer_r1.benchmarks.mme_emotion.terminal import (
    agreement_table,
    audited_table,
    category_tables,
    label_table,
    notes,
    official_table,
)
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError

TOLERANCE = 1e-12
FIGURES = ("count", "sum_recognition", "sum_reasoning", "sum_steps", "recognition", "reasoning", "cot", "avg_step")


@pytest.fixture(scope="module")
def reference(shared):
    file = shared / "benchmarks" / "reference" / "mme_emotion_metrics.json"
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    """The reference's judged files, as the reference keeps them."""
    path = tmp_path_factory.mktemp("judged")
    for task, entry in reference["tasks"].items():
        (path / f"{task}.json").write_text(json.dumps(entry["entries"]), encoding="utf-8")
    return path


def form(*ratings):
    return "<score>" + ", ".join(f"Step {n}: {r}" for n, r in enumerate(ratings, start=1)) + "</score>"


def item(score, task="SA", name="a", step=None, **more):
    return Judged(task, name, "positive", score, step, **more)


def assert_equal(found, expected):
    assert set(FIGURES) <= set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=TOLERANCE, rel=0), name


# --- against the reference --------------------------------------------------------------------------------------------


def test_every_score_string_is_parsed_as_the_reference_does(shared):
    file = shared / "benchmarks" / "reference" / "mme_score_parse.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert len(rows) >= 16
    for row in rows:
        for kind, fraction in (("binary", False), ("fraction", True), ("overall", True)):
            ratings = parse_ratings(row["score_field"], fraction)
            assert ratings == row[kind], row["score_field"]
            if ratings is not None:
                scores = item_scores(ratings) or ItemScores(0, 0, 0)
                assert list(scores) == pytest.approx(row[f"{kind}_metrics"], abs=TOLERANCE), row["score_field"]


def test_every_task_category_and_the_pool_agree_with_the_reference(reference, folder):
    report = official_report(first_judgements(read_judged([folder])))
    assert list(report["tasks"]) == list(TASKS)
    for task, entry in reference["tasks"].items():
        found = report["tasks"][task]
        assert_equal(found, entry["out"]["total"])
        assert list(found["categories"]) == list(entry["out"]["categories"])
        for label, expected in entry["out"]["categories"].items():
            assert_equal(found["categories"][label], expected)
    assert_equal(report["overall"], reference["overall"]["total"])


def test_another_alpha_agrees_too(reference, folder):
    assert_equal(official_report(read_judged([folder]), 0.3)["overall"], reference["overall_alpha_0.3"]["total"])


def test_the_tables_print_the_references_percentages(reference, folder):
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    report = score_report(read_judged([folder]))
    console.print(official_table(report))
    for table in category_tables(report):
        console.print(table)
    printed = [re.findall(r"[^\s│]+", line) for line in console.export_text().splitlines()]
    rows = {line[0]: line[2:] for line in printed if len(line) == 6}
    outs = {task: entry["out"]["report_text"] for task, entry in reference["tasks"].items()}
    for name, text in {**outs, "overall": reference["overall"]["report_text"]}.items():
        shown = re.findall(r"(?:Score|Steps?): ([\d.]+)", text)[:4]
        assert rows[name] == shown, name


# --- parsing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "binary", "fraction"),
    [
        (None, None, None),
        (3, None, None),
        ("<SCORE>Step 1: 1/1</SCORE>", None, None),
        ("<score>Step 1: 1/1", None, None),
        ("<score>Step 1: 1/1</score><score>Step 1: 0/1</score>", [1], [1.0]),
        ("<score>Step 1: 1/2</score>", [], [0.5]),
        ("<score>Step 1:\t1/1</score>", [], [1.0]),
        (["<score>Step 1: 1/1\n</score>"], [1], [1.0]),  # Python's text of a list shows a line break as two characters
        ({"score": "<score>Step 1: 0/1</score>"}, [0], [0.0]),
        ("<score>" + f"Step 1: {'9' * 400}/1</score>", [], None),
        ("<score>" + f"Step 1: {'9' * 5000}/1</score>", [], None),
    ],
)
def test_odd_fields(field, binary, fraction):
    assert parse_ratings(field, fraction=False) == binary
    assert parse_ratings(field, fraction=True) == fraction


@given(st.lists(st.booleans(), max_size=12))
def test_a_well_formed_reply_is_read_alike_by_both_parsers(values):
    text = form(*(f"{int(value)}/1" for value in values))
    expected = [int(value) for value in values]
    assert parse_ratings(text, fraction=False) == parse_ratings(text, fraction=True) == expected


@given(st.text())
def test_no_text_breaks_a_parser(text):
    for fraction in (False, True):
        ratings = parse_ratings(text, fraction)
        assert ratings is None or all(rating >= 0 for rating in ratings)


def test_item_scores_by_hand():
    assert item_scores([1, 0, 1, 0]) == (0, pytest.approx(2 / 3), 4)  # (1 + 0 + 1) / 3
    assert item_scores([1]) == (1, 0.0, 1)  # no reasoning is punished
    assert item_scores([]) is None
    assert item_scores(None) is None


def test_totals_by_hand():
    # Two items that count: recognition (1 + 0) / 2, reasoning (1/2 + 0) / 2, steps (3 + 1) / 2.
    found = totals([item_scores([1, 0, 1]), None, item_scores([0])], alpha=0.25)
    assert asdict(found) == {
        "count": 2, "sum_recognition": 1, "sum_reasoning": 0.5, "sum_steps": 4,
        "recognition": 0.5, "reasoning": 0.25, "cot": 0.25 * 0.5 + 0.75 * 0.25, "avg_step": 2.0,
    }  # fmt: skip
    assert set(asdict(totals([None])).values()) == {0}


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_a_weight(alpha):
    with pytest.raises(UserError, match=r"alpha: got .* expected a weight from 0 to 1"):
        totals([], alpha)


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=1, max_size=20), st.floats(0, 1))
def test_the_mean_cot_of_items_is_the_tasks_cot(ratings, alpha):
    items = [item_scores(row) for row in ratings]
    found = totals(items, alpha)
    assert found.cot == pytest.approx(sum(scores.cot(alpha) for scores in items) / len(items))
    assert 0 <= min(found.recognition, found.reasoning) <= found.cot + 1e-12
    assert found.cot <= max(found.recognition, found.reasoning) + 1e-12


def test_only_er_wild_merges_spellings():
    rows = [("happy", item_scores([1])), ("happiness", item_scores([0])), ("fear", None)]
    assert {name: entry.count for name, entry in category_totals(rows, TASKS["ER-Wild"]).items()} == {"happiness": 2}
    assert list(category_totals(rows, TASKS["ER-Lab"])) == ["happiness", "happy"]
    assert [category(gold, TASKS["SA"]) for gold in (["a", "b"], None, "x ")] == ["a,b", "None", "x "]


def test_tasks_are_named_in_many_ways():
    assert task_named(" fg_sa ").name == "FG-SA"
    assert task_named("er wild") is TASKS["ER-Wild"]
    for wrong in ("ER", None, 3):
        with pytest.raises(UserError, match="expected one of ER-Lab"):
            task_named(wrong)


# --- files ------------------------------------------------------------------------------------------------------------


def write(path, rows, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return path


ROW = {"video_id": "v", "ground_truth": "sad", "model_response": "x", "step": "Step 1: sad", "score": form("1/1")}
OURS = ROW | {"task": "SA", "mode": "slow", "judge": "j", "repeat": 0, "error": None}


def test_files_of_both_kinds_are_read(tmp_path):
    expected = Judged("SA", "v", "sad", form("1/1"), "Step 1: sad")
    assert read_judged([write(tmp_path / "SA.json", [ROW])]) == [expected]
    assert read_judged([write(tmp_path / "x" / "sa.jsonl", [ROW], lines=True)]) == [expected]
    ours = replace(expected, mode="slow", judge="j")
    assert read_judged([write(tmp_path / "y" / "judged.jsonl", [OURS], lines=True)]) == [ours]
    assert read_judged([tmp_path / "y"]) == [ours]
    write(tmp_path / "z" / "slow" / "SA.json", [ROW])
    write(tmp_path / "z" / "fast" / "SA.json", [ROW])
    assert {row.mode for row in read_judged([tmp_path / "z"])} == {"slow", "fast"}


def test_of_our_records_the_last_of_an_item_counts(tmp_path, caplog):
    failed = OURS | {"score": None, "error": "no reply"}
    path = write(tmp_path / "judged.jsonl", [failed, OURS, OURS | {"repeat": 1}], lines=True)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"task": "SA", "mo')  # the line that a kill cut through
    found = read_judged([path])
    assert [(row.repeat, row.error) for row in found] == [(0, None), (1, None)]
    assert "half written" in caplog.text
    assert len(first_judgements(found)) == 1


def test_every_item_of_the_references_files_counts_even_those_with_one_id(tmp_path):
    found = read_judged([write(tmp_path / "SA.json", [ROW, ROW, {}])])
    assert [row.id for row in found] == ["v", "v", "#3"]
    assert official_report(found)["tasks"]["SA"]["count"] == 2


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("SA.json", "{", "not JSON"),
        ("SA.json", '{"a": 1}', "expected a JSON array of objects, got dict"),
        ("SA.json", "[3]", "item 1: expected an object, got 3"),
        ("SA.jsonl", "{}\n3\n{}\n", "line 2: expected a row as one JSON object"),
        ("SA.jsonl", "{}\n{\n{}\n", "line 2: expected a row as one JSON object"),
        ("results.json", "[{}]", "which task"),
        ("SA.json", "[]", "no judged items"),
        ("judged.jsonl", '{"task": "XX", "mode": "slow"}\n', "item 1: task: got 'XX'"),
        ("judged.jsonl", '{"task": "SA", "mode": "mid"}\n', "item 1: mode: got 'mid'"),
        ("judged.jsonl", '{"task": "SA", "mode": "slow", "repeat": -1}\n', "item 1: repeat: got -1"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=problem) as caught:
        read_judged([path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_ways_of_giving_nothing(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_judged([tmp_path / "SA.json"])
    with pytest.raises(UserError, match="nothing of a task in it"):
        read_judged([tmp_path])
    with pytest.raises(UserError, match="got none"):
        read_judged([])
    both = [write(tmp_path / part / "SA.json", [ROW]) for part in ("a", "b")]
    with pytest.raises(UserError, match="already read from"):
        read_judged(both)


# --- audited mode -----------------------------------------------------------------------------------------------------


def test_lost_items_count_as_zero_and_the_change_is_told():
    rows = [item(form("1/1", "1/1")), item(None, name="b"), item("no idea", name="c")]
    entry = audited_report(rows, {"SA": ["a", "b", "c", "d"], "IR": ["x"]})["tasks"]["SA"]
    counts = {name: entry[name] for name in ("n", "n_scored", "n_failed", "n_unparsed", "n_missing")}
    assert counts == {"n": 4, "n_scored": 1, "n_failed": 1, "n_unparsed": 1, "n_missing": 1}
    for name in ("recognition", "reasoning", "cot"):  # one of four instead of one of one
        figure = entry[name]
        assert (figure["official"], figure["audited"], figure["change"]) == (1.0, 0.25, -0.75)
        assert 0 <= figure["low"] <= 0.25 <= figure["high"] <= 1


def test_a_task_without_any_judged_item_is_missing_as_a_whole():
    report = audited_report([item(form("1/1"))], {"SA": ["a"], "IR": ["x", "y"]})
    assert report["tasks"]["IR"]["n_missing"] == 2
    assert report["overall"]["n"] == 3
    assert report["overall"]["recognition"]["audited"] == pytest.approx(1 / 3)


def test_without_losses_both_modes_agree(folder):
    rows = [row for row in read_judged([folder]) if score_field(row.score, fraction=True) is not None]
    rows = [row for row in rows if score_field(row.score, TASKS[row.task].fraction) is not None]
    report = audited_report(rows)
    assert not report["missing_known"]
    for entry in [*report["tasks"].values(), report["overall"]]:
        assert [entry[name]["change"] for name in ("recognition", "reasoning", "cot")] == [0, 0, 0]


@given(st.lists(st.one_of(st.none(), st.just("?"), st.lists(st.integers(0, 1), min_size=1, max_size=4)), max_size=15))
def test_counting_what_is_lost_never_raises_a_score(rows):
    texts = [form(*(f"{value}/1" for value in row)) if isinstance(row, list) else row for row in rows]
    entry = audited_report([item(text, name=str(n)) for n, text in enumerate(texts)], resamples=10)["overall"]
    lost = entry["n_failed"] + entry["n_unparsed"]
    assert lost == sum(not isinstance(row, list) for row in rows)
    for name in ("recognition", "reasoning", "cot"):
        figure = entry[name]
        assert figure["change"] <= 0
        assert (entry["n"] - lost) * figure["official"] == pytest.approx(entry["n"] * figure["audited"])


def test_audited_counts_add_up_on_the_references_files(reference, folder):
    report = audited_report(first_judgements(read_judged([folder])))
    for task, entry in reference["tasks"].items():
        found = report["tasks"][task]
        assert found["n"] == len(entry["entries"])
        assert found["n_scored"] == entry["out"]["total"]["count"]
        assert found["n_scored"] + found["n_failed"] + found["n_unparsed"] == found["n"]
        expected = entry["out"]["total"]["sum_recognition"] / len(entry["entries"])
        assert found["recognition"]["audited"] == pytest.approx(expected, abs=TOLERANCE)


def test_ratings_are_checked_against_the_steps():
    two = "<step>Step 1: He smiles.\nStep 2: positive</step>"
    rows = [
        item(form("1/1", "1/1"), name="fits", step=two),
        item(form("1/1"), name="fewer", step=two),
        item(form("1/1", "1/1", "1/1"), name="more", step=two),
        item(form("1/1", "1/2"), name="skipped", step=two),  # the binary parser takes the rating of step 1
        item(form("2/1"), name="above", step="<step>Step 1: positive</step>"),
        item(form("0/1"), name="error", step="Error: no reply in time"),
        item(form("0/1"), name="unknown", step="positive"),
        item(form("0/1"), name="fits", step="Step 1: positive"),
    ]
    found = checked(rows)
    assert found.pop("n_steps_known") == 6
    assert {kind: entry["ids"] for kind, entry in found.items()} == {
        "fewer_ratings": ["fewer", "skipped"],
        "more_ratings": ["more"],
        "skipped_ratings": ["skipped"],
        "above_one": ["above"],
        "failed_extractions": ["error"],
        "repeated_ids": ["fits"],
    }
    assert official_report(rows[3:4])["tasks"]["SA"]["recognition"] == 1, "as the reference reads it"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (None, None),
        ("", None),
        ("happy", None),
        ("Error: Step 1: x", None),
        ("step 1: a step 2. b STEP 3) c", 3),
        ("Step 1: a. Step 2: as in Step 1: b", 2),
        ("Step 1 is missing its colon", None),
    ],
)
def test_steps_are_counted(text, steps):
    assert count_steps(text) == steps


def test_notes_say_what_a_reader_should_know(folder):
    rows = read_judged([folder / "SA.json"])
    lines = "\n".join(notes(score_report(rows)))
    assert "overall is over 1 of 8 tasks" in lines
    assert "missing items are unknown" in lines
    assert "SA_edge" in lines


# --- slow and fast, judges --------------------------------------------------------------------------------------------


def test_slow_and_fast_are_compared_on_the_same_clips():
    slow = [item(form("1/1", "1/1"), name=name, mode="slow") for name in "ab"] + [item(None, name="c", mode="slow")]
    fast = [item(form("1/1"), name=name, mode="fast") for name in "acd"]
    found = paired_report(slow, fast)["overall"]
    # Pairs a: recognition 1 - 1, reasoning 1 - 0; c: recognition 0 - 1 (failed counts as zero), reasoning 0 - 0.
    assert found["n"] == 2
    assert found["recognition"]["mean"] == -0.5
    assert found["reasoning"]["mean"] == 0.5
    assert found["cot"]["mean"] == 0
    assert paired_report(slow, fast)["n_unmatched"] == 2
    report = score_report([*slow, *fast])
    assert list(report["modes"]) == ["slow", "fast"]
    assert report["differences"]["slow - fast"] == paired_report(slow, fast)


def test_a_pair_of_equal_sides_differs_by_nothing(folder):
    rows = list({(row.task, row.id): row for row in read_judged([folder])}.values())
    found = paired_report(rows, rows)
    for entry in [*found["tasks"].values(), found["overall"]]:
        for name in ("recognition", "reasoning", "cot"):
            assert entry[name] == {"mean": 0, "low": 0, "high": 0}


def test_kappa_by_hand():
    # 3 of 4 equal; chance: (2/4)(3/4) for 1 and (2/4)(1/4) for 0 = 1/2; (3/4 - 1/2) / (1/2).
    assert cohen_kappa([1, 1, 0, 0], [1, 1, 1, 0]) == pytest.approx(0.5)
    assert cohen_kappa([1, 1], [1, 1]) is None
    assert cohen_kappa([], []) is None


@given(st.lists(st.sampled_from([0, 1, 0.5]), min_size=2))
def test_kappa_of_equal_raters_is_one(values):
    assert cohen_kappa(values, values) in (None, pytest.approx(1))


def test_kappa_agrees_with_scikit_learn():
    from sklearn.metrics import cohen_kappa_score

    left, right = [0, 1, 1, 0, 2, 2, 1, 0, 1], [0, 1, 0, 0, 2, 1, 1, 1, 1]
    assert cohen_kappa(left, right) == pytest.approx(cohen_kappa_score(left, right))


def test_repeated_judgements_are_compared():
    first = [item(form("1/1", "1/1"), name="a"), item(form("0/1", "1/1"), name="b"), item(None, name="c")]
    again = [
        item(form("1/1", "0/1"), name="a", repeat=1),
        item(form("0/1"), name="b", repeat=1),
        item(form("1/1"), name="c", repeat=1),
    ]
    report = score_report([*first, *again])
    assert report["overall"]["count"] == 2, "the first judgement is scored"
    agreement = report["agreement"]
    (pair,) = agreement["pairs"].values()
    # Both rated a (recognition 1, then 0) and b (1, then 0); a has two ratings each time, its first both times 1.
    assert pair == {
        "n": 2, "n_one_only": 1, "same_recognition": 0.0, "kappa": 0.0, "same_number": 0.5, "same_step_ratings": 1.0,
    }  # fmt: skip
    assert [run["recognition"] for run in agreement["runs"].values()] == [1.0, pytest.approx(1 / 3)]
    assert agreement["spread"]["recognition"]["high"] == 1.0
    assert list(runs_of([*first, *again])) == ["judge #1", "judge #2"]


def test_agreement_needs_shared_items():
    with pytest.raises(UserError, match="got 1 run"):
        agreement_report({"a": [item(form("1/1"))]})
    with pytest.raises(UserError, match="no item was rated in two runs"):
        agreement_report({"a": [item(form("1/1"))], "b": [item(form("1/1"), name="z")]})


# --- without a judge --------------------------------------------------------------------------------------------------


def labelled(response, gold, task="ER-Lab", candidates=None):
    return LabelItem(task, response, gold, candidates)


SIX = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            labelled("<think>Bright.</think><answer> happiness </answer>", ("happiness",), candidates=SIX),
            (1, 1, True),
        ),
        (labelled("<answer>Joyful!</answer>", ("happiness",), candidates=SIX), (1, 1, True)),
        (labelled("happy", ("happiness",)), (1, 1, True)),
        (labelled("<answer>sad, happy</answer>", ("happiness",), candidates=SIX), (0, 1, True)),  # sad came first
        (labelled("<answer>blue-ish zzqx</answer>", ("happiness",), candidates=SIX), (0, 0, False)),
        (labelled("", ("happiness",)), (0, 0, False)),
        (labelled("He seems to be happy, I would say, or not.", ("happiness",)), (0, 0, False)),  # prose is not read
        (labelled("<answer>positive</answer>", ("positive",), "SA"), (1, 1, True)),
        (labelled("<answer>strong positive</answer>", ("positive",), "FG-SA"), (0, 0, True)),
        (labelled("<answer>Strongly Positive.</answer>", ("strong positive",), "FG-SA"), (1, 1, True)),
        (labelled("<answer>positive, very strong</answer>", ("very strong negative",), "FG-SA"), (0, 0, True)),
        (labelled("<answer>thank</answer>", ("thank",), "IR", ("thank", "complain")), (1, 1, True)),
        (labelled("<answer>sad, angry, glad</answer>", ("sadness", "fear"), "ML-ER", SIX), (0.5, 1, True)),
        (labelled("<answer>angry</answer>", ("sadness", "fear"), "ML-ER", SIX), (0, 0, True)),
        (labelled("<answer>sad, scared, angry</answer>", ("sadness", "fear"), "FG-ER"), (1, 1, True)),
    ],
)
def test_labels_are_matched(row, expected):
    assert match(row, builtin()) == expected


@pytest.mark.parametrize("label", SIX)
def test_every_gold_label_matches_itself_and_no_other(label):
    """The gold answer must earn the full score, whatever the question offers."""
    for candidates in (SIX, None):
        assert match(labelled(f"<answer>{label}</answer>", (label,), candidates=candidates), builtin()) == (1, 1, True)
        for other in SIX:
            if other != label:
                row = labelled(f"<answer>{label}</answer>", (other,), candidates=candidates)
                assert match(row, builtin())[0] == 0, (label, other)


def test_answers_without_tags_are_read_if_they_are_short():
    assert stated_words("Happy") == ("happy",)
    assert stated_words("<think>happy") == ()
    assert stated_words("one two three four five six seven") == ()


def test_gold_fields():
    assert gold_labels("fear, sadness,anxiety,") == ("fear", "sadness", "anxiety")
    assert gold_labels(["fear", " "]) == ("fear",)


def test_the_label_report_names_itself_and_counts_what_it_cannot_read():
    rows = [labelled("<answer>happy</answer>", ("happiness",), candidates=SIX), labelled("", ("fear",))]
    report = label_report(rows, builtin())
    assert "no judge" in report["method"]
    assert report["overall"]["n_unread"] == 1
    assert report["tasks"]["ER-Lab"]["recognition"]["mean"] == 0.5
    assert "no judge" in str(label_table({"slow": report}).title)


# --- tables and imports -----------------------------------------------------------------------------------------------


def test_all_tables_can_be_shown(folder):
    from rich.console import Console

    rows = read_judged([folder])
    slow = [replace(row, mode="slow") for row in rows]
    fast = [replace(row, mode="fast", repeat=repeat, id=f"[b]{row.id}") for row in rows for repeat in (0, 1)]
    report = score_report([*slow, *fast, replace(fast[0], id=slow[0].id)])
    console = Console(width=100, record=True, file=io.StringIO())
    for table in (official_table(report), audited_table(report), *category_tables(report)):
        console.print(table)
    console.print(agreement_table(report["modes"]["fast"]["agreement"]))
    text = console.export_text()
    assert "slow - fast" in text
    assert "judge #2" in text
    json.dumps(report, allow_nan=False)


def test_scoring_loads_no_machinery_of_training(folder):
    program = (
        "import sys; from pathlib import Path\n"
        "from mer_r1.benchmarks.mme_emotion.scores.compare import score_report\n"
        "from mer_r1.benchmarks.mme_emotion import run\n"
        "from mer_r1.benchmarks.mme_emotion.judged import read_judged\n"
        f"score_report(read_judged([Path({str(folder)!r})]))\n"
        "heavy = ('torch', 'transformers', 'openai', 'pandas', 'sklearn')\n"
        "sys.exit(', '.join(name for name in heavy if name in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
