"""MER-UniBench from a model to its scores: nothing is asked twice, lost, or scored without having been said."""

import contextlib
import io
import json
import logging
import os
import signal
import sys
import time
from dataclasses import replace

import pytest
from layouts import NINE, write_csv, write_set, write_unibench
from llm_server import Server, status
from media_samples import tone, write_media
from tiny_corpus import moving_square

from mer_r1 import cli
from mer_r1.benchmarks.mer_unibench import ask as asking
from mer_r1.benchmarks.mer_unibench import run
from mer_r1.benchmarks.mer_unibench.ask import collect, readable_part
from mer_r1.benchmarks.mer_unibench.gold import find_manifests, read_gold, scored_clips
from mer_r1.benchmarks.mer_unibench.report import Scoring
from mer_r1.data.claim import CLAIM_FILE
from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers.checkpoint import Checkpoint
from mer_r1.evaluation.llm import jobs
from mer_r1.evaluation.llm.cache import ReplyCache
from mer_r1.evaluation.llm.chat import Decoding
from mer_r1.evaluation.llm.client import Client
from mer_r1.evaluation.llm.jobs import Tally
from mer_r1.evaluation.predict import predict
from mer_r1.evaluation.records import RECORDS_FILE, read_records, record_of_answer, record_of_error
from mer_r1.model.generation import Sampling

BOTH, SLOW, FAST = list(ThinkingMode), [ThinkingMode.SLOW], [ThinkingMode.FAST]
CLIPS = 3
STAMP = {"model": "canned", "seed": 0, "versions": {}, "commit": None}
WORDS = ("happy", "sad", "angry", "surprised", "worried")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Two pictures with sound, two sounds."""
    folder = tmp_path_factory.mktemp("media")
    videos = [
        write_media(folder / f"{i}.mp4", frames=6, fps=5, picture=moving_square(i), sound=tone(1.0, hertz=200 + 90 * i))
        for i in range(2)
    ]
    sounds = [
        write_media(folder / f"{i}.wav", sound=tone(0.8 + i / 10, hertz=300 + 60 * i), audio_codec="pcm_s16le")
        for i in range(2)
    ]
    return videos, sounds


@pytest.fixture(scope="module")
def data(tmp_path_factory, media):
    """All nine sets as they are released, their manifests made."""
    root = write_unibench(tmp_path_factory.mktemp("data"), CLIPS, *media)
    find_manifests(root, NINE, allow_pickle=True)
    return root


@pytest.fixture(scope="module")
def sets(data):
    manifests, _ = find_manifests(data, NINE)
    return {name: scored_clips(path) for name, path in manifests.items()}


@pytest.fixture(scope="module")
def golds(data):
    return read_gold(find_manifests(data, NINE)[0].values())


@pytest.fixture
def program(capsys, monkeypatch):
    """Runs the program in this process; gives its exit status and what it wrote."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words):
        code = in_process(monkeypatch, *words)
        written = capsys.readouterr()
        return code, written.out, written.err

    return call


def in_process(patch, *words):
    """Runs the program here; gives its exit status."""
    patch.setattr(sys, "argv", ["mer-r1", *map(str, words)])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


class Canned:
    """A clip model whose answer depends on the clip, on the mode, and on who else is in the group."""

    name, batch_size = "canned", 2

    def __init__(self, say=None):
        self.settings = {"engine": "canned"}
        self.asked = []
        self.say = say or (lambda clip, mode, place: f"<think>So.</think><answer>{WORDS[place % 5]}, calm</answer>")

    def answer(self, clips, modes):
        place = sum(map(len, (clip.id for clip in clips)))
        for mode in modes:
            for clip in clips:
                self.asked.append((clip.id, mode.value))
                said = self.say(clip, mode, place + len(mode.value))
                if said is None:
                    yield record_of_error(clip, mode, f"clip {clip.id}: no reply", STAMP)
                else:
                    yield record_of_answer(clip, mode, said, builtin(), STAMP)


def evaluated(model, sets, golds, out, modes=BOTH, reader=None, **settings):
    """All stages; gives the report and the files that a result consists of."""
    collect(model, sets, modes, out, **settings)
    reader = reader or run.Reader(builtin())
    rows = {name: run.read_labels(name, clips, modes, out, reader) for name, clips in sets.items()}
    report = run.score(golds, rows, out, Scoring(builtin(), resamples=20), "canned", reader.sentiment)
    return report, result(out, sets)


