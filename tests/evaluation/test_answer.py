"""Answers of either form and mode, and asking in both modes only where it pays."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mer_r1.cli import app
from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.two_answers import format_twice, parse_twice
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers.adaptive import evaluate_auto, predict_auto
from mer_r1.evaluation.answerers.answer import FIRST_ANSWER_TOKENS, answer, trimmed
from mer_r1.evaluation.answerers.thinking_gate import Gate, read_gate
from mer_r1.evaluation.predict import predict
from mer_r1.evaluation.records import Record, read_records, rescore
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Settings, load
from mer_r1.rl.method import Method
from mer_r1.rl.rollout import Rollouts
from mer_r1.training.recipe_files import read_recipe
from mer_r1.training.recipes import RLRecipe, SFTRecipe
from mer_r1.training.rl_stage import run_rl
from mer_r1.training.sft_stage import examples, run_sft

SLOW, FAST = ThinkingMode.SLOW, ThinkingMode.FAST
WHOLE = format_twice(["happy"], "A smile.", ["happy", "proud"])
GREEDY = Sampling(24, 0.0, seed=0)


class Scripted:
    """In place of `rollout`: every completion is the same text, every token as likely as the last."""

    def __init__(self, omni: Any, text: str) -> None:
        self.ids = omni.tokenizer(text)["input_ids"]
        self.asked: list[dict[str, Any]] = []

    def __call__(self, omni: Any, prompts: Any, group: int, sampling: Sampling, **how: Any) -> Rollouts:
        self.asked.append({"limit": sampling.max_new_tokens, **how})
        ids = self.ids[: sampling.max_new_tokens]
        rows = [list(ids) for _ in prompts]
        return Rollouts(rows, [[-0.5] * len(ids) for _ in prompts], torch.empty(0, dtype=torch.long))


@pytest.fixture
def twice(taught, monkeypatch):
    monkeypatch.setattr(taught, "settings", Settings(**{**vars(taught.settings), "form": "twice"}))
    scripted = Scripted(taught, WHOLE)
    monkeypatch.setattr("mer_r1.rl.rollout.rollout", scripted)
    return taught, scripted


def test_the_fast_answer_of_two_is_the_first(twice):
    omni, scripted = twice
    sampled, opening = answer(omni, [None] * 2, FAST, Sampling(200, 0.0), None)
    text = omni.tokenizer.decode(sampled.completion_ids[0])
    assert opening == ""
    assert trimmed(text, FAST, "twice") == "<answer> happy </answer>"
    assert len(sampled.completion_ids[0]) == len(sampled.logps[0]) < len(scripted.ids)
    assert scripted.asked[0]["limit"] == FIRST_ANSWER_TOKENS
    whole, _ = answer(omni, [None], SLOW, Sampling(200, 0.0), None)
    assert omni.tokenizer.decode(whole.completion_ids[0]) == WHOLE


def test_records_of_two_answers(twice, corpus):
    omni, _ = twice
    clips = read_manifest(corpus)[:2]
    slow, fast = list(predict(omni, clips[:1], [SLOW, FAST], builtin(), Sampling(200, 0.0), batch_size=1))
    assert (slow.labels, fast.labels) == (["happy", "proud"], ["happy"])
    assert slow.form == fast.form == "twice"
    assert slow.well_formed
    assert fast.well_formed
    assert slow.sureness == fast.sureness == pytest.approx(0.6065, abs=1e-4)  # exp(-0.5)
    assert fast.tokens < slow.tokens
    assert rescore([slow, fast], builtin()) == [slow, fast]
    assert Record.from_dict(slow.to_dict()) == slow
    with pytest.raises(UserError, match="form of record"):
        Record.from_dict({**slow.to_dict(), "form": "thrice"})


def test_the_sureness_of_a_real_answer_is_the_mean_probability_of_its_tokens(taught, corpus):
    clips = read_manifest(corpus)[:2]
    found = list(predict(taught, clips, [FAST], builtin(), GREEDY))
    assert all(0 < record.sureness <= 1 for record in found)
    assert all(record.form == "once" for record in found)


@pytest.mark.parametrize(("threshold", "mode"), [(0.0, "fast"), (2.0, "slow")])
def test_never_and_always_unsure(taught, corpus, tmp_path: Path, threshold: float, mode: str):
    clips = [clip for clip in read_manifest(corpus) if clip.split == "test"]
    fast = [record for record in predict(taught, clips, [FAST], builtin(), GREEDY) if record.labels]
    known = [clip for clip in clips if clip.id in {record.id for record in fast}]
    assert known
    found = list(predict_auto(taught, known, builtin(), GREEDY, Gate.by_confidence(threshold)))
    assert [record.mode for record in found] == [mode] * len(known)
    if mode == "slow":
        assert all(record.tokens > first.tokens for record, first in zip(found, fast, strict=True))


def test_evaluating_asks_slowly_only_where_fast_is_unsure(taught, corpus, tmp_path: Path):
    taught.save(tmp_path / "model")
    out = tmp_path / "out"
    how: dict[str, Any] = {"split": "train", "features_dir": tmp_path / "features"}
    first = read_records(evaluate_auto(str(tmp_path / "model"), corpus, out, GREEDY, Gate.by_confidence(0.0), **how))
    sure = sorted(record.sureness for record in first if record.mode == "fast" and record.labels)
    middle = sure[len(sure) // 2]
    steps: list[tuple[int, int]] = []
    how["progress"] = lambda more, total: steps.append((more, total))
    found = read_records(evaluate_auto(str(tmp_path / "model"), corpus, out, GREEDY, Gate.by_confidence(middle), **how))
    unsure = {
        record.id for record in found if record.mode == "fast" and (not record.labels or record.sureness < middle)
    }
    assert {record.id for record in found if record.mode == "slow"} == unsure
    assert 0 < len(unsure) < len(first)
    assert sum(more for more, _ in steps) == steps[-1][1] == len(found)
    told = [
        "--model",
        str(tmp_path / "model"),
        "--manifest",
        str(corpus),
        "--split",
        "train",
        "--out",
        str(out),
        "--json",
    ]
    told += ["--features-dir", str(tmp_path / "features"), "--max-new-tokens", "24"]
    chosen = CliRunner().invoke(app, ["threshold", *told])  # asks the rest slowly, then chooses
    assert chosen.exit_code == 0, chosen.output
    gate = read_gate(tmp_path / "model")
    assert json.loads(chosen.stdout)["threshold"] == gate.threshold
    asked = CliRunner().invoke(app, ["evaluate", *told, "--think", "auto"])
    assert asked.exit_code == 0, asked.output
    assert set(json.loads(asked.stdout)["modes"]) == {"fast", "auto"}
    # A budget of the validation curve is met on the clips it was chosen on, but for the lead, whose curve is left out.
    budget = (gate.curve[0].tokens + gate.curve[-1].tokens) / 2
    asked = CliRunner().invoke(app, ["evaluate", *told, "--think", "auto", "--budget", str(budget)])
    assert asked.exit_code == 0, asked.output
    spent = json.loads(asked.stdout)["modes"]["auto"]["tokens"]["mean"]
    assert spent <= budget or gate.score == "lead"
    for value, named in (("0.5", "expected"), ("nan", "expected"), ("1e6", "expected")):
        refused = CliRunner().invoke(app, ["evaluate", *told, "--think", "auto", "--budget", value])
        assert f"--budget: got {float(value):g} tokens per clip, {named} " in str(refused.exception)
    warmer = CliRunner().invoke(app, ["evaluate", *told, "--think", "auto", "--temperature", "0.9"])
    assert "temperature: 0.0, now 0.9" in str(warmer.exception)


# --- training in the other form ---------------------------------------------------------------------------------------


def test_targets_answer_before_and_after_the_reasoning(taught, corpus):
    clips = [clip for clip in read_manifest(corpus) if clip.split == "train"]
    for clip, row in zip(clips, examples(clips, taught, "twice"), strict=True):
        found = parse_twice(row["target"])
        assert (found.first, found.final, found.reasoning) == (clip.labels, clip.labels, clip.reasoning)
        assert found.well_formed


def test_a_method_refuses_a_policy_of_the_other_form(taught, corpus, tmp_path: Path):
    taught.save(tmp_path / "model")
    shared = [f"manifest={corpus}", f"model={tmp_path / 'model'}", "use_cpu=true", "bf16=false", "report_to=none"]
    wrong = read_recipe(RLRecipe, None, [*shared, f"output_dir={tmp_path / 'rl'}", "method=videoauto-r1"])
    with pytest.raises(UserError, match="targets=twice"):
        run_rl(wrong)
    told = [*shared, f"output_dir={tmp_path / 'sft'}", "targets=twice"]
    assert read_recipe(SFTRecipe, None, told).targets == "twice"


@pytest.mark.parametrize("name", ["r1-omni"])
def test_baselines_train_in_the_same_trainer(taught, corpus, tmp_path: Path, name: str):
    taught.save(tmp_path / "model")
    settings = [f"manifest={corpus}", f"model={tmp_path / 'model'}", f"output_dir={tmp_path / 'rl'}", f"method={name}"]
    settings += ["use_cpu=true", "bf16=false", "report_to=none", "workers=0", "logging_steps=1", "max_steps=1"]
    settings += ["per_device_train_batch_size=8", "num_generations=4", "max_completion_length=24", "save_strategy=no"]
    settings += ["disable_tqdm=true", f"features_dir={tmp_path / 'features'}"]
    run_rl(read_recipe(RLRecipe, None, settings))
    log = (tmp_path / "rl" / "log.jsonl").read_text(encoding="utf-8")
    assert all(f"rewards/{objective}_reward/mean" in log for objective in Method(name).objectives)


def test_answering_twice_from_the_cold_start_to_records(taught, corpus, tmp_path: Path):
    taught.save(tmp_path / "model")
    shared = [f"manifest={corpus}", "use_cpu=true", "bf16=false", "report_to=none", "workers=0", "max_steps=1"]
    shared += ["logging_steps=1", "save_strategy=no", "disable_tqdm=true", f"features_dir={tmp_path / 'features'}"]
    sft = [f"model={tmp_path / 'model'}", f"output_dir={tmp_path / 'sft'}", "targets=twice"]
    run_sft(read_recipe(SFTRecipe, None, [*shared, *sft, "per_device_train_batch_size=2"]))
    rl = [f"model={tmp_path / 'sft' / 'model'}", f"output_dir={tmp_path / 'rl'}", "method=videoauto-r1"]
    rl += ["per_device_train_batch_size=4", "num_generations=2", "max_completion_length=24"]
    run_rl(read_recipe(RLRecipe, None, [*shared, *rl]))
    log = (tmp_path / "rl" / "log.jsonl").read_text(encoding="utf-8")
    assert all(f"rewards/{name}_reward/mean" in log for name in ("twice_format", "first_f1", "final_f1"))
    omni = load(tmp_path / "rl" / "model")
    assert omni.settings.form == "twice"
    clips = read_manifest(corpus)[:2]
    records = list(predict(omni, clips, [SLOW, FAST], builtin(), GREEDY))
    assert {record.form for record in records} == {"twice"}
    slow, fast = ([record for record in records if record.mode == mode] for mode in ("slow", "fast"))
    assert all(whole.completion.startswith(first.completion) for whole, first in zip(slow, fast, strict=True))
