"""MER-UniBench: the reference's numbers, the guards beside them, and what is counted; by hand and by identity."""

import json
import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.benchmarks.mer_unibench.gold import Gold, read_gold
from mer_r1.benchmarks.mer_unibench.predictions import Answers, Reading, read_predictions
from mer_r1.benchmarks.mer_unibench.report import SLOW_MINUS_FAST, Scoring, score_benchmark
from mer_r1.benchmarks.mer_unibench.scores.agreement import system_agreement, word_agreement
from mer_r1.benchmarks.mer_unibench.scores.audit import Side, audit_replies
from mer_r1.benchmarks.mer_unibench.scores.audit_words import PlacedClips, audit_words, stray_labels
from mer_r1.benchmarks.mer_unibench.scores.official import benchmark_mean, best_checkpoint, official_score
from mer_r1.benchmarks.mer_unibench.scores.tally import resampled, sentiment_tally, word_tally
from mer_r1.benchmarks.mer_unibench.sets import NINE, SETS, named, nine_way_mean
from mer_r1.benchmarks.mer_unibench.tables import OVMERD_COLUMNS, render, score_tables
from mer_r1.benchmarks.mer_unibench.terminal import remarks, scores_table
from mer_r1.emotions import metrics
from mer_r1.emotions.meaning import Meaning
from mer_r1.emotions.wheels import EmotionWheel, Taxonomy, builtin, official
from mer_r1.errors import UserError
from mer_r1.evaluation.intervals import interval_of


@pytest.fixture(scope="module")
def reference(shared):
    return shared / "benchmarks" / "reference"


@pytest.fixture(scope="module")
def wheels(shared):
    return shared / "emotion_wheel"


@pytest.fixture(scope="module")
def tables(wheels):
    return official(wheels)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in value) if path.suffix == ".jsonl" else json.dumps(value)
    path.write_text(text, encoding="utf-8")
    return path


def same(found, expected):
    """Equal to 1e-12, with null for NaN, through lists and objects; further keys of ours are ignored."""
    if isinstance(expected, dict):
        return all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float | int) and isinstance(found, float | int):
        return math.isclose(found, expected, rel_tol=0, abs_tol=1e-12)
    return found == expected


# --- the sets ---------------------------------------------------------------------------------------------------------


def test_the_sets_are_those_that_prepare_knows():
    import layouts

    from mer_r1.corpora.prepare import DATA_SETS

    assert NINE == layouts.NINE
    for name, entry in SETS.items():
        data = DATA_SETS[name]
        assert (entry.kind, entry.clips) == (data.kind, next(iter(data.parts.values())).clips)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("OVMERDPlus", "ovmerdplus"), ("ov-merd+", "ovmerdplus"), ("MOSI", "cmumosi"), ("SIMSv2", "simsv2")],
)
def test_a_set_goes_by_several_names(name, expected):
    assert named(name).name == expected


def test_the_mean_is_of_nine_and_of_no_fewer():
    scores = {name: float(place) for place, name in enumerate(NINE)}
    assert nine_way_mean(scores) == 4.0
    assert math.isnan(nine_way_mean(scores | {"meld": math.nan}))
    del scores["meld"]
    with pytest.raises(UserError, match="no score for MELD"):
        nine_way_mean(scores)


# --- official: the reference's numbers, through the command line ------------------------------------------------------


@pytest.fixture
def read_once(tables, monkeypatch):
    """Commands take the official tables that are read already."""
    monkeypatch.setattr("mer_r1.emotions.wheels.load", lambda folder: tables)


@pytest.mark.usefixtures("read_once")
def test_every_openset_pair_through_the_command(run, reference, wheels, tmp_path):
    data = read(reference / "ovset_pairs.json")
    labels = {key: dict(zip(data["names"], values, strict=True)) for key, values in data["labels"].items()}
    files = {key: write(tmp_path / f"{number}.json", value) for number, (key, value) in enumerate(labels.items())}
    golds = {}
    for pair in data["pairs"]:
        golds.setdefault((pair["gold"], pair["subset"]), []).append(pair)
    checked = 0
    for (name, subset), pairs in golds.items():
        gold = write(tmp_path / "gold.json", dict(list(labels[name].items())[:subset]))
        arguments = [word for pair in pairs for word in ("--predictions", files[pair["pred"]])]
        status, out, err = run("score", "openset", "--gold", gold, *arguments, "--wheels", wheels, "--json")
        assert (status, err) == (0, "")
        reports = json.loads(out)
        for pair in pairs:
            report = reports if len(pairs) == 1 else reports[str(files[pair["pred"]])]
            assert same(report, pair["scores"]), pair
            checked += 1
    assert checked == len(data["pairs"]) == 30


@pytest.mark.usefixtures("read_once")
def test_every_hit_rate_set_through_the_command(run, reference, wheels, tmp_path):
    sets = read(reference / "hitrate.json")
    for item in sets:
        gold, pred = write(tmp_path / "g.json", item["gold"]), write(tmp_path / "p.json", item["pred"])
        _, out, _ = run("score", "hit-rate", "--gold", gold, "--predictions", pred, "--wheels", wheels, "--json")
        assert same(json.loads(out), item["out"])
    assert len(sets) == 10


def test_every_sentiment_set_through_the_command(run, reference, tmp_path):
    sets = read(reference / "sentiment_waf.json")
    for item in sets:
        gold, pred = write(tmp_path / "g.json", item["gold"]), write(tmp_path / "p.json", item["pred"])
        status, out, err = run("score", "sentiment", "--gold", gold, "--predictions", pred, "--json")
        if isinstance(item["out"], dict):
            assert same(json.loads(out), item["out"])
        else:  # the reference stops
            assert status == 2
            assert err.count("\n") == 1
    assert len(sets) == 11


def test_every_word_through_the_command(run, reference, wheels):
    rows = read(reference / "word_map.json")["rows"]
    status, out, err = run("map", "--wheels", wheels, "--json", "--", *(row["word"] for row in rows))
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert len(found) == len(rows) == 200
    assert all(mine == {key: row[key] for key in mine} for mine, row in zip(found, rows, strict=True))


