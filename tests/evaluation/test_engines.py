"""The same engines in every evaluation, and several processes with the records of one."""

import json
import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import fake_vllm
import pytest
from llm_server import Server
from tiny_corpus import write_corpus

from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest, write_manifest
from mer_r1.data.workers import WorkerDiedError
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers.spread import spread
from mer_r1.evaluation.predict import evaluate_model
from mer_r1.evaluation.records import Record, read_records
from mer_r1.model.generation import Sampling

BOTH = list(ThinkingMode)
ANSWER = "<think>Hm.</think><answer>happy</answer>"


@dataclass
class Canned:
    """Answers with the number of the process's groups so far, or fails as told."""

    fails: str = ""
    asked: int = 0

    def answer(self, clips, modes, told=""):
        self.asked += 1
        for mode in modes:
            for clip in clips:
                if clip.id == self.fails == "clip-3":
                    raise UserError("clip-3 cannot be asked about")
                if clip.id == self.fails:
                    os._exit(9)
                yield Record(clip.id, mode.value, f"{told}{clip.id}")


CLIPS = [Clip(f"clip-{index}") for index in range(9)]
TURNS = [(CLIPS[start : start + 2], BOTH) for start in range(0, 9, 2)]


def answered(model, processes, **options):
    with spread(partial(getattr, model, "answer"), processes) as answers:
        return [(r.id, r.mode, r.completion) for found in answers(TURNS, **options) for r in found]


def test_several_processes_answer_in_the_order_of_one():
    expected = [(clip.id, mode.value, f"so {clip.id}") for group, _ in TURNS for mode in BOTH for clip in group]
    assert answered(Canned(), 1, told="so ") == answered(Canned(), 2, told="so ") == expected


def test_what_goes_wrong_in_a_process_is_one_line_here():
    with pytest.raises(UserError, match=r"^clip-3 cannot be asked about$"):
        answered(Canned("clip-3"), 2)
    with pytest.raises(WorkerDiedError, match="run the same command again to resume"):
        answered(Canned("clip-4"), 2)


def test_copies_of_a_command_would_write_over_one_another(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="give --processes, without accelerate or torchrun"):
        answered(Canned(), 1)


def lines(folder):
    return [replace(record, seconds=0.0) for record in read_records(folder / "records.jsonl")]


@pytest.mark.parametrize("sampling", [Sampling(24, 0.0, seed=0), Sampling(24, 1.0, seed=3)], ids=["greedy", "sampled"])
def test_two_processes_give_the_records_of_one(corpus, taught_folder, tmp_path, sampling):
    how = {"split": "all", "batch_size": 3, "features_dir": tmp_path / "features", "num_answers": 1}
    for processes in (1, 2):
        evaluate_model(
            str(taught_folder), corpus, tmp_path / str(processes), BOTH, sampling, processes=processes, **how
        )
    assert lines(tmp_path / "1") == lines(tmp_path / "2")
    assert len(lines(tmp_path / "2")) == 16


@pytest.fixture
def vllm(monkeypatch):
    module = fake_vllm.module()
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def completions(folder):
    return {(r.id, r.mode): (r.completion, r.error) for r in read_records(folder / "records.jsonl")}


def test_evaluate_asks_any_engine(run, vllm, corpus, taught_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    words = ["evaluate", "--manifest", corpus, "--max-new-tokens", 24, "--think", "slow", "--json"]
    model = ["--model", taught_folder]
    told = run(*words, *model, "--out", tmp_path / "torch", "--features-dir", tmp_path / "features")
    assert told[0] == 0, told[2]
    told = run(*words, *model, "--engine", "vllm", "--max-length", 256, "--out", tmp_path / "vllm")
    assert told[0] == 0, told[2]
    assert vllm.LLM.started[0].options["max_model_len"] == 256
    assert completions(tmp_path / "vllm") == completions(tmp_path / "torch") != {}
    with Server(lambda call: ANSWER) as server:
        served = ["--model", "m", "--model-url", server.base_url, "--out", tmp_path / "served"]
        told = run(*words, *served)
    assert told[0] == 0, told[2]
    assert {text for text, _ in completions(tmp_path / "served").values()} == {ANSWER}
    assert json.loads(told[1])["modes"]["slow"]["n"] == 2


def test_mme_emotion_asks_any_engine_its_own_question(run, vllm, taught_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    (tmp_path / "clips").mkdir()
    found = read_manifest(write_corpus(tmp_path / "clips"))[:2]
    about = {"dataset": "mme-emotion", "task": "SA", "question": "Which mood is it?", "gold": "positive"}
    data = tmp_path / "clips" / "mme.jsonl"
    write_manifest(data, [replace(clip, meta={**about, "candidates": None}) for clip in found])
    words = ["eval", "mme-emotion", "--manifest", data, "--judge", "none", "--max-new-tokens", 24, "--think", "slow"]
    model = ["--model", taught_folder]
    for engine in ("torch", "vllm"):
        told = run(*words, *model, "--engine", engine, "--out", tmp_path / engine)
        assert told[0] in (0, 1), told[2]
    expected = completions(tmp_path / "torch" / "predictions")
    assert completions(tmp_path / "vllm" / "predictions") == expected != {}
    asked = []
    with Server(lambda call: asked.append(call.text) or ANSWER) as server:
        told = run(*words, "--model", "m", "--model-url", server.base_url, "--out", tmp_path / "served")
    assert told[0] in (0, 1), told[2]
    assert len(asked) == 2
    assert all("Which mood is it?" in text for text in asked)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--engine", "vllm", "--model-url", "http://localhost:1/v1"], "--engine vllm is for a checkpoint here, and"),
        (
            ["--processes", 2, "--model-url", "http://localhost:1/v1"],
            "--processes is for a checkpoint here; see --conc",
        ),
        (["--gpu-memory", 0.5], "--gpu-memory and --max-length are for --engine vllm"),
        (
            ["--max-length", 9, "--model-url", "http://localhost:1/v1"],
            "--max-length are for --engine vllm, and --model-",
        ),
        (["--model-extra-body", "{}"], "--model-extra-body is for the model's server"),
        (
            ["--engine", "vllm", "--exchange", "audio"],
            "--exchange, --num-answers, --features-dir and --device are for a",
        ),
    ],
)
def test_options_that_an_engine_would_ignore_are_refused(run, words, told, corpus, taught_folder, tmp_path):
    made = run("evaluate", "--manifest", corpus, "--model", taught_folder, "--out", tmp_path / "out", *words)
    assert made[0] == 2
    assert told in made[2]
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_without_a_model_no_engine_is_asked(run, corpus, tmp_path: Path):
    made = run("evaluate", "--manifest", corpus, "--out", tmp_path, "--engine", "vllm")
    assert (made[0], "an engine needs --model: without it, nothing is asked" in made[2]) == (2, True)
