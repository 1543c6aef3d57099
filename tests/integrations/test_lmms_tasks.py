"""Tasks for lmms-eval: the contract of the YAML files without it, and with it all tasks through models by rote."""

import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys
import wave
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from layouts import NINE, write_set
from media_samples import tone, write_media

from mer_r1.benchmarks.mer_unibench.gold import read_gold
from mer_r1.benchmarks.mer_unibench.predictions import Reading, read_predictions
from mer_r1.benchmarks.mer_unibench.report import Scoring, score_benchmark
from mer_r1.benchmarks.mer_unibench.sets import SETS, nine_way_mean
from mer_r1.benchmarks.mme_emotion.run import given_items
from mer_r1.benchmarks.mme_emotion.scores.label_match import label_report
from mer_r1.benchmarks.mme_emotion.tasks import TASKS
from mer_r1.corpora.prepare import prepare
from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest, write_manifest
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.integrations.lmms_eval import TASKS_FOLDER, answers, documents, scores
from mer_r1.model.prompts import conversation

YAMLS = sorted(TASKS_FOLDER.rglob("*.yaml"))
PINNED = "0.7.3"
SPOKEN = "<think> He smiles. </think><answer> happy </answer>"


def function(loader, node):
    """`!function` as lmms-eval resolves it where no file of that name lies beside the YAML."""
    module, _, name = loader.construct_scalar(node).rpartition(".")
    return getattr(importlib.import_module(module), name)


class Loader(yaml.SafeLoader):
    """Reads our YAML files as lmms-eval does."""


Loader.add_constructor("!function", function)


def config_of(path: Path) -> dict:
    own = yaml.load(path.read_text(encoding="utf-8"), Loader)
    if "include" in own:
        own = {**config_of(path.parent / own.pop("include")), **own}
    return own


CONFIGS = {path: config_of(path) for path in YAMLS}
TASK_CONFIGS = {config["task"]: config for config in CONFIGS.values() if isinstance(config["task"], str)}
GROUPS = {config["group"]: config for config in CONFIGS.values() if "group" in config}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """All sets, as `mer-r1 prepare` makes them, with one real video and sound."""
    root = tmp_path_factory.mktemp("lmms-data")
    video = write_media(root / "clip.mp4", frames=6, fps=5, sound=tone(0.8, hertz=220))
    sound = write_media(root / "clip.wav", sound=tone(0.8, hertz=220), audio_codec="pcm_s16le")
    for name in (*NINE, "ovmerd", "mme-emotion"):
        write_set(root, name, videos=[video], sounds=[sound])
        prepare(name, root, allow_pickle=True)
    return root


@pytest.fixture(autouse=True)
def environment(data, tmp_path, monkeypatch):
    monkeypatch.setenv(documents.DATA, str(data))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(documents.WHEELS, raising=False)
    monkeypatch.delenv(documents.ABSOLUTE, raising=False)


def test_every_set_and_every_task_of_both_benchmarks_is_there():
    names = {name: config["dataset_name"] for name, config in TASK_CONFIGS.items()}
    assert sorted(names.values()) == sorted((*SETS, *TASKS))
    assert all(name == f"mer_unibench_{own}" for name, own in names.items() if own in SETS)
    assert {names[task] for task in GROUPS["mer_unibench"]["task"]} == set(NINE)
    assert [names[task] for task in GROUPS["mme_emotion"]["task"]] == list(TASKS)
    # 18 tasks, 2 groups, and nothing comes twice.
    assert len(TASK_CONFIGS) + len(GROUPS) == len(YAMLS) == 20


def test_a_task_is_three_lines():
    for path, config in CONFIGS.items():
        if "group" not in config:
            assert set(yaml.safe_load(path.read_text())) == {"task", "include", "dataset_name"}


@pytest.mark.parametrize("task", TASK_CONFIGS)
def test_documents_and_metrics_of_a_task_fit_its_config(task):
    config = TASK_CONFIGS[task]
    docs = config["process_docs"](SimpleNamespace(config_name=config["dataset_name"]))
    assert len(docs) == 3
    assert {config["doc_to_text"], config["doc_to_target"]} <= set(docs.column_names)
    assert config["test_split"] in config["dataset_kwargs"]["data_files"]
    found = [config["process_results"](doc, [SPOKEN]) for doc in docs]
    assert [entry["metric"] for entry in config["metric_list"]] == list(found[0])
    for entry in config["metric_list"]:
        value = entry["aggregation"]([item[entry["metric"]] for item in found])
        assert math.isnan(value) or 0 <= value <= 1