def test_the_benchmark_mean_through_the_command(run, reference, wheels):
    path = reference / "benchmark_mean.json"
    status, out, err = run("score", "benchmark-mean", "--scores", path, "--wheels", wheels, "--json")
    assert (status, err) == (0, "")
    expected, found = read(path), json.loads(out)
    assert same(found["mean"], expected["mean"])
    assert found["table_row"] == expected["table_row"]
    assert all(same(found["datasets"][name]["best"], entry["best"]) for name, entry in expected["datasets"].items())
    assert len(expected["datasets"]) == 9


def reference_folders(path, out):
    """The reference's made run as folders: gold as JSON, results in the reference's layout."""
    data = read(path)
    for title, entry in data["datasets"].items():
        write(out / "gold" / f"{named(title).name}.json", entry["gold"])
        for checkpoint, predictions in entry["checkpoints"].items():
            kind, values = next(iter(predictions.items()))
            ending = "-openset-sentiment" if kind == "sentiment" else "-openset"
            folder = out / "predictions" / f"results-{title.lower()}" / "model"
            write(folder / f"{checkpoint}{ending}.json", values)
    return data


def test_the_whole_benchmark_through_the_command(run, reference, wheels, tmp_path):
    data = reference_folders(reference / "benchmark_mean.json", tmp_path)
    where = ["--predictions", tmp_path / "predictions", "--data", tmp_path / "gold", "--wheels", wheels]
    status, out, err = run("score", "mer-unibench", *where, "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert same(report["mean"]["given"]["official"]["mean"], data["mean"])
    for title, entry in data["datasets"].items():
        found = report["sets"][named(title).name]["modes"]["given"]["official"]
        assert same([found["main"], found["second"], found["third"]], entry["best"])
        assert len(found["checkpoints"]) == len(entry["checkpoints"])
    status, out, _ = run("score", "mer-unibench", *where, "--mode", "official", "--table", "latex")
    row = out[out.index("given (official)") :].splitlines()[0]
    assert " ".join(f"& {cell}" for cell in re.findall(r"\d+\.\d\d", row)) == " ".join(data["table_row"])


def test_the_checkpoint_that_the_reference_reports():
    assert best_checkpoint({"b": 0.5, "a": 0.5, "c": 0.4}) == "a"
    assert best_checkpoint({"a": 0.5, "b": math.nan, "c": math.nan}) == "b"
    with pytest.raises(UserError, match="at least one"):
        best_checkpoint({})


def test_a_mean_from_nine_numbers(run, tmp_path):
    scores = {entry.title: 0.1 * (place + 1) for place, entry in enumerate(SETS[name] for name in NINE)}
    status, out, _ = run("score", "benchmark-mean", "--scores", write(tmp_path / "s.json", scores), "--json")
    assert status == 0
    assert json.loads(out)["mean"] == pytest.approx(0.5)
    assert json.loads(out)["table_row"][-1] == "& 50.00"
    del scores["MELD"]
    status, out, err = run("score", "benchmark-mean", "--scores", write(tmp_path / "s.json", scores))
    assert (status, out) == (2, "")
    assert "MELD" in err


def test_a_broken_benchmark_file_is_named():
    with pytest.raises(UserError, match="expected a number, or an object"):
        benchmark_mean({"MELD": "high"}, builtin())
    entry = {"gold": {"a": "happy"}, "checkpoints": {"one": {"openset": {}}}}
    with pytest.raises(UserError, match=r"MELD, one: predictions: 1 of 1 gold names have none: 'a'"):
        benchmark_mean({"MELD": entry}, builtin())


def test_published_rows_are_those_of_the_papers(shared):
    """Every figure against the transcription, and each mean against the mean of its nine columns."""
    from importlib import resources

    data = json.loads(resources.files("mer_r1.benchmarks.mer_unibench").joinpath("published.json").read_text("utf-8"))
    text = (shared / "benchmarks" / "published.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    rows = {tuple(cells[:2]): cells for cells in lines if len(cells) == 12}
    found = data["mer_unibench"]["rows"]
    assert len(found) == 19
    for row in found:
        cells = rows[row["model"], ",".join(row["modalities"])]
        assert [row["scores"][key] for key in (*NINE, "mean")] == [float(cell) for cell in cells[2:]]
        assert nine_way_mean(row["scores"]) == pytest.approx(row["scores"]["mean"], abs=0.006)
    others = {cells[0]: cells for cells in lines if len(cells) == 15}
    assert len(data["ovmerd"]["rows"]) == 12
    for row in data["ovmerd"]["rows"]:
        assert [row["scores"][key] for key in OVMERD_COLUMNS] == [float(cell) for cell in others[row["model"]][2:]]


# --- headline numbers from sums ---------------------------------------------------------------------------------------

WORDS = ["happy", "sad", "angry", "afraid", "surprised", "neutral", "proud", "table"]
some_words = st.lists(st.sampled_from(WORDS), max_size=4)


@given(st.lists(st.tuples(some_words, some_words), min_size=1, max_size=12), st.sampled_from(["discrete", "open-set"]))
def test_the_sums_give_the_official_number_wherever_it_is_one(pairs, kind):
    golds, predictions = {str(i): g for i, (g, _) in enumerate(pairs)}, {str(i): p for i, (_, p) in enumerate(pairs)}
    main = official_score(kind, golds, predictions, builtin())["main"]
    clips = PlacedClips.place(kind, list(golds.values()), list(predictions.values()), builtin())
    value = clips.tally.value()
    if math.isnan(main):
        assert math.isnan(value) or 0 <= value <= 1
        assert audit_words(clips, 0, 10)["guards"]
    else:
        assert value == pytest.approx(main, abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_the_sums_give_the_weighted_f1(pairs):
    gold, predicted = zip(*pairs, strict=True)
    assert sentiment_tally(gold, predicted).value() == pytest.approx(metrics.weighted_f1(gold, predicted), abs=1e-12)


def test_guards_by_hand():
    empty, a, b = frozenset(), frozenset("a"), frozenset("b")
    # Wheel 1 hits one of two; wheel 2 places no gold word and is left out.
    assert word_tally("discrete", [[a, b], [empty, empty]], [[a, a], [a, b]]).value() == 0.5
    # Wheel 1 has precision and recall 1; wheel 2 has both 0, so F is 0 there.
    assert word_tally("open-set", [[a], [a]], [[a], [b]]).value() == 0.5
    assert math.isnan(word_tally("open-set", [[empty]], [[a]]).value())


def test_resampling_is_drawing_clips_again():
    """Against the plain way: draw indices, score the drawn clips with the metric itself."""
    rng = random.Random(3)
    gold, predicted = ([rng.random() < share for _ in range(23)] for share in (0.7, 0.5))
    tally = sentiment_tally(gold, predicted)
    drawn = np.random.default_rng([5, 1]).integers(0, 23, (40, 23))
    plain = [metrics.weighted_f1([gold[i] for i in row], [predicted[i] for i in row]) for row in drawn]
    assert resampled(tally, (5, 1), 40).tolist() == pytest.approx(plain, abs=1e-12)


def test_intervals():
    assert interval_of(math.nan, np.array([1.0]), 5) == {"mean": None, "low": None, "high": None, "n": 5}
    assert interval_of(0.5, np.array([]), 1) == {"mean": 0.5, "low": None, "high": None, "n": 1}
    found = interval_of(0.5, np.array([0.0, math.nan, 1.0]), 3)
    assert (found["low"], found["high"]) == pytest.approx((0.025, 0.975))
    assert np.isnan(resampled(sentiment_tally([], []), (0, 0), 4)).all()


# --- what the official numbers hide, by hand --------------------------------------------------------------------------


def small_wheels():
    """Two wheels; on the second, surprise is unknown and the label "fear" is moved to joy by the alphabet."""
    first = {"joy": "joy", "sadness": "sadness", "fear": "fear", "surprise": "surprise"}
    second = {"joy": "joy", "sadness": "sadness", "fear": "fear", "apprehension": "joy"}
    forms = {word: (word,) for word in (*first, "glad", "dread")} | {"glad": ("joy",), "dread": ("fear",)}
    synonyms = {word: (word,) for word in first} | {"fear": ("apprehension", "fear")}
    pair = (EmotionWheel("one", "made", first, first), EmotionWheel("two", "made", second, second))
    return Taxonomy(pair, forms, synonyms, alphabetical=True)


def test_words_by_hand():
    gold = [["joy"], ["surprise"], ["neutral"], ["fear"]]
    predicted = [["glad", "Sadness"], ["surprise"], ["joy"], ["zzqx"]]
    clips = PlacedClips.place("discrete", gold, predicted, small_wheels())
    # Wheel one scores clips 1, 2, 4: hits 1, 1, 0. Wheel two scores 1 and 4: hits 1, 0.
    assert clips.tally.value() == pytest.approx((2 / 3 + 1 / 2) / 2)
    found = audit_words(clips, 0, 50)
    assert found["guards"] == []
    assert [found["skipped"][f"wheel{wheel}"]["n"] for wheel in (1, 2)] == [1, 2]
    assert found["skipped"]["wheel2"]["words"] == {"surprise": 1, "neutral": 1}
    assert found["coverage"]["wheel1"] == {"gold": 3 / 4, "predicted": 4 / 5}
    assert found["coverage"]["wheel2"] == {"gold": 2 / 4, "predicted": 3 / 5}
    # Predicted categories of the scored clips: 2, 1, 0 on wheel one; 2, 0 on wheel two.
    assert found["categories"]["wheel1"] == {"predicted": 1.0, "gold": 1.0}
    assert found["categories"]["predicted"] == 1.0
    # Clip 1: P 1/2, R 1, F1 2/3 on both wheels. Clip 2: 1, 1, 1. Clip 3: no wheel. Clip 4: 0.
    unified = found["unified"]
    assert (unified["n_scored"], unified["n_skipped"]) == (3, 1)
    means = [unified[name]["mean"] for name in ("precision", "recall", "f1")]
    assert means == pytest.approx([(1 / 2 + 1) / 3, 2 / 3, (2 / 3 + 1) / 3])
    # "fear" is the second wheel's own label and lands on joy there; "apprehension" is no known form and is dropped.
    stray = found["strays"]["wheel2"]
    assert (stray["labels"], stray["of"]) == (2, 4)
    assert stray["gold"] == {"n": 1, "words": [{"word": "fear", "own": "fear", "placed": "joy", "n": 1}]}
    assert found["strays"]["wheel1"]["labels"] == 0


def test_naming_everything_hits_everything():
    gold = [["joy"], ["sadness"], ["neutral"], ["fear"]]
    found = audit_words(PlacedClips.place("discrete", gold, [["joy"]] * 4, small_wheels()), 0, 50)["everything"]
    # Four words: joy, sadness, neutral, fear. Wheel one sees three categories, wheel two (fear is joy there) two.
    assert (found["words"], found["score"], found["recall"]) == (4, 1.0, 1.0)
    assert found["categories"] == pytest.approx(2.5)
    assert found["precision"] == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_labels_that_leave_their_own_sector_on_the_official_wheels(tables):
    """The counts of the specification (section 4), and its example."""
    assert [len(stray_labels(tables, wheel)) for wheel in range(5)] == [12, 16, 6, 12, 6]
    assert [len(stray_labels(tables, wheel, 2)) for wheel in range(5)] == [24, 31, 18, 32, 21]
    assert stray_labels(tables, 3)["fear"] == ("fear", "genius")


def test_sentiments_by_hand():
    gold = [1.0, 0.5, -1.0, -2.0, 0.0]
    replies = ["positive", "Positive.", "neutral", "positive", "neutral"]
    found = audit_replies(gold, replies)
    assert (found["n_gold_neutral"], found["guards"]) == (1, [])
    assert found["as_negative"] == {
        "n": 2,
        "neutral": 1,
        "unreadable": 1,
        "replies": {"Positive.": 1, "neutral": 1},
    }
    # Forgiving: positive gold 2 of 2 found, one false alarm: F1 4/5; negative 1 of 2: F1 2/3; weights 2 and 2.
    assert found["forgiving"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["accuracy_three"] == pytest.approx(3 / 5)
    # Always positive: F1 of the positives is 2*2/(2+4), of the negatives 0.
    assert found["constant"] == pytest.approx({"positive": (2 / 3) / 2, "negative": (2 / 3) / 2})


def test_only_neutral_gold_is_no_error_when_audited():
    gold = Gold(SETS["sims"], {"a": 0.0})
    side = Side(gold, Answers({"a": "positive"}), builtin())
    found = side.audit(resampled(side.tally, (0, 0), 10), 0, 10)
    assert found["score"]["mean"] is None
    assert "every gold value is 0" in found["guards"][0]


# --- slow, fast and their difference ----------------------------------------------------------------------------------


def scored(golds, predictions, **changes):
    return score_benchmark(golds, predictions, Scoring(builtin(), resamples=200, **changes))


def answers_of(values, **errors):
    return Answers(dict(values), errors)


def test_slow_fast_and_the_difference():
    gold = {f"c{i}": ["happy"] if i % 2 else ["sad"] for i in range(40)}
    half = {name: words if int(name[1:]) % 4 else ["angry"] for name, words in gold.items()}
    runs = {"records": {"slow": answers_of(gold), "fast": answers_of(half)}}
    report = scored({"mer2023": Gold(SETS["mer2023"], gold)}, {"mer2023": runs})["sets"]["mer2023"]
    slow, fast = (report["modes"][mode]["audited"]["score"] for mode in ("slow", "fast"))
    assert slow == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 40}
    assert fast["mean"] == report["modes"]["fast"]["official"]["main"] == 0.75
    gap = report["differences"][SLOW_MINUS_FAST]
    assert (gap["mean"], gap["n"]) == (0.25, 40)
    # All of slow's answers are right, so the difference varies exactly as fast does.
    assert (gap["low"], gap["high"]) == pytest.approx((1 - fast["high"], 1 - fast["low"]))


def test_equal_answers_do_not_differ_at_all():
    gold = {f"c{i}": random.Random(i).choice([["happy"], ["sad"], ["angry"]]) for i in range(30)}
    guess = {name: ["happy"] for name in gold}
    runs = {"records": {"slow": answers_of(guess), "fast": answers_of(guess)}}
    report = scored({"ovmerdplus": Gold(SETS["ovmerdplus"], gold)}, {"ovmerdplus": runs})
    assert report["sets"]["ovmerdplus"]["differences"][SLOW_MINUS_FAST] == {"mean": 0, "low": 0, "high": 0, "n": 30}


def test_missing_answers_stop_the_official_score_and_are_counted():
    gold = {"a": ["happy"], "b": ["sad"], "c": ["sad"], "d": ["sad"]}
    answers = answers_of({"a": "[happy]", "b": "[", "extra": "sad"}, c="labels: the reply 'x' is unusable")
    golds = {"mer2023": Gold(SETS["mer2023"], gold)}
    part = scored(golds, {"mer2023": {"one": {"given": answers}}})["sets"]["mer2023"]["modes"]["given"]
    assert part["official"]["main"] is None
    assert "2 of 4 gold names have none" in part["official"]["error"]
    audited = part["audited"]
    assert audited["score"] == {"mean": 1.0, "low": None, "high": None, "n": 1}
    assert audited["score_missing_wrong"] == 0.25
    reasons = audited["missing"]["reasons"]
    assert reasons == {
        "its label string cannot be read": 1,
        "no labels could be read from it": 1,
        "not in the predictions": 1,
    }
    assert (audited["n"], audited["n_missing"], audited["n_not_in_gold"]) == (1, 3, 1)
    with pytest.raises(UserError, match="MER2023: predictions: 2 of 4"):
        scored(golds, {"mer2023": {"one": {"given": answers}}}, audited=False)


def test_a_missing_sentiment_is_wrong_either_way():
    gold = Gold(SETS["sims"], {"a": 1.0, "b": -1.0, "c": 1.0})
    side = Side(gold, Answers({"a": "positive"}), builtin())
    assert side.tally.value() == metrics.weighted_f1([True, False, True], [True, True, False])
    assert side.tally.only(side.answered).value() == 1.0


def nine_of(value):
    """Gold and predictions of all nine sets, `value` of the clips right."""
    golds, runs = {}, {}
    for name in NINE:
        clips = [f"c{i}" for i in range(20)]
        if SETS[name].kind == "sentiment":
            gold = {clip: 1.0 if place % 2 else -1.0 for place, clip in enumerate(clips)}
            right = {clip: "positive" if gold[clip] > 0 else "negative" for clip in clips}
            wrong = {clip: "negative" if gold[clip] > 0 else "positive" for clip in clips}
        else:
            gold = {clip: ["happy"] for clip in clips}
            right, wrong = gold, {clip: ["sad"] for clip in clips}
        cut = int(value * len(clips))
        mixed = {clip: right[clip] if place < cut else wrong[clip] for place, clip in enumerate(clips)}
        golds[name] = Gold(SETS[name], gold)
        runs[name] = {"records": {"slow": answers_of(right), "fast": answers_of(mixed)}}
    return golds, runs


def test_the_mean_of_nine_and_of_its_difference():
    golds, runs = nine_of(0.5)
    report = scored(golds, runs)
    fast = [report["sets"][name]["modes"]["fast"]["official"]["main"] for name in NINE]
    assert report["missing"] == []
    assert report["mean"]["slow"]["official"] == {"mean": 1.0, "without": []}
    assert report["mean"]["fast"]["official"]["mean"] == pytest.approx(sum(fast) / 9)
    gap = report["mean"][SLOW_MINUS_FAST]["audited"]
    assert gap["mean"] == pytest.approx(1 - sum(fast) / 9)
    assert gap["low"] < gap["mean"] < gap["high"]
    del runs["sims"]
    report = scored(golds, runs)
    assert report["missing"] == report["mean"]["slow"]["audited"]["without"] == ["sims"]
    assert report["mean"]["slow"]["audited"]["mean"] is None
    assert math.isnan(report["mean"]["slow"]["official"]["mean"])


def test_nothing_to_score():
    with pytest.raises(UserError, match="no set has both"):
        scored({"sims": Gold(SETS["sims"], {"a": 1.0})}, {})


def test_the_last_checkpoint_is_audited_and_the_best_is_official():
    gold = {"a": ["happy"], "b": ["sad"]}
    runs = {"step_1": {"given": answers_of(gold)}, "step_2": {"given": answers_of({clip: ["happy"] for clip in gold})}}
    part = scored({"meld": Gold(SETS["meld"], gold)}, {"meld": runs})["sets"]["meld"]["modes"]["given"]
    assert (part["official"]["checkpoint"], part["official"]["main"]) == ("step_1", 1.0)
    assert (part["audited"]["checkpoint"], part["audited"]["score"]["mean"]) == ("step_2", 0.5)
    assert part["official"]["checkpoints"] == {"step_1": 1.0, "step_2": 0.5}


# --- reading gold -----------------------------------------------------------------------------------------------------


def manifest_row(name, dataset, labels=None, split="test", **meta):
    return {"id": name, "subtitle": "Hm.", "labels": labels, "split": split, "meta": {"dataset": dataset, **meta}}


def test_gold_from_manifests_and_json(tmp_path):
    write(
        tmp_path / "x" / "mer2023.jsonl",
        [manifest_row("a", "mer2023", ["happy"]), manifest_row("t", "mer2023", ["sad"], "train")],
    )
    write(tmp_path / "sims.jsonl", [manifest_row("b", "sims", sentiment=-1)])
    write(tmp_path / "ovmerdplus.json", {"c": "[happy, sad]"})
    found = read_gold([tmp_path])
    assert {name: gold.values for name, gold in found.items()} == {
        "mer2023": {"a": ["happy"]},
        "sims": {"b": -1},
        "ovmerdplus": {"c": "[happy, sad]"},
    }
    assert found["mer2023"].notes == ["1 rows of other splits are left out"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([manifest_row("a", "mer2023")], "m.jsonl:1: labels: got None"),
        ([manifest_row("a", "sims", ["sad"])], "m.jsonl:1: meta.sentiment: got None, expected a number"),
        ([manifest_row("a", "sims", sentiment=True)], "got True, expected a number"),
        ([manifest_row("a", "imagenet", ["sad"])], "m.jsonl:1: meta.dataset: data set: got 'imagenet'"),
        ([{"id": "a", "subtitle": "x"}], "meta.dataset: got None"),
        (
            [manifest_row("a", "mer2023", ["sad"]), manifest_row("b", "meld", ["sad"])],
            "m.jsonl:2: .* one set a manifest",
        ),
        (
            [manifest_row("a", "mer2023", ["sad"]), manifest_row("a", "mer2023", ["sad"])],
            "m.jsonl:2: id: got 'a' again",
        ),
        ([manifest_row("a", "mer2023", ["sad"], "train")], r"no test rows in it \(1 rows of other splits\)"),
    ],
)
def test_wrong_gold_is_named_with_its_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read_gold([write(tmp_path / "m.jsonl", rows)])


def test_gold_that_is_not_there_or_twice(tmp_path):
    with pytest.raises(UserError, match="no gold in it"):
        read_gold([tmp_path])
    with pytest.raises(UserError, match="cannot be read"):
        read_gold([tmp_path / "meld.json"])
    with pytest.raises(UserError, match="expected one of"):
        read_gold([write(tmp_path / "unknown.json", {"a": "sad"})])
    with pytest.raises(UserError, match=r"meld.json: 'a': labels: '\['"):
        read_gold([write(tmp_path / "meld.json", {"a": "["})])
    path = write(tmp_path / "meld.json", {"a": "sad"})
    with pytest.raises(UserError, match="gold of MELD is given twice"):
        read_gold([path, path])


# --- reading predictions ----------------------------------------------------------------------------------------------

MELD, SIMS = SETS["meld"], SETS["sims"]


def predictions(folder, entry=MELD, **how):
    return read_predictions(folder, entry, Reading(**how))


def test_records_of_both_modes(tmp_path):
    rows = [
        {"id": "a", "mode": "slow", "completion": "<think>x</think><answer>sad</answer>", "labels": ["sad"]},
        {"id": "a", "mode": "fast", "completion": "I cannot tell.", "labels": []},
        {"id": "b", "mode": "slow", "completion": "", "labels": [], "error": "no such file"},
        {"id": "b", "mode": "slow", "completion": "<answer>calm</answer>", "labels": ["calm"]},
    ]
    found = predictions(write(tmp_path / "meld" / "records.jsonl", rows).parents[1])["records"]
    assert found["slow"].values == {"a": ["sad"], "b": ["calm"]}
    assert found["slow"].errors == {}
    assert (found["fast"].values, found["fast"].unread) == ({"a": []}, {"a"})


def test_extracted_labels_go_before_records(tmp_path):
    write(tmp_path / "meld" / "records.jsonl", [{"id": "a", "completion": "x", "labels": []}])
    row = {"id": "a", "completion": "x", "labels": ["sad"], "openset": "[sad]", "label_source": "llm", "error": None}
    write(tmp_path / "meld" / "labels.jsonl", [row, {"id": "b", "completion": "y", "error": "labels: refused"}])
    found = predictions(tmp_path)["labels"]["given"]
    assert (found.values, found.errors) == ({"a": "[sad]"}, {"b": "labels: refused"})


def test_simple_lines_of_other_systems(tmp_path):
    rows = [
        {"name": "a", "labels": "[happy, sad]"},
        {"name": "b", "text": "<answer>calm, proud</answer>"},
        {"name": "c", "text": "He seems upset."},
        {"name": "d"},
    ]
    found = predictions(write(tmp_path / "MELD.jsonl", rows).parent)["MELD"]["given"]
    assert found.values == {"a": "[happy, sad]", "b": "[calm, proud]"}
    assert set(found.errors) == {"c", "d"}
    assert "mer-r1 extract" in found.errors["c"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("<think> x </think><answer> 1. joy\n2. sad </answer>", "[joy, sad]"), ("<answer> He is sad. </answer>", None)],
)
def test_a_raw_answer_is_the_same_in_every_file_format(tmp_path, text, value):
    for number, (name, content) in enumerate(
        {
            "meld.json": {"a": text, "b": "[calm]"},
            "meld.jsonl": [{"id": "a", "completion": text}, {"id": "b", "openset": "[calm]"}],
            "MELD.jsonl": [{"id": "a", "openset": text}, {"id": "b", "openset": "[calm]"}],
        }.items()
    ):
        write(tmp_path / str(number) / name, content)
        found = next(iter(predictions(tmp_path / str(number)).values()))["given"]
        assert (found.values.get("a"), "a" in found.errors) == (value, value is None)


def test_only_texts_are_refused_with_the_way_out(tmp_path):
    write(tmp_path / "meld.jsonl", [{"name": "a", "text": "He seems upset."}])
    with pytest.raises(UserError, match="none of 1 clips has an answer: no labels, only a text: `mer-r1 extract`"):
        predictions(tmp_path)


def test_sentiments_saved_or_by_rules(tmp_path):
    rows = [{"id": "a", "sentiment": "positive", "labels": ["sad"]}, {"id": "b", "labels": ["glad", "proud"]}]
    write(tmp_path / "sims.jsonl", rows)
    saved = predictions(tmp_path, SIMS)["sims"]["given"]
    assert (saved.values, list(saved.errors)) == ({"a": "positive"}, ["b"])
    assert predictions(tmp_path, SIMS, sentiment="rules")["sims"]["given"].values == {"a": "negative", "b": "positive"}
    write(tmp_path / "sims.jsonl", rows[1:])
    with pytest.raises(UserError, match="--sentiment rules does without"):
        predictions(tmp_path, SIMS)


def test_the_reference_s_npz(tmp_path):
    folder = tmp_path / "results-meld" / "model"
    folder.mkdir(parents=True)
    names, items = np.array(["a", "b"]), np.array(["[happy, sad]", "[]"])
    np.savez(
        folder / "checkpoint_000010_loss_0.5.npz", name2reason=np.array({"a": "Text.", "b": "Text."}, dtype=object)
    )
    np.savez(folder / "checkpoint_000010_loss_0.5-openset.npz", filenames=names, fileitems=items)
    assert predictions(tmp_path)["checkpoint_000010_loss_0.5"]["given"].values == {"a": "[happy, sad]", "b": "[]"}
    objects = items.astype(object)
    np.savez(folder / "checkpoint_000010_loss_0.5-openset.npz", filenames=names, fileitems=objects)
    with pytest.raises(UserError, match="--allow-pickle"):
        predictions(tmp_path)
    found = predictions(tmp_path, allow_pickle=True)
    assert found["checkpoint_000010_loss_0.5"]["given"].values == {"a": "[happy, sad]", "b": "[]"}


def test_the_reference_s_npz_of_sentiments(tmp_path):
    folder = tmp_path / "results-sims" / "model"
    folder.mkdir(parents=True)
    names = np.array(["a", "b"])
    np.savez(folder / "checkpoint_1-openset.npz", filenames=names, fileitems=np.array(["[glad]", "[sad]"]))
    np.savez(
        folder / "checkpoint_1-openset-sentiment.npz", filenames=names, fileitems=np.array(["neutral", "negative"])
    )
    assert predictions(tmp_path, SIMS)["checkpoint_1"]["given"].values == {"a": "neutral", "b": "negative"}
    rules = predictions(tmp_path, SIMS, sentiment="rules")
    assert rules["checkpoint_1"]["given"].values == {"a": "positive", "b": "negative"}


def test_one_system_is_chosen(tmp_path):
    for system in ("one", "two"):
        write(tmp_path / "results-meld" / system / "checkpoint_1-openset.json", {"a": system})
    with pytest.raises(UserError, match="found one, two; --system chooses"):
        predictions(tmp_path)
    assert predictions(tmp_path, system="two")["checkpoint_1"]["given"].values == {"a": "two"}


def test_predictions_in_two_places_or_in_none(tmp_path):
    assert predictions(tmp_path) == {}
    write(tmp_path / "meld.json", {"a": "sad"})
    write(tmp_path / "results-meld" / "checkpoint_1.json", {"a": "sad"})
    with pytest.raises(UserError, match=r"several places \(meld.json, results-meld\)"):
        predictions(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        predictions(tmp_path / "none")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "labels"', "meld.jsonl line 1: expected a prediction as one JSON object"),
        ("[1]", "expected a prediction as one JSON object"),
        ('{"labels": []}', "expected an id or name as text; the fields are labels"),
        ('{"id": "a", "mode": "medium", "labels": []}', "mode of 'a': expected 'slow', 'fast' or none"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, message):
    (tmp_path / "meld.jsonl").write_text(f'{line}\n{{"id": "b", "labels": []}}\n', encoding="utf-8")
    with pytest.raises(UserError, match=message):
        predictions(tmp_path)


def test_a_half_written_last_line_is_dropped(tmp_path, caplog):
    (tmp_path / "meld.jsonl").write_text('{"id": "a", "labels": ["sad"]}\n{"id": "b", "lab', encoding="utf-8")
    assert predictions(tmp_path)["meld"]["given"].values == {"a": ["sad"]}
    assert "half written" in caplog.text


def test_values_that_are_no_labels(tmp_path):
    write(tmp_path / "meld.json", {"a": 3})
    with pytest.raises(UserError, match="'a': expected a text or a list of labels, got 3"):
        predictions(tmp_path)
    write(tmp_path / "meld.json", {"a": None})  # the reference reads a missing value as an empty list
    assert predictions(tmp_path)["meld"]["given"].values == {"a": ""}


# --- tables and the command -------------------------------------------------------------------------------------------


def test_tables_in_the_published_order():
    golds, runs = nine_of(0.5)
    report = scored(golds, runs)
    (table,) = score_tables(report, name="tiny_&", published=True)
    lines = render(table, "markdown").splitlines()
    assert lines[0].startswith("| model | mod. | MER2023 | MER2024 | MELD | IEMOCAP | MOSI | MOSEI | SIMS | SIMSv2 |")
    assert lines[2].startswith("| OneLLM | A,T | 25.52 | 17.21 |")
    assert any(line.startswith("| tiny_& slow (official) |  | 100.00 | 100.00 |") for line in lines)
    assert any(line.startswith("| tiny_& slow − fast (audited) |  | +50.00 [+") for line in lines)
    assert any("arXiv 2501.16566" in line for line in lines)
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {13}


@pytest.mark.parametrize(
    ("manifests", "where"),
    [(("data/meld.jsonl",), "data/meld.jsonl"), (("data/a/meld.jsonl", "data/b/sims.jsonl"), "data")],
)
def test_tables_name_model_weights_manifests_clips_and_wheels(manifests, where):
    golds, runs = nine_of(0.5)
    named = dict(zip(("meld", "sims"), manifests, strict=False))
    report = scored({name: replace(golds[name], manifest=path) for name, path in named.items()}, runs)
    (table,) = score_tables(report | {"model": "tiny", "weights": "0a1b"})
    clips = sum(len(golds[name].values) for name in named)
    said = f"cores of tiny (0a1b) on {where}: {clips} clips of {len(named)} test sets; wheels: {builtin().title}"
    assert render(table, "markdown").endswith(f"S{said}.\n")
    assert f"% s{said}\n" in render(table, "latex")
    assert str(scores_table(report).caption).startswith(f"scores of predictions on {where}: ")


def test_latex_and_csv():
    golds, runs = nine_of(0.5)
    del golds["sims"]
    (table,) = score_tables(scored(golds, runs), name="tiny_&")
    latex = render(table, "latex")
    assert r"tiny\_\& slow (official) &  & 100.00" in latex
    assert "& -- &" in latex
    assert latex.count(r"\\") == 1 + 5
    rows = [line.split(",") for line in render(table, "csv").splitlines()]
    assert {len(row) for row in rows} == {12}
    assert rows[0][2:] == [*(SETS[name].title for name in NINE), "Mean"]
    by_name = {row[0]: row for row in rows}
    assert by_name["tiny_& fast (official)"][2] == "50.00"
    assert by_name["tiny_& fast (official)"][8] == by_name["tiny_& fast (official)"][11] == ""
    low, mean, high = (float(by_name[f"tiny_& slow − fast (audited){end}"][2]) for end in (" low", "", " high"))
    assert low < mean == 50 < high


def test_ovmerd_has_a_table_of_its_own(tables, reference):
    data = read(reference / "ovset_pairs.json")
    pair = data["pairs"][0]
    gold, predicted = (dict(zip(data["names"], data["labels"][pair[side]], strict=True)) for side in ("gold", "pred"))
    how = Scoring(tables, audited=False)
    report = score_benchmark(
        {"ovmerd": Gold(SETS["ovmerd"], gold)}, {"ovmerd": {"x": {"given": answers_of(predicted)}}}, how
    )
    (table,) = score_tables(report)
    cells = render(table, "csv").splitlines()[1].split(",")[2:]
    scores = pair["scores"]
    expected = [100 * scores[key]["fscore"] for key in OVMERD_COLUMNS if key != "m_avg"]
    assert cells == [f"{value:.2f}" for value in (*expected, sum(expected) / 12)]


@pytest.fixture
def folders(tmp_path):
    write(
        tmp_path / "gold" / "meld.jsonl", [manifest_row("a", "meld", ["joy"]), manifest_row("b", "meld", ["neutral"])]
    )
    write(tmp_path / "gold" / "sims.jsonl", [manifest_row("c", "sims", sentiment=0.4)])
    both = [{"id": name, "mode": mode, "labels": ["joy"]} for name in "ab" for mode in ("slow", "fast")]
    write(tmp_path / "pred" / "meld" / "records.jsonl", both)
    write(tmp_path / "pred" / "sims.jsonl", [{"id": "c", "sentiment": "neutral"}])
    return ["--predictions", tmp_path / "pred", "--data", tmp_path / "gold"]


def test_the_command_for_people(run, folders):
    status, out, err = run("score", "mer-unibench", *folders)
    assert (status, err) == (0, "")
    assert "slow - fast" in out
    assert "built-in wheels: not comparable" in out
    assert "MELD 2 of 2610; SIMS 1 of 457" in out
    assert "clips that wheel 1, 2, ... cannot score: 1, 1, 1, 1, 1; their gold words: neutral 1" in out
    table = [line for line in out.splitlines() if line[:1] in "┏┃┡│├└"]
    assert max(map(len, table)) <= 80


def test_the_command_for_machines(run, folders):
    status, out, _ = run("score", "mer-unibench", *folders, "--json", "--sets", "meld")
    report = json.loads(out)
    assert status == 0
    assert "NaN" not in out
    assert list(report["sets"]) == ["meld"]
    assert report["mean"]["slow"]["official"]["mean"] is None
    _, again, _ = run("score", "mer-unibench", *folders, "--json", "--sets", "meld")
    assert again == out


def test_from_the_release_s_folders_to_the_mean(run, tmp_path):
    """Made copies of all nine sets: manifests of `prepare`, predictions that repeat the gold, everything right."""
    from layouts import write_unibench

    from mer_r1.corpora.prepare import prepare

    root = write_unibench(tmp_path / "data", n=5)
    for name in NINE:
        prepare(name, root, allow_pickle=True)
    golds = read_gold([root])
    assert tuple(golds) == NINE
    for name, gold in golds.items():
        if gold.entry.kind == "sentiment":
            rows = [{"id": k, "sentiment": "positive" if v > 0 else "negative"} for k, v in gold.values.items()]
        else:
            rows = [{"id": k, "labels": v} for k, v in gold.values.items()]
        write(tmp_path / "pred" / f"{name}.jsonl", [{**row, "mode": mode} for row in rows for mode in ("slow", "fast")])
    _, out, err = run("score", "mer-unibench", "--predictions", tmp_path / "pred", "--data", root, "--json")
    report = json.loads(out)
    assert err == ""
    assert report["mean"]["slow"]["audited"]["mean"] == 1.0
    assert report["mean"][SLOW_MINUS_FAST]["audited"]["mean"] == 0.0
    assert report["mean"]["fast"]["audited"]["without"] == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--published"], "--published goes with --table"),
        (["--sets", "imagenet"], "data set: got 'imagenet'"),
        (["--sets", "mer2023"], "--sets mer2023: no gold of MER2023 found"),
        (["--wheels", "HERE"], "format.csv"),
    ],
)
def test_mistakes_on_the_command_line(run, folders, tmp_path, more, message):
    more = [tmp_path if word == "HERE" else word for word in more]
    status, out, err = run("score", "mer-unibench", *folders, *more)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_file_of_several_is_named_when_it_cannot_be_scored(run, tmp_path):
    gold, good, bad = (
        write(tmp_path / f"{name}.json", value) for name, value in (("g", {"a": "sad"}), ("p", {"a": "sad"}), ("q", {}))
    )
    status, _, err = run("score", "openset", "--gold", gold, "--predictions", good, "--predictions", bad)
    assert status == 2
    assert "q.json: predictions: 1 of 1 gold names have none" in err


