import errno
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import run_json, write_lines, write_run

from mer_r1.app.page import SCENES
from mer_r1.data.claim import write_signed
from mer_r1.data.clip import Clip
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.intervals import bootstrap
from mer_r1.evaluation.records import Record, read_records
from mer_r1.evaluation.report import all_records, curves, figures, showcase, svg, write_report
from mer_r1.evaluation.report.page import _constant, clock, contents, number
from mer_r1.evaluation.report.run_folder import Stage
from mer_r1.evaluation.summary import compare, summarise

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """The elements of a page, with every tag closed by its own; `text` is what a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def attributes(self, *names):
        return [value for _, found in self.elements for name, value in found.items() if name in names]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), clips=20)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("bare"), clips=3, media=0)


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def page_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def missing(page_text):
    return re.findall(r'<p class="missing">(.*?)</p>', page_text, re.DOTALL)


def test_the_page_shows_the_numbers_of_the_records(run):
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    stages = {name: read_records(run / "eval" / f"{name}.jsonl") for name in ("sft", "rl")}
    for records in stages.values():
        for row in summarise(records)["modes"].values():
            for name in ("precision", "recall", "f1"):
                assert f"{row[name]['mean']:.3f}" in page.text
                assert f"{row[name]['low']:.3f} to {row[name]['high']:.3f}" in page.text
    gain = compare(stages["rl"], stages["sft"], "slow")["f1"]
    assert f"{number(gain['low'], 3, True)} to {number(gain['high'], 3, True)}" in page.text
    cost = compare(stages["rl"], read_records(run / "eval" / "rl-audio-exchanged.jsonl"), "slow")["f1"]
    assert number(cost["mean"], 3, True) in page.text
    assert "Built-in scenes are generated" in page.text
    assert missing(text) == []


def test_the_page_shows_clips_curves_and_settings(run):
    page = page_of(run)
    assert page.text.count("Raw completion") == 8
    images = [found["src"] for tag, found in page.elements if tag == "img"]
    assert len(images) == 8 * 4
    assert all(source.startswith("data:image/jpeg;base64,/9j/") for source in images)
    assert (
        sum(found["src"].startswith("data:audio/wav;base64,UklGR") for tag, found in page.elements if tag == "audio")
        == 8
    )
    for word in (
        "Objectives",
        "Confidence, correct",
        "Calibration terms",
        "rl.method",
        "mer-r1",
        "0123456789ab",
        "2.15.0",
    ):
        assert word in page.text
    assert "“Please, leave the light on.”" in page.text


def test_the_page_needs_nothing_from_outside(run):
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert all(value.startswith(("data:", "#")) for value in page.attributes("src", "href", "srcset", "data", "action"))
    assert not re.search(r"https?:|@import|url\(", text)
    assert {"script", "iframe", "object", "embed"}.isdisjoint(tag for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, found in page.elements for name in found)
    assert str(run) not in text


def test_the_page_can_be_read_without_seeing_it(run):
    page = page_of(run)
    assert all(found.get("alt") for tag, found in page.elements if tag == "img")
    assert all(found.get("aria-label") for tag, found in page.elements if tag == "audio")
    drawings = [found for tag, found in page.elements if tag == "svg"]
    assert all(found.get("aria-label") or found.get("aria-hidden") == "true" for found in drawings)
    headers = [found for tag, found in page.elements if tag == "th"]
    assert len(headers) > 30
    assert all("scope" in found for found in headers)


def test_markup_from_outside_is_shown_as_text(copy):
    records = [
        Record(
            f"test-{index:05d}", mode, EVIL, reasoning=EVIL, labels=[EVIL, "sad"], gold=["sad", EVIL], model=EVIL,
            scores={"precision": 0.5, "recall": 0.5, "f1": index / 4}, error=EVIL if index == 2 else None,
        ).to_dict()
        for index in range(4)
        for mode in ("slow", "fast")
    ]  # fmt: skip
    write_lines(copy / "eval" / "rl.jsonl", records)
    write_lines(copy / "rl" / "log.jsonl", [{"step": 1, EVIL: 0.5, f"seconds/{EVIL}": 1, "loss": 1}])
    manifest = [{"id": f"test-{i:05d}", "subtitle": EVIL, "meta": {"description": EVIL}} for i in range(4)]
    write_lines(copy / "scenes" / "manifest.jsonl", manifest)
    entry = run_json()
    entry |= {"title": EVIL, "settings": {EVIL: EVIL}, "versions": {EVIL: EVIL}, "commit": EVIL}
    entry["stages"][1]["title"] = EVIL
    entry["conditions"] = {EVIL: "eval/rl.jsonl", "gone": EVIL}
    write_lines(copy / "run.json", [entry])
    page = page_of(copy)
    assert {"script", "x"}.isdisjoint(tag for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, found in page.elements for name in found)
    assert page.text.count("<script>alert(1)</script>") > 20


@pytest.mark.parametrize("name", ["../outside.jsonl", "/etc/passwd", "eval/../../outside.jsonl", "link", "x" * 5000])
def test_no_file_outside_the_folder_is_shown(copy, name):
    outside = copy.parent / "outside.jsonl"
    shutil.copy(copy / "eval" / "rl.jsonl", outside)
    if not (copy / "link").is_symlink():
        (copy / "link").symlink_to(outside)
    entry = run_json()
    entry["stages"][1] |= {"records": name, "logs": name}
    entry["conditions"] = {"elsewhere": name}
    entry["manifest"] = name
    write_lines(copy / "run.json", [entry])
    found = contents(copy)
    assert [bool(stage.records) for stage in found["stages"]] == [True, False]
    assert found["stages"][1].panels == []
    assert "root:" not in page_of(copy).text


def without(*names):
    def change(folder):
        entry = run_json()
        for name in names:
            entry.pop(name)
        write_lines(folder / "run.json", [entry])

    return change


def removed(path):
    return lambda folder: (folder / path).unlink()


def written(path, text):
    return lambda folder: (folder / path).write_text(text)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (removed("run.json"), "run.json is missing"),
        (written("run.json", "{"), "run.json is no JSON"),
        (written("run.json", "[]"), "run.json: expected an object, name -&gt; value, got list, so nothing is known"),
        (without("stages"), "No stages are named in run.json"),
        (without("manifest"), "No manifest is named in run.json"),
        (without("conditions"), "No condition is named in run.json"),
        (without("settings", "versions"), "Settings are not named in run.json"),
        (removed("eval/sft.jsonl"), "SFT: No records: eval/sft.jsonl: cannot be read"),
        (written("eval/rl.jsonl", "{}\n"), "MER-R1: No records: eval/rl.jsonl line 1: a record without id"),
        (written("eval/rl.jsonl", ""), "MER-R1: No records: eval/rl.jsonl is empty"),
        (removed("eval/rl-video-exchanged.jsonl"), "No records of “Video exchanged”"),
        (removed("rl/log.jsonl"), "No training log: rl/log.jsonl: cannot be read"),
        (written("rl/log.jsonl", "{\n{}\n"), "No training log: rl/log.jsonl line 1: expected a row as one JSON object"),
        (written("rl/log.jsonl", '{"loss": 1}\n'), "No training log: rl/log.jsonl: no line has a step"),
        (removed("scenes/manifest.jsonl"), "The clips are shown without video, audio and subtitle"),
        (
            lambda folder: write_lines(folder / "run.json", [{**run_json(), "wheels": "gone"}]),
            "Words are judged by the built-in wheels instead",
        ),
        (
            lambda folder: write_lines(
                folder / "eval" / "rl-audio-exchanged.jsonl", [Record("z", "slow", "").to_dict()]
            ),
            "“Audio exchanged” has no scored clip in common with MER-R1",
        ),
        (lambda folder: shutil.rmtree(folder / "scenes" / "clips"), "No video or audio:"),
    ],
)
def test_a_missing_part_is_said_and_the_rest_is_shown(copy, damage, said):
    damage(copy)
    text = write_report(copy).read_text(encoding="utf-8")
    Page(text)
    assert any(said in sentence for sentence in missing(text)), missing(text)
    assert str(copy) not in text


@pytest.mark.parametrize(
    "wrong", [None, 3, "x", [], ["x"], {}, {"a": None}, [{}], {"a": float("nan")}, [{"records": 3, "logs": []}]]
)
def test_parts_of_a_wrong_type_do_not_stop_the_page(bare, tmp_path, wrong):
    folder = shutil.copytree(bare, tmp_path / "run")
    for name in run_json():
        write_lines(folder / "run.json", [{**run_json(), name: wrong}])
        page_of(folder)


def test_an_empty_folder_still_has_a_page_and_no_folder_has_none(tmp_path):
    page = write_report(tmp_path, tmp_path / "other.html")
    assert page.name == "other.html"
    Page(page.read_text(encoding="utf-8"))
    with pytest.raises(UserError, match="expected the folder of a run"):
        write_report(tmp_path / "none")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(tmp_path, tmp_path / "none" / "page.html")


def test_a_page_that_does_not_fit_leaves_the_old_one(tmp_path, monkeypatch):
    page = write_report(tmp_path, tmp_path / "page.html")
    before, write = page.read_bytes(), Path.write_bytes

    def full(path, content):
        write(path, content[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"page\.html: cannot write the report: No space left on device"):
        write_report(tmp_path, page)
    assert page.read_bytes() == before
    assert list(tmp_path.iterdir()) == [page]


def test_half_a_character_in_a_completion_does_not_stop_the_page(copy):
    row = Record(
        "test-00000", "slow", "\ud83d", reasoning="\ud83d", gold=["sad"], scores={"precision": 0, "recall": 0, "f1": 0}
    )
    write_lines(copy / "eval" / "rl.jsonl", [row.to_dict()])
    page_of(copy)


def test_one_mode_and_one_clip_are_enough(copy):
    rows = [json.loads(line) for line in (copy / "eval" / "rl.jsonl").read_text().splitlines()]
    write_lines(copy / "eval" / "rl.jsonl", [row for row in rows if row["mode"] == "slow"][:1])
    assert "–" not in page_of(copy).text.split("Fast and slow at each stage")[0]


def test_best_and_worst_are_disjoint_and_ordered():
    records = [
        Record(name, "slow", "", scores={"precision": f1, "recall": f1, "f1": f1})
        for name, f1 in zip("dcba", (0.5, 1, 0, 0.5), strict=True)
    ]
    best, worst = showcase.pick([*records, Record("e", "slow", "", error="broken"), Record("c", "fast", "")], 2)
    assert [record.id for record in best] == ["c", "a"]
    assert [record.id for record in worst] == ["b", "d"]
    best, worst = showcase.pick(records[:3], 4)
    assert [record.id for record in best + worst] == ["c", "d", "b"]


def test_words_are_judged_by_the_wheels():
    chips = showcase.judge(["joyful", "angry", "zzqx"], ["happy"], builtin())
    assert [chip.verdict for chip in chips] == ["hit", "miss", "unknown"]
    assert chips[0].said == f"right on {len(builtin().wheels)} of {len(builtin().wheels)} wheels"
    # Without any gold word there is nothing to be right or wrong about.
    assert [chip.verdict for chip in showcase.judge(["joyful"], [], builtin())] == ["unknown"]


def test_logged_values_share_panels_and_none_is_lost():
    rows = [{"step": step, "rewards/recall_reward/mean": 0.5, "rewards/precision_reward/mean": 0.6, "odd": step,
             "epoch": 0.1, "loss": float("nan")} for step in (1, 2)]  # fmt: skip
    main, other = curves.panels(rows)
    assert [(panel.title, [name for name, _ in panel.legend]) for panel in main] == [
        ("Objectives", ["recall", "precision"])
    ]
    assert [panel.title for panel in other] == ["odd"]


def test_a_half_written_log_line_is_dropped(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert curves.read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": 2}]


def test_a_point_lies_where_its_numbers_say():
    frame = svg.Frame(10, 20, 100, 50, (0, 2), (0, 1))
    assert frame.at(0, 0) == (10, 70)
    assert frame.at(1, 0.5) == (60, 45)
    assert frame.at(2, 1) == (110, 20)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e299, 1e299)), min_size=1, max_size=20))
def test_any_log_can_be_drawn(points):
    drawing = figures.lines({"x": points}, "title", {"x": "other0"})
    assert not re.search(r"nan|inf", drawing)
    assert drawing.startswith("<svg")


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_results_can_be_drawn(clips):
    results = [
        figures.Result(f"stage {index}", mode, bootstrap(values, resamples=5), bootstrap(values[::-1], resamples=5))
        for index, values in enumerate(clips)
        for mode in ("slow", "fast")
    ]
    drawing = figures.precision_recall(results)
    assert not re.search(r"nan|inf", drawing)
    assert drawing.count('class="marker slow"') == len(clips)


def test_curves_of_equal_f1_are_right():
    frame = svg.Frame(0, 0, 1000, 1000, (0, 1), (0, 1))
    curve = next(str(part) for part in figures._iso_f1(frame) if 'class="iso"' in part)
    points = (
        np.array([pair.split() for pair in re.search(r'd="M(.*?)"', curve).group(1).split("L")], dtype=float) / 1000
    )
    recall, precision = points[:, 0], 1 - points[:, 1]
    np.testing.assert_allclose(2 * precision * recall / (precision + recall), 0.05, atol=2e-3)


def test_round_ticks():
    assert svg.ticks(0.58, 0.83, 5) == [0.6, 0.65, 0.7, 0.75, 0.8]
    assert svg.ticks(1, 1, 3) == [1]
    assert svg.ticks(4, 0, 2) == [0, 2, 4]


def test_numbers_and_times_as_people_write_them():
    assert [number(None), number(float("nan")), number(-0.0204, 2), number(0.1, 1, True)] == ["–", "–", "−0.02", "+0.1"]
    assert [clock(None), clock(59.6), clock(3599), clock(7260)] == ["–", "1 min 0 s", "59 min 59 s", "2 h 1 min"]


def test_one_clip_with_film_question_gold_and_answers_is_on_top(run):
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    films = [found for tag, found in page.elements if tag == "video"]
    assert len(films) == 1
    assert films[0]["src"].startswith("data:video/mp4;base64,")
    assert "muted" in films[0]
    top = text[text.index('id="example"') : text.index("<nav")]
    assert text.index("</header>") > text.index("<nav")
    slow = contents(run)["example"][2][-1]
    assert slow.mode == "slow"
    assert slow.reasoning in top
    assert all(f">{word}" in top for word in slow.labels)
    linked = [value[1:] for value in page.attributes("href") if value.startswith("#")]
    assert {*linked} <= {*page.attributes("id")}
    assert len(linked) == 9


def test_the_typical_clip_is_nearest_to_the_mean():
    scores = {"a": 0.0, "b": 0.4, "c": 0.5, "d": 1.0}  # mean 0.475
    records = [
        Record(name, "slow", "", scores={"precision": f1, "recall": f1, "f1": f1}) for name, f1 in scores.items()
    ]
    broken = Record("e", "slow", "", error="broken")
    assert [record.id for record in showcase.typical([broken, *records])] == ["c", "b", "a", "d"]
    assert showcase.typical([broken, Record("f", "fast", "")]) == []


def test_a_small_h264_file_is_shown_as_it_is_and_another_is_encoded_again(run, tmp_path):
    scene = SCENES / "test-000000.mp4"
    assert showcase.film(Clip("a", scene)) == showcase.data_url("video/mp4", scene.read_bytes())
    other = run / "scenes" / "clips" / "test-00000.mp4"  # MPEG-4 part 2, which browsers do not play
    made = showcase.film(Clip("a", other))
    assert made.startswith("data:video/mp4;base64,")
    assert made != showcase.data_url("video/mp4", other.read_bytes())
    (tmp_path / "broken.mp4").write_bytes(b"x" * 100)
    assert showcase.film(Clip("a", tmp_path / "broken.mp4")) is None
    assert showcase.film(Clip("a", None, scene)) is None


def test_the_best_constant_answer_by_hand():
    gold = [["sad"], ["sad"], ["sad"], ["angry"]]
    scores = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    stage = Stage("x", [Record(str(n), "slow", "", gold=words, scores=scores) for n, words in enumerate(gold)])
    # "sad" is right on three of four clips; "sad, angry" on all with precision 1/2: F1 2/3.
    assert _constant([stage], builtin()) == ("sad", pytest.approx(0.75))
    assert _constant([], builtin()) is None


def test_f1_is_explained_with_a_constant_answer_and_the_oracle(copy):
    write_lines(copy / "run.json", [{**run_json(), "oracle": 0.83}])
    text = " ".join(page_of(copy).text.split())
    word, f1 = contents(copy)["constant"]
    assert f"{f1:.2f} is reached by always answering “{word}”" in text
    assert "0.83 by an observer who reads every cue" in text


def test_all_records_carry_the_classes_that_the_filters_look_for():
    made = {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    slow = Record("b", "slow", "", labels=["sad", "zzqx"], gold=["sad", "low"], scores=made, reasoning="x" * 900)
    fast = Record("a", "fast", "", labels=["sad"], gold=["sad"], scores={**made, "f1": 0.0})
    again = Record("a", "fast", "", gold=["sad"], draw=1)
    found = all_records.browse(
        [("SFT", [slow, fast, again]), ("RL", [Record("b", "slow", "", error="gone")])], builtin()
    )
    assert [(row.clip, row.stage, row.classes) for row in found.rows] == [
        ("a", "SFT", "s0 fast wrong w1"),
        ("b", "SFT", "s0 slow right w1 w0"),
        ("b", "RL", "s1 slow unscored"),
    ]
    assert [chip.verdict for chip in found.rows[1].chips] == ["hit", "unknown"]
    assert len(found.rows[1].reasoning) == all_records.REASONING_CHARACTERS + 2
    assert found.filters[3].values == [("w0", "low"), ("w1", "sad")]
    assert (found.shown, found.clips) == (2, 2)


def test_the_page_stays_small_however_many_records_there_are(tmp_path, monkeypatch):
    page = write_report(write_run(tmp_path, clips=500, media=4))
    assert page.stat().st_size < 5_000_000
    assert "of the first" not in page.read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8").count('<li class="rec ') == 500 * 2 * 2
    monkeypatch.setattr(all_records, "MOST_CHARACTERS", 20_000)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    shown = int(re.search(r"of the first (\d+) of 500 clips", text).group(1))
    assert 0 < text.count('<li class="rec ') == 4 * shown < 200


def test_the_recipe_of_each_stage_is_among_the_settings(copy):
    write_signed(copy / "rl" / "training.json", run={"learning_rate": 0.0005, "calibration": "hinge", "tf32": None})
    text = page_of(copy).text
    assert "Recipe of MER-R1 (2)" in text
    assert "hinge" in text
    assert "Recipe of SFT" not in text