def test_messages_hold_picture_and_sound_apart_then_the_question(data):
    doc = documents.documents("meld")[0]
    clip = read_manifest(data / "meld-process" / "meld.jsonl")[0]
    (turn,) = documents.doc_to_messages(doc)
    assert turn["role"] == "user"
    assert [part["type"] for part in turn["content"]] == ["video", "audio", "text"]
    assert [part.get("url") for part in turn["content"][:2]] == [str(clip.video), str(clip.audio)]
    (ours,) = conversation(clip)
    assert [part["type"] for part in ours["content"]] == [part["type"] for part in turn["content"]]
    assert turn["content"][2]["text"] == ours["content"][2]["text"] == doc["question"]


def test_the_sound_of_a_video_is_copied_once(data, caplog):
    doc = documents.documents("ER-Lab")[0]
    assert doc["audio"] is None
    (turn,) = documents.doc_to_messages(doc)
    sound = Path(turn["content"][1]["url"])
    with wave.open(str(sound)) as file:
        assert (file.getframerate(), file.getnchannels()) == (16000, 1)
        assert file.getnframes() / 16000 == pytest.approx(0.8, abs=0.1)
    sound.write_bytes(b"kept")
    assert documents.doc_to_messages(doc) == [turn]
    assert sound.read_bytes() == b"kept"
    assert not caplog.records


def test_a_silent_and_a_broken_video_are_asked_about_without_sound(tmp_path, caplog):
    silent = write_media(tmp_path / "silent.mp4", frames=6, fps=5)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for name in (silent, tmp_path / "broken.mp4", tmp_path / "missing.mp4"):
        (turn,) = documents.doc_to_messages({"video": str(name), "audio": None, "question": "Which?"})
        assert [part["type"] for part in turn["content"]] == ["video", "text"]
        assert f"{Path(name).name}: the question is asked without audio" in caplog.text


def test_a_cache_that_cannot_be_written_stops_the_run(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"sounds: cannot write the audio of videos there \(Not a directory\)"):
        documents.doc_to_messages(documents.documents("ER-Lab")[0])


def test_simple_models_get_the_video_alone():
    doc = documents.documents("sims")[0]
    assert documents.doc_to_visual(doc) == [doc["video"]]
    with pytest.raises(UserError, match="sims, clip 'x': no video, expected one"):
        documents.doc_to_visual({"set": "sims", "id": "x", "video": None})


def test_what_is_wrong_with_the_data_is_one_line(data, tmp_path, monkeypatch):
    def line(name: str = "meld") -> str:
        with pytest.raises(SystemExit) as stopped:
            documents.process_docs(SimpleNamespace(config_name=name))
        return str(stopped.value)

    monkeypatch.delenv(documents.DATA)
    assert line() == (
        "mer-r1: MER_R1_DATA is not set, expected the folder that holds meld.jsonl (`mer-r1 prepare` writes it)"
    )
    monkeypatch.setenv(documents.DATA, str(tmp_path))
    assert line().endswith("expected one meld.jsonl in it or one folder below, found none")
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "meld.jsonl").write_bytes((data / "meld-process" / "meld.jsonl").read_bytes())
    assert "a/meld.jsonl and" in line()
    (tmp_path / "iemocap.jsonl").write_bytes((data / "meld-process" / "meld.jsonl").read_bytes())
    assert line("iemocap").endswith("iemocap.jsonl: its rows are of meld, expected iemocap")
    assert "expected one of mer2023" in line("mood")
    monkeypatch.setenv(documents.DATA, str(data))
    monkeypatch.setenv(documents.WHEELS, str(tmp_path / "wheels"))
    assert "no folder" in line()