def result(out, sets):
    """Labels without their times, and scores: what must not depend on interruptions."""
    labels = {}
    for name in sets:
        rows = [json.loads(line) for line in (out / name / run.LABELS_FILE).read_text(encoding="utf-8").splitlines()]
        labels[name] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return labels, (out / run.SCORES_FILE).read_bytes(), (out / run.TABLE_FILE).read_bytes()


def command(model, data, out, *more):
    words = ["eval", "mer-unibench", "--model", model, "--data", data, "--out", out, "--resamples", 20]
    return [*map(str, words), *map(str, more)]


# --- the whole, with the tiny model -----------------------------------------------------------------------------------

TINY = ("--max-new-tokens", 40, "--batch-size", 2, "--temperature", 0.7, "--seed", 3)


@pytest.fixture(scope="module")
def whole(taught_folder, data, tmp_path_factory):
    """An evaluation of the tiny model on all nine, in one go: its folder, what it wrote, its exit status."""
    out = tmp_path_factory.mktemp("whole") / "out"
    written = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(written):
        patch.setenv("COLUMNS", "100")
        code = in_process(patch, *command(taught_folder, data, out, *TINY))
    assert code in (0, 1)
    return out, written.getvalue(), code


def test_all_nine_end_to_end(whole, sets):
    out, written, code = whole
    report = json.loads((out / run.SCORES_FILE).read_text(encoding="utf-8"))
    assert list(report["sets"]) == list(NINE)
    assert report["missing"] == []
    for name, clips in sets.items():
        keys = [(record.id, record.mode) for record in read_records(out / name / RECORDS_FILE)]
        assert sorted(keys) == sorted((clip.id, mode.value) for clip in clips for mode in BOTH)
        for mode in BOTH:
            counts = report["answers"][name][mode.value]
            assert counts["rows"] == CLIPS
            assert sum(counts["labels"].values()) + counts["errors"] == CLIPS, "each has labels, or is counted"
            assert report["sets"][name]["modes"][mode.value]["audited"]["n_missing"] == counts["errors"]
    assert "mean of nine" in written
    assert "sentiments are made from labels by the wheels" in written
    assert code == (1 if run.gaps(report) else 0)
    table = (out / run.TABLE_FILE).read_text(encoding="utf-8")
    assert table.splitlines()[0].startswith("| model | mod. | MER2023 | MER2024 |")
    assert "slow (official)" in table


def test_after_a_kill_it_goes_on_to_the_same_result(whole, taught_folder, data, sets, tmp_path, program):
    """Sampled answers, too: what is asked together stays together."""
    out = tmp_path / "out"
    halfway = out / NINE[4] / RECORDS_FILE
    child = os.fork()
    if child == 0:  # a process of its own, without the seconds that importing everything takes
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        in_process(pytest.MonkeyPatch(), *command(taught_folder, data, out, *TINY))
        os._exit(0)
    while not (halfway.exists() and halfway.stat().st_size) and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (out / run.SCORES_FILE).exists()
    kept = [(out / name / RECORDS_FILE).read_bytes() for name in NINE[:4]]
    with halfway.open("ab") as file:
        file.write(b'{"id": "cut thr')
    code, _, _ = program(*command(taught_folder, data, out, *TINY))
    assert code == whole[2]
    assert [(out / name / RECORDS_FILE).read_bytes() for name in NINE[:4]] == kept, "nothing is asked twice"
    assert result(out, sets) == result(whole[0], sets)


def test_a_finished_evaluation_loads_no_model_and_says_the_same(whole, taught_folder, data, sets, program, monkeypatch):
    out = whole[0]
    before = result(out, sets)
    monkeypatch.setattr(Checkpoint, "_loaded", property(lambda self: pytest.fail("loaded again")))
    _, text, _ = program(*command(taught_folder, data, out, *TINY))
    assert text == whole[1]
    assert result(out, sets) == before


def test_a_folder_takes_no_answers_that_were_made_otherwise(whole, taught_folder, data, program, tmp_path):
    code, _, error = program(*command(taught_folder, data, whole[0], *TINY, "--temperature", 0))
    assert code == 2
    assert (
        "was made with other settings (decoding.temperature: 0.7, now 0.0; decoding.batch_size: 2, now None); "
        "choose another folder" in error
    )
    assert error.count("\n") == 1