# --- words compared by meaning


def alike(texts):
    """An embedding of every text in one direction: only opposites are apart."""
    return np.ones((len(texts), 1))


def test_meaning_changes_the_audited_precision_recall_and_f1_alone():
    gold, predicted = {"a": ["joy"], "b": ["qualm"], "c": ["happy"]}, {"a": ["fury"], "b": ["joy"], "c": ["not happy"]}
    by_meaning = replace(builtin(), matching="meaning", meaning=Meaning(alike, "alike", 0.5))
    reports = [scored_by(taxonomy, gold, predicted) for taxonomy in (builtin(), by_meaning)]
    audited = [report["sets"]["mer2023"]["modes"]["slow"]["audited"] for report in reports]
    # The wheels score clips a and c, and place neither "fury" nor "not happy" with joy. By meaning b is scored, too.
    assert [part.pop("unified")["f1"]["mean"] for part in audited] == [0.0, pytest.approx(1 / 3)]
    everything = [part.pop("everything") for part in audited]
    assert everything[0]["score"] == everything[1]["score"]
    assert audited[0] == audited[1]
    official = [report["sets"]["mer2023"]["modes"]["slow"]["official"] for report in reports]
    assert official[0] == official[1]
    assert [report["matching"] for report in reports] == ["wheels", "meaning (alike, floor 0.5)"]
    told = [line for line in remarks(reports[1]) if "compare words by" in line]
    assert told == [
        "audited precision, recall and F1 compare words by meaning (alike, floor 0.5); all other scores by the wheels"
    ]