def test_media_stay_in_the_folder_unless_absolute_paths_are_allowed(data, tmp_path, monkeypatch):
    clip = Clip("x", data / "clip.mp4", labels=("joy",), split="test", meta={"dataset": "meld"})
    write_manifest(tmp_path / "meld.jsonl", [clip], absolute=True)
    monkeypatch.setenv(documents.DATA, str(tmp_path))
    with pytest.raises(UserError, match="absolute path"):
        documents.documents("meld")
    monkeypatch.setenv(documents.ABSOLUTE, "1")
    assert documents.documents("meld")[0]["video"] == str(data / "clip.mp4")


def test_rows_of_other_splits_are_left_out_and_missing_media_are_told(tmp_path, monkeypatch, caplog):
    clips = [
        Clip(name, tmp_path / f"{name}.mp4", labels=("joy",), split=split, meta={"dataset": "meld"})
        for name, split in (("a", "train"), ("b", "test"))
    ]
    write_manifest(tmp_path / "meld.jsonl", clips)
    monkeypatch.setenv(documents.DATA, str(tmp_path))
    assert [doc["id"] for doc in documents.documents("meld")] == ["b"]
    assert "meld: 1 media files are missing, such as" in caplog.text
    assert "meld: 1 rows of other splits are left out" in caplog.text
    assert "meld: 1 clips, the benchmark has 2610: not its published set" in caplog.text


@pytest.mark.parametrize(
    ("text", "labels", "sentiment", "reason"),
    [
        (SPOKEN, "[happy]", "positive", None),
        ("<answer></answer>", "[]", "neutral", None),  # an answer, and an empty one
        ("She is happy about it.", "[]", "neutral", "no list of words in an <answer>"),
        ("  ", "[]", "neutral", "blank"),
        ("<answer> qwerty </answer>", "[qwerty]", "", "no wheel places qwerty"),  # a word no wheel has
    ],
)
def test_answers_are_read_by_rule_and_what_cannot_be_read_is_told(text, labels, sentiment, reason):
    of_words = reason if sentiment else None  # as a word, qwerty can be read; it means nothing
    assert scores.read_answer(text, sentiment=False) == (labels, of_words)
    assert scores.read_answer(text, sentiment=True) == (sentiment, reason)


def test_unread_answers_are_counted_as_empty_ones(caplog):
    gold = {"set": "mer2023", "gold": ["happy"]}
    docs = [{**gold, "id": "a"}, {**gold, "id": "b"}]
    items = [scores.unibench_results(doc, [text]) for doc, text in zip(docs, (SPOKEN, "Happy, I think."), strict=True)]
    assert scores.unread([item["unread"] for item in items]) == 0.5
    assert "mer2023: 1 of 2 answers cannot be read by rule and count as empty predictions" in caplog.text
    # One of two hits on every wheel; the empty prediction has precision and recall 0.
    assert scores.score([item["score"] for item in items]) == 0.5
    assert scores.unified_f1([item["unified_f1"] for item in items]) == 0.5


def test_a_set_that_cannot_be_scored_is_nan_and_told(caplog):
    items = [{"set": "cmumosi", "id": "a", "gold": 0.0, "predicted": "positive", "unread": None}]
    assert math.isnan(scores.score(items))
    assert "cmumosi: no score: gold: all 1 sentiment values are 0" in caplog.text


def test_label_match_is_that_of_the_benchmark_module(tmp_path, monkeypatch):
    golds = (["happiness", "surprise"], ["sadness"], "happiness, pride")
    clips = [
        Clip(str(i), subtitle="Oh!", split="test", meta={"dataset": "mme-emotion", "task": "ML-ER", "gold": gold})
        for i, gold in enumerate(golds)
    ]
    write_manifest(tmp_path / "mme-emotion.jsonl", clips)
    monkeypatch.setenv(documents.DATA, str(tmp_path))
    docs = documents.documents("ML-ER")
    assert [doc["gold"] for doc in docs] == ["happiness,surprise", "sadness", "happiness, pride"]
    text = "<answer> happiness, pride </answer>"
    found = [scores.mme_results(doc, [text]) for doc in docs]
    # One of two, none of one, two of two.
    assert [item["label_match"]["score"] for item in found] == [0.5, 0.0, 1.0]
    items = [
        scores.LabelItem("ML-ER", text, gold)
        for gold in [("happiness", "surprise"), ("sadness",), ("happiness", "pride")]
    ]
    expected = label_report(items, builtin())["tasks"]["ML-ER"]
    for metric, name in (("label_match", "recognition"), ("any_hit", "any_hit")):
        assert scores.mean_score([item[metric] for item in found]) == pytest.approx(expected[name]["mean"], abs=1e-12)