def test_the_checkpoint_answers_as_predict_does(taught, taught_folder, sets, tmp_path):
    clips = sets["meld"]
    model = Checkpoint(str(taught_folder), builtin(), Decoding(max_tokens=24), features_dir=tmp_path)
    found = list(model.answer(clips, BOTH))
    expected = list(predict(taught, clips, BOTH, builtin(), Sampling(24, 0.0, seed=0), len(clips)))
    assert [(r.id, r.mode, r.completion, r.confidence) for r in found] == [
        (r.id, r.mode, r.completion, r.confidence) for r in expected
    ]
    assert list(tmp_path.glob("features-*/*.safetensors")), "towers' outputs are kept where that is asked for"


def test_a_folder_takes_no_answers_about_clips_that_have_changed(sets, tmp_path):
    one = {"meld": sets["meld"]}
    collect(Canned(), one, SLOW, tmp_path)
    changed = [replace(one["meld"][0], subtitle="Entirely other words."), *one["meld"][1:]]
    with pytest.raises(UserError, match=rf"1 of its clips .* the subtitle or question of {changed[0].id}"):
        collect(Canned(), {"meld": changed}, SLOW, tmp_path)
    (tmp_path / "other.mp4").write_bytes(b"another film")
    exchanged = [replace(one["meld"][0], video=tmp_path / "other.mp4"), *one["meld"][1:]]
    with pytest.raises(UserError, match=rf"1 of its clips .* the media of {changed[0].id}"):
        collect(Canned(), {"meld": exchanged}, SLOW, tmp_path)


# --- interruptions, one by one ----------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", range(0, 12))
def test_it_goes_on_from_any_record(after, sets, golds, tmp_path, monkeypatch):
    two = {name: sets[name] for name in ("meld", "cmumosi")}
    _, expected = evaluated(Canned(), two, golds, tmp_path / "whole")
    original, written = asking.append_record, []

    def append(sink, record):
        if len(written) == after:
            sink.write('{"id": "half a rec')
            sink.flush()
            raise Killed
        written.append((record.id, record.mode))
        original(sink, record)

    monkeypatch.setattr(asking, "append_record", append)
    with pytest.raises(Killed):
        collect(Canned(), two, BOTH, tmp_path / "out")
    monkeypatch.setattr(asking, "append_record", original)
    paces = []
    _, found = evaluated(Canned(), two, golds, tmp_path / "out", watch=lambda pace: paces.append(replace(pace)))
    assert found == expected
    for name in two:
        files = [(tmp_path / where / name / RECORDS_FILE).read_bytes() for where in ("whole", "out")]
        assert files[0] == files[1], "record by record"
    assert (paces[0].total, paces[0].known, paces[0].done) == (12, after, 0)
    assert (paces[-1].finished, paces[-1].failed) == (12, 0)


def test_modes_may_come_one_after_the_other(sets, golds, tmp_path):
    one = {"meld": sets["meld"]}
    _, expected = evaluated(Canned(), one, golds, tmp_path / "both")
    collect(Canned(), one, FAST, tmp_path / "out")
    model = Canned()
    _, found = evaluated(model, one, golds, tmp_path / "out")
    assert {mode for _, mode in model.asked} == {"slow"}
    assert found == expected


def test_what_failed_is_tried_again_alone_and_its_error_kept_once(sets, tmp_path):
    one = {"meld": sets["meld"]}
    second = sets["meld"][1].id
    flaky = Canned(lambda clip, mode, place: None if clip.id == second else "<answer>sad</answer>")
    file = tmp_path / "meld" / RECORDS_FILE
    assert collect(flaky, one, SLOW, tmp_path).failed == 1
    before = file.read_bytes()
    again = collect(flaky, one, SLOW, tmp_path)
    assert (again.total, again.known, again.failed) == (3, 2, 1)
    assert flaky.asked[3:] == [(second, "slow")]
    assert file.read_bytes() == before
    assert collect(Canned(), one, SLOW, tmp_path).failed == 0
    assert [record.error for record in read_records(file)] == [None] * 3