def scored_by(taxonomy, gold, predicted):
    entry = SETS["mer2023"]
    golds = {"mer2023": Gold(entry, gold)}
    return score_benchmark(
        golds, {"mer2023": {"one": {"slow": answers_of(predicted)}}}, Scoring(taxonomy, resamples=20)
    )


def test_two_equal_ways_rank_systems_alike_and_opposite_ones_do_not():
    labels = {
        name: [[word] for word in words] for name, words in zip("abcd", ("xyz", "xyw", "xvw", "zyx"), strict=True)
    }
    letters = {letter: letter for letter in "vwxyz"}
    wheels = Taxonomy((EmotionWheel("letters", "", letters, letters),), *({a: (a,) for a in letters} for _ in range(2)))
    apart = Meaning(lambda texts: np.eye(5)[["vwxyz".index(text[-1]) for text in texts]], "", 0.5, wheels)
    found = system_agreement(labels, wheels, replace(wheels, matching="meaning", meaning=apart))
    assert (found["n_systems"], found["n_clips"], found["clips"]) == (4, 3, pytest.approx(1.0))
    assert found["systems"] == {"mean": pytest.approx(1.0), "lowest": pytest.approx(1.0)}
    assert found["f1"]["wheels"] == found["f1"]["meaning"]
    for wrong in ({"a": [["x"]]}, {**labels, "e": [["x"]]}):
        with pytest.raises(UserError, match="at least three"):
            system_agreement(wrong, wheels, wheels)


def test_agreement_about_words_by_identity():
    # A model that is certain of everything above the floor cannot tell pairs apart; the mends still part opposites.
    found = word_agreement(Meaning(alike, "alike", 0.5), builtin())
    assert {name: found[name]["cosine"]["auc"] for name in ("synonyms", "sectors", "valence")} == {
        **dict.fromkeys(("synonyms", "sectors", "valence"), 0.5)
    }
    assert found["valence"]["mended"] == {"auc": 1.0, "above": [1.0, 0.0]}
    assert found["antonyms"]["cosine"]["above"] == 1.0
    assert found["antonyms"]["mended"]["above"] == len(found["not apart"]) / found["antonyms"]["n"] < 0.2