def test_saved_answers_that_are_none_are_refused(tmp_path):
    about = {"score": {"set": "meld", "id": "a", "gold": ["joy"]}}
    for row, message in (
        ("{", "1: expected a sample of one of our tasks"),
        ("[]", "1: expected a sample of one of our tasks"),
        (json.dumps({"score": {"set": "mood", "id": "a", "gold": []}}), "1: expected a sample of one of our tasks"),
        (json.dumps(about), "1: resps: got 'None', expected one answer"),
        ("\n".join([json.dumps({**about, "resps": ["x"]})] * 2), "2: an answer about 'a' again"),
    ):
        (tmp_path / "t_samples_x.jsonl").write_text(row)
        with pytest.raises(UserError, match=message):
            answers.export_answers([tmp_path], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--log_samples"):
        answers.export_answers([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(UserError, match="cannot be read"):
        answers.export_answers([tmp_path / "none.jsonl"], tmp_path / "out")


def test_a_clip_without_an_answer_costs_the_others_nothing(tmp_path, caplog):
    rows = [
        {"resps": [[text]], "score": {"set": name, "id": f"{name}{n}", "gold": "x"}}
        for name in ("meld", "SA")
        for n, text in enumerate(("<answer> joy </answer>", None))
    ]
    (tmp_path / "t_samples_x.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(map(json.dumps, rows)).encode())
    written = answers.export_answers([tmp_path], tmp_path / "out")
    assert written == {tmp_path / "out" / "meld.jsonl": 1, tmp_path / "out" / "SA.json": 1}
    assert caplog.text.count("no answer about") == 2
    kept = [json.loads(line) for line in (tmp_path / "out" / "meld.jsonl").read_text().splitlines()]
    assert [(row["id"], row["completion"], row.get("error")) for row in kept] == [
        ("meld0", "<answer> joy </answer>", None),
        ("meld1", None, "lmms-eval saved no answer"),
    ]


@pytest.mark.parametrize("former", [False, True])
def test_commands(tmp_path, former):
    """By themselves, and in their former spelling, which says the new one on stderr."""
    prefix, note = ("lmms-", "mer-r1 lmms-{0} is now: {1} {0}\n") if former else ("", "")
    module = "python -m mer_r1.integrations.lmms_eval"

    def run(name, *words):
        where = "mer_r1.cli" if former else "mer_r1.integrations.lmms_eval"
        command = [sys.executable, "-m", where, f"{prefix}{name}", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    printed = run("tasks")
    assert (Path(printed.stdout.strip()), printed.stderr) == (TASKS_FOLDER, note.format("tasks", module))
    row = {"resps": [["<answer> sad </answer>"]], "score": {"set": "meld", "id": "a", "gold": ["joy"]}}
    (tmp_path / "t_samples_mer_unibench_meld.jsonl").write_text(json.dumps(row))
    printed = run("answers", str(tmp_path), "--out", str(tmp_path / "out"))
    assert printed.stdout.strip() == f"{tmp_path / 'out' / 'meld.jsonl'}: 1 answers"
    assert printed.stderr == note.format("answers", module)


def test_an_error_of_the_module_is_one_line(tmp_path):
    command = [sys.executable, "-m", "mer_r1.integrations.lmms_eval", "answers", str(tmp_path), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    message = f"mer-r1: {tmp_path}: no *_samples_*.jsonl in it; lmms-eval writes them with --log_samples\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_answers_that_cannot_be_written_are_one_line(tmp_path):
    row = {"resps": ["x"], "score": {"set": "meld", "id": "a", "gold": ["joy"]}}
    (tmp_path / "t_samples_meld.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"meld\.jsonl: cannot be written \(Not a directory\)"):
        answers.export_answers([tmp_path], tmp_path / "t_samples_meld.jsonl" / "out")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """The folder that `lmms_stub.py` filled."""
    if importlib.util.find_spec("lmms_eval") is None:
        pytest.skip(f"lmms-eval {PINNED} is not installed; docs/lmms_eval.md says how")
    assert importlib.metadata.version("lmms_eval") == PINNED
    out = tmp_path_factory.mktemp("lmms-run")
    names = {documents.DATA: data, "HF_DATASETS_CACHE": out / "hf", "XDG_CACHE_HOME": out / "cache"}
    settings = {name: value for name, value in os.environ.items() if name not in (documents.WHEELS, documents.ABSOLUTE)}
    script = Path(__file__).parents[1] / "helpers" / "lmms_stub.py"
    done = subprocess.run(
        [sys.executable, str(script), str(TASKS_FOLDER), str(out)],
        env={**settings, **{name: str(value) for name, value in names.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def report(run) -> dict:
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


def test_lmms_eval_finds_our_tasks(report):
    assert report["tasks"] == sorted(TASK_CONFIGS)
    assert report["groups"] == sorted(GROUPS)


def test_models_of_lmms_eval_are_asked_as_our_own(report, data):
    assert sorted(report["chat"]["asked"]) == sorted(TASK_CONFIGS)
    for task, asked in report["chat"]["asked"].items():
        docs = documents.documents(TASK_CONFIGS[task]["dataset_name"])
        assert [item["videos"] for item in asked] == [[doc["video"]] for doc in docs]
        assert all(len(item["audios"]) == 1 and not item["images"] for item in asked)
        assert [item["messages"][0]["content"][-1]["text"] for item in asked] == [doc["question"] for doc in docs]
        assert all(item["settings"]["until"] == [] for item in asked)  # nothing may stop at a blank line
    docs = documents.documents("meld")
    assert report["simple"]["asked"]["mer_unibench_meld"] == [
        {"context": doc["question"], "visuals": [doc["video"]]} for doc in docs
    ]


def test_lmms_eval_reports_our_scores(run, report, data):
    """Its table, and the same answers through `mer-r1 score`, are equal to the last digits."""
    written = answers.export_answers([run / "samples"], run / "answers")
    assert sorted(path.stem for path in written) == sorted((*SETS, *TASKS))
    assert set(written.values()) == {3}
    golds = read_gold([data])
    reading = Reading("rules", builtin())
    found = {name: read_predictions(run / "answers", SETS[name], reading) for name in golds}
    ours = score_benchmark(golds, found, Scoring(builtin(), resamples=10))
    mains = {}
    for name, entry in ours["sets"].items():
        theirs = report["chat"]["results"][f"mer_unibench_{name}"]
        official, audited = entry["modes"]["given"]["official"], entry["modes"]["given"]["audited"]
        mains[name] = official["main"]
        assert theirs["score,none"] == pytest.approx(official["main"], abs=1e-12)
        assert theirs["unread,none"] == 0
        if entry["kind"] == "sentiment":
            assert theirs["accuracy,none"] == pytest.approx(official["second"], abs=1e-12)
        else:
            for side in ("precision", "recall", "f1"):
                expected = audited["unified"][side]["mean"]
                assert theirs[f"unified_{side},none"] == pytest.approx(expected, abs=1e-12)
    assert len(set(mains.values())) > 3
    assert report["chat"]["results"]["mer_unibench"]["score,none"] == pytest.approx(nine_way_mean(mains), abs=1e-12)
    assert report["simple"]["results"]["mer_unibench_meld"]["score,none"] == mains["meld"]


def test_answers_of_lmms_eval_can_be_judged(run, report, data):
    answers.export_answers([run / "samples"], run / "judged")
    items = given_items(
        [run / "judged" / f"{task}.json" for task in TASKS], read_manifest(data / "MME-Emotion" / "mme-emotion.jsonl")
    )
    assert len(items) == 24
    assert all(item.response and "<think>" in item.response and item.video for item in items)
    matches = [report["chat"]["results"][task]["label_match,none"] for task in GROUPS["mme_emotion"]["task"]]
    pooled = report["chat"]["results"]["mme_emotion"]["label_match,none"]
    assert pooled == pytest.approx(sum(matches) / 8, abs=1e-12)  # equally many clips each
    assert 0 < pooled < 1