def test_the_time_left_goes_by_this_run_only(monkeypatch):
    tally = Tally("MELD", total=100, known=50, began=1000.0)
    monkeypatch.setattr(jobs, "monotonic", lambda: 1020.0)
    assert tally.seconds_left is None
    tally.done, tally.failed = 7, 3  # 2 s each, 40 are left
    assert tally.seconds_left == 80.0


def test_without_a_terminal_a_line_says_how_far_it_is(monkeypatch, caplog):
    from mer_r1.cli.benchmarks import mer_unibench_view as unibench_view

    monkeypatch.setattr(unibench_view, "LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO), unibench_view.watching(quiet=False) as watch:
        watch(Tally("MELD", total=10, known=4, done=1, failed=1))
    assert caplog.messages[0].startswith("MELD, 1 failed, about ")
    assert caplog.messages[0].endswith(" left: 6 of 10")


# --- nothing is scored that was not said ------------------------------------------------------------------------------


def prose(clip, mode, place):
    """Every second clip is answered in prose, one that no language model has read."""
    return "He seems to be in a bright mood." if int(clip.id[-1]) % 2 else "<answer>happy</answer>"


def test_answers_that_nothing_can_read_are_counted_and_no_zeros(sets, golds, tmp_path):
    report, _ = evaluated(Canned(prose), sets, golds, tmp_path)
    for name in NINE:
        counts = report["answers"][name]["slow"]
        assert (counts["labels"], counts["errors"]) == ({"answer": 2}, 1)
        slow = report["sets"][name]["modes"]["slow"]
        assert slow["official"]["main"] is None
        assert "1 of 3 gold names have none" in slow["official"]["error"]
        assert slow["audited"]["n_missing"] == 1
        assert slow["audited"]["missing"]["reasons"] == {"no labels could be read from it": 1}
    assert run.gaps(report) == 9 * 2


def test_a_model_that_never_answers_in_form_gets_no_number(sets, golds, tmp_path):
    model = Canned(lambda clip, mode, place: "Hm." if mode is ThinkingMode.SLOW else "<answer>sad</answer>")
    report, _ = evaluated(model, sets, golds, tmp_path)
    for entry in report["sets"].values():
        assert entry["modes"]["slow"]["audited"]["score"]["mean"] is None
        assert entry["modes"]["slow"]["audited"]["n_missing"] == CLIPS
        assert entry["modes"]["fast"]["audited"]["n_missing"] == 0


def test_a_language_model_reads_what_no_rule_can(sets, golds, tmp_path):
    def behave(call):
        return "positive" if "Sentiment:" in call.text else "[joyful]"

    with Server(behave) as server, ReplyCache(tmp_path / run.REPLIES_FILE) as cache:
        reader = run.Reader(builtin(), Client("reader", server.base_url, cache=cache), "llm")
        report, expected = evaluated(Canned(prose), sets, golds, tmp_path, reader=reader)
        texts = server.texts()
        assert sum("bright mood" in text for text in texts) == 1, "the same text is read once"
        assert sum(text.rstrip().endswith("Sentiment:") for text in texts) == 2, "[happy] and [joyful]"
        _, found = evaluated(Canned(prose), sets, golds, tmp_path, reader=reader)
        assert len(server.calls) == 3, "replies are kept"
    assert found == expected
    assert run.gaps(report) == 0
    assert report["answers"]["meld"]["fast"]["labels"] == {"answer": 2, "llm": 1}
    assert report["answers"]["sims"]["slow"]["sentiments"] == {"llm": 3}
    rows = [json.loads(line) for line in (tmp_path / "meld" / run.LABELS_FILE).read_text().splitlines()]
    assert [row["openset"] for row in rows[:3]] == ["[happy]", "[joyful]", "[happy]"]


def test_sentiment_by_a_language_model_needs_one():
    with pytest.raises(UserError, match="no language model was given"):
        run.Reader(builtin(), None, "llm")


def test_the_scores_are_those_of_the_saved_predictions(sets, golds, data, tmp_path, program):
    """Identity: the same folder through `mer-r1 score` gives the same numbers."""
    evaluated(Canned(), sets, golds, tmp_path)
    report = json.loads((tmp_path / run.SCORES_FILE).read_text(encoding="utf-8"))
    code, text, _ = program(
        "score", "mer-unibench", "--predictions", tmp_path, "--data", data, "--resamples", 20, "--sentiment", "rules",
        "--json",
    )  # fmt: skip
    assert code == 0
    again = json.loads(text)
    for name in NINE:
        assert again["sets"][name] == report["sets"][name], name
    assert again["mean"] == report["mean"]
    assert report["mean"]["slow"]["audited"]["mean"] is not None


# --- clips that cannot be read as a whole -----------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path, media):
    """A set of two clips; of the first the picture is no video, of the second neither file can be read."""
    folder = write_set(tmp_path / "data", "meld", 2, *media)
    (folder / "subvideo" / "test_dia0_utt0.mp4").write_bytes(b"no video")
    for place in ("subvideo/test_dia0_utt1.mp4", "subaudio/test_dia0_utt1.wav"):
        (folder / place).write_bytes(b"nothing")
    write_csv(folder / "transcription-engchi-polish.csv", ["name", "english"], [("test_dia0_utt0", "Oh."), ("x", "")])
    manifests, _ = find_manifests(tmp_path / "data", ["meld"], allow_pickle=True)
    return manifests["meld"]


def test_what_cannot_be_read_fails_visibly_or_is_asked_about_by_the_rest(taught_folder, broken, tmp_path, program):
    words = command(taught_folder, broken.parent, tmp_path / "out", "--sets", "meld", "--max-new-tokens", 16)
    code, text, _ = program(*words)
    assert code == 3, "no clip has an answer"
    assert "4 clips without an answer of the model" in text
    assert "--ask-partly" in text
    code, text, _ = program(*words, "--ask-partly")
    assert code == 1
    assert "2 clips without an answer of the model" in text
    assert "MELD slow: test_dia0_utt0 was asked without its video" in text
    assert "MELD fast: test_dia0_utt0 was asked without its video" in text
    records = read_records(tmp_path / "out" / "meld" / RECORDS_FILE)
    assert [(record.id, record.without, record.error is None) for record in records if record.mode == "slow"] == [
        ("test_dia0_utt0", ["video"], True),
        ("test_dia0_utt1", [], False),
    ]


def test_only_unreadable_files_are_left_out(media, tmp_path):
    video, sound = media[0][0], media[1][0]
    (tmp_path / "bad").write_bytes(b"bad")
    assert readable_part(Clip("whole", video, sound)) is None
    assert readable_part(Clip("nothing left", tmp_path / "bad")) is None
    clip, without = readable_part(Clip("words", tmp_path / "bad", subtitle="Oh."))
    assert (clip.video, clip.subtitle, without) == (None, "Oh.", ["video"])
    clip, without = readable_part(Clip("own sound", video, tmp_path / "bad"))
    assert (clip.video, clip.audio, without) == (video, None, ["audio"])
    clip, without = readable_part(Clip("no picture in it", sound, sound))
    assert (clip.audio, without) == (sound, ["video"])


def test_a_server_that_fails_does_not_take_the_picture_away(sets, tmp_path):
    model = Canned(lambda clip, mode, place: None)
    collect(model, {"meld": sets["meld"]}, SLOW, tmp_path, partly=True)
    assert len(model.asked) == 3
    assert all(not record.without for record in read_records(tmp_path / "meld" / RECORDS_FILE))


# --- where the data are -----------------------------------------------------------------------------------------------


def test_missing_sets_are_named_at_once(data, tmp_path, program):
    write_set(tmp_path, "meld", 2)
    code, _, error = program(*command("m", tmp_path, tmp_path / "out"))
    assert code == 2
    assert "no data of MER2023, MER2024, IEMOCAP, MOSI, MOSEI, SIMS, SIMSv2, OV-MERD+" in error
    assert "--sets" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / CLAIM_FILE).exists()
    code, _, error = program(*command("m", tmp_path / "none", tmp_path / "out"))
    assert (code, error.count("\n")) == (2, 1)
    assert "no such folder" in error


def test_manifests_are_made_where_there_are_none_and_only_there(tmp_path):
    folder = write_set(tmp_path, "meld", 2)
    with pytest.raises(UserError, match="--allow-pickle"):
        find_manifests(tmp_path, ["meld"])
    made, warnings = find_manifests(folder, ["meld"], allow_pickle=True)
    assert made == {"meld": folder / "meld.jsonl"}
    assert "2 clips, expected 2610" in warnings["meld"][0]
    (folder / "label.npz").unlink()
    assert find_manifests(tmp_path, ["meld"]) == (made, {})
    (tmp_path / "meld.jsonl").write_bytes((folder / "meld.jsonl").read_bytes())
    with pytest.raises(UserError, match="two manifests of MELD"):
        find_manifests(tmp_path, ["meld"])


def test_only_the_sets_and_splits_that_are_scored(data, sets, program, tmp_path):
    code, _, error = program(*command("m", data, tmp_path / "out", "--sets", "meld,nonesuch"))
    assert (code, error.count("\n")) == (2, 1)
    assert "nonesuch" in error
    rows = [json.loads(line) for line in (data / "meld-process" / "meld.jsonl").read_text("utf-8").splitlines()]
    absolute = {"video": str(data / "meld-process" / rows[0]["video"]), "audio": None}
    lines = [json.dumps(row | absolute) for row in (*rows, rows[0] | {"id": "other", "split": "train"})]
    (tmp_path / "meld.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="an absolute path"):
        scored_clips(tmp_path / "meld.jsonl")
    found = scored_clips(tmp_path / "meld.jsonl", allow_absolute=True)
    assert [clip.id for clip in found] == [clip.id for clip in sets["meld"]]


# --- a model behind an endpoint ---------------------------------------------------------------------------------------


def omni_server(call):
    """Answers in form, and goes on with what was begun."""
    begun = call.body["messages"][-1]["role"] == "assistant"
    return " sad, calm </answer>" if begun else "<think>Hm.</think><answer>happy</answer>"


def test_an_endpoint_end_to_end_and_again_after_it_broke_down(sets, data, tmp_path, program):
    """Through the command: the server goes away half-way, a new one comes back, and nothing is asked twice."""
    words = ("--sentiment", "rules", "--concurrency", 1, "--timeout", 5, "--batch-size", 1)
    wanted = 9 * CLIPS * 2

    def evaluate(server, out):
        return program(
            *command("omni", data, out, "--model-url", server.base_url, *words, "--name", "Omni", "--published")
        )

    with Server(omni_server) as server:
        code, text, error = evaluate(server, tmp_path / "whole")
    assert (code, error) == (0, "")
    assert f"labels: {wanted} in the answer" in text
    table = (tmp_path / "whole" / run.TABLE_FILE).read_text(encoding="utf-8")
    assert "| Omni slow (official) |" in table
    assert "Published rows: " in table
    with Server(lambda call: omni_server(call) if call.number < 20 else status(401, message="no more")) as server:
        code, _, error = evaluate(server, tmp_path / "out")
        assert code == 2
        assert "401" in error
        before = [call.body["messages"] for call in server.calls[:20]]
    with Server(omni_server) as server:
        code, _, _ = evaluate(server, tmp_path / "out")
        after = [call.body["messages"] for call in server.calls]
    assert code == 0
    assert result(tmp_path / "out", sets) == result(tmp_path / "whole", sets)
    asked = [json.dumps(messages) for messages in before + after]
    # Each question goes over the wire once, but for one trial of fast thinking in each of the two runs. Sets share
    # clips here, so the cache answers for equal ones.
    assert len(asked) - len(set(asked)) == 2


def test_a_server_and_an_engine_are_not_chosen_together(data, tmp_path, program):
    code, _, error = program(
        *command("omni", data, tmp_path, "--model-url", "http://127.0.0.1:9/v1", "--engine", "vllm")
    )
    assert (code, error.count("\n")) == (2, 1)
    assert "--engine vllm is for a checkpoint here, and --model-url names a server" in error


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("--reader-url", "http://127.0.0.1:9/v1"), "needs --reader"),
        (("--reader", "no-such-folder"), "give --reader-url"),
        (("--sentiment", "llm"), "no language model was given"),
        (("--engine", "vllm", "--device", "cpu"), "vLLM chooses for itself"),
    ],
)
def test_options_that_do_not_go_together(data, tmp_path, program, words, wrong):
    code, _, error = program(*command("m", data, tmp_path, *words))
    assert (code, error.count("\n")) == (2, 1)
    assert wrong in error
