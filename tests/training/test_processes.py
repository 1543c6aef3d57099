"""Two processes on one machine (CPU, gloo): what one process computes, they compute together.

One launch runs all stages in two processes; the same stages run here, in one, with twice the rows in it. Steps are of
plain gradient descent: Adam would blow up the rounding in gradients that are zero but for it (the bias of a key).
Tolerances: log lines 1e-4 relative (they are rounded to four digits), advantages 1e-4, weights 2e-6.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import two_processes
from safetensors.torch import load_file

from mer_r1.errors import UserError
from mer_r1.model.omni import load
from mer_r1.training import stage
from mer_r1.training.recipe_files import read_recipe
from mer_r1.training.recipes import SFTRecipe
from mer_r1.training.sft_stage import run_sft

GROUP = 4
ALIKE = {"rtol": 0, "atol": 2e-6}
HANGS = 240
"""Seconds after which a launch counts as hanging; a quiet machine needs twenty."""
COMMON = [
    *("use_cpu=true", "bf16=false", "report_to=none", "disable_tqdm=true", "workers=0", "logging_steps=1"),
    *("optim=sgd", "lr_scheduler_type=constant", "learning_rate=0.05", "max_grad_norm=0", "ddp_timeout=60"),
]
RL = [f"num_generations={GROUP}", "max_completion_length=16", "max_steps=3", "seed=5"]
STAGES = {  # rows of one process, and settings
    "sft": (1, ["max_steps=4"]),
    "cold": (1, ["max_steps=4", "counterfactual_rows=2", "replay=1", "shared_prefixes=true", "seed=3"]),
    "towers": (1, ["max_steps=4", "train_towers=true", "gradient_checkpointing=true", "learning_rate=0.005"]),
    "first": (1, ["max_steps=2", "train_towers=true", "towers_first_steps=2", "learning_rate=0.005"]),
    "groups": (GROUP, [*RL, "calibration=hinge"]),
    "modes": (2 * GROUP, [*RL, "fast_share=0.5"]),  # in each process a slow and a fast group
    "halves": (GROUP // 2, [*RL, "calibration=difference"]),  # the rollouts of one clip lie in both processes
}


def job(name, corpus, model, out, processes, **more):
    rows, settings = STAGES[name]
    rows *= 2 // processes
    paths = [f"manifest={corpus}", f"model={model}", f"output_dir={out / name}", f"per_device_train_batch_size={rows}"]
    stage = "rl" if rows * processes >= GROUP else "sft"
    return {"stage": stage, "settings": [*COMMON, "save_strategy=no", *paths, *settings], "seeded": True, **more}


ACCELERATE = ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
"""With --cpu, or a configuration of the kind MULTI_CPU, it starts one process and says nothing."""
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launch(jobs, folder, launcher=ACCELERATE):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    source = str(Path(stage.__file__).resolve().parents[2])
    return subprocess.run(
        [sys.executable, "-m", *launcher, two_processes.__file__, str(folder / "jobs.json")],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )


def lines(folder, keys):
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in keys if key in line} for line in logged if "loss" in line]


def batches(folder):
    found = [json.loads(line) for line in (folder / "batches.jsonl").read_text().splitlines()]
    return [[(clip, ids) for clip, ids, _ in batch["rows"]] for batch in found], torch.tensor(
        [[advantage for _, _, advantage in batch["rows"]] for batch in found]
    )


def weights(folder):
    return load(folder / "model").model.state_dict()


@pytest.fixture(scope="module")
def both(corpus, taught_folder, tmp_path_factory):
    """The stages in two processes and in one, each with a feature cache of its own; and one run with checkpoints."""
    out = tmp_path_factory.mktemp("processes")
    here, there = out / "one", out / "two"
    long = long_run(corpus, taught_folder, there / "long")
    jobs = [job(name, corpus, taught_folder, there, 2) for name in STAGES] + [long]
    for one in jobs:
        one["settings"].append(f"features_dir={there / 'features'}")
    done = launch(jobs, there)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = [job(name, corpus, taught_folder, here, 1) for name in STAGES]
    for one in alone:
        one["settings"].append(f"features_dir={here / 'features'}")
    two_processes.run(alone)
    return SimpleNamespace(one=here, two=there, long=there / "long")


def long_run(corpus, model, out, *more, **also):
    """RL with sampling as it is, Adam, and a checkpoint after each second step."""
    settings = [*COMMON, *RL, f"manifest={corpus}", f"model={model}", f"output_dir={out}", "max_steps=4"]
    settings += [f"per_device_train_batch_size={GROUP}", "optim=adamw_torch", "learning_rate=1e-3"]
    return {"stage": "rl", "settings": [*settings, "save_strategy=steps", "save_steps=2", *more], **also}


@pytest.mark.parametrize("name", ["sft", "cold", "towers", "first"])
def test_supervised_steps_of_two_processes_are_those_of_one(both, name):
    keys = ("loss", "grad_norm", "mean_token_accuracy")
    for ours, theirs in zip(lines(both.two / name, keys), lines(both.one / name, keys), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    expected = weights(both.one / name)
    for key, value in weights(both.two / name).items():
        torch.testing.assert_close(value, expected[key], **ALIKE, msg=key)


@pytest.mark.parametrize("name", ["groups", "modes", "halves"])
def test_rl_of_two_processes_is_that_of_one_on_the_same_tokens(both, name):
    rows, advantages = batches(both.two / name)
    expected_rows, expected = batches(both.one / name)
    assert rows == expected_rows, "the same clips in the same order, and the same tokens"
    assert advantages.abs().max() > 0.1, "some answers were better than others"
    torch.testing.assert_close(advantages, expected, atol=1e-4, rtol=0)
    keys = ("loss", "grad_norm", "reward", "kl", "confidence/slow_correct", "confidence/fast_incorrect")
    keys += ("calibration/delta_correct", "calibration/spread_incorrect", "calibration/share")
    for ours, theirs in zip(lines(both.two / name, keys), lines(both.one / name, keys), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6, nan_ok=True)
    before, expected = weights(both.one / "sft"), weights(both.one / name)
    for key, value in weights(both.two / name).items():
        torch.testing.assert_close(value, expected[key], **ALIKE, msg=key)
    assert any(not torch.equal(before[key], value) for key, value in expected.items())


def test_a_group_may_lie_in_two_processes(both):
    """Of the four rollouts of the one clip of a batch each process sampled two."""
    rows, advantages = batches(both.two / "halves")
    assert [len({clip for clip, _ in batch}) for batch in rows] == [1] * len(rows)
    assert advantages.shape == (3, GROUP)


def test_clips_without_audio_or_video_block_no_process(both):
    """Three steps saw all six clips, two at a time: the silent and the unseen one beside one that has both, or so."""
    assert [len(lines(both.two / name, ["loss"])) for name in ("towers", "first")] == [4, 2]
    entries = [set(load_file(path)) for path in (both.two / "features").glob("inputs-*/*.safetensors")]
    assert len(entries) == 6
    assert [sum(name not in entry for entry in entries) for name in ("input_features", "pixel_values_videos")] == [1, 1]


def test_the_cache_is_filled_once_and_left_whole(both):
    for folder in ("one", "two"):
        cached = [path for path in (getattr(both, folder) / "features").rglob("*") if path.is_file()]
        assert len([path for path in cached if "features-" in path.parent.name]) == 6
        assert [path for path in cached if path.suffix != ".safetensors"] == []


def test_a_run_whose_process_was_killed_ends_and_resumes_to_the_same_weights(both, corpus, taught_folder, tmp_path):
    features = f"features_dir={both.two / 'features'}"
    killed = long_run(corpus, taught_folder, tmp_path / "run", features, killed=[1, 3])
    done = launch([killed], tmp_path)
    assert done.returncode != 0, "the other process must neither continue alone nor wait forever"
    assert "SIGKILL" in done.stderr or "Signal 9" in done.stderr
    assert not (tmp_path / "run" / "model").exists()
    again = long_run(corpus, taught_folder, tmp_path / "run", features, "resume_from_checkpoint=true")
    done = launch([again], tmp_path, TORCHRUN)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = weights(both.long)
    for key, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, expected[key], atol=0, rtol=0, msg=key)
    assert batches(both.long)[0][2:] == batches(tmp_path / "run")[0][-2:], "the same tokens were sampled"


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP=true", "ACCELERATE_DEEPSPEED_ZERO_STAGE=3"])
def test_towers_are_not_trained_with_their_weights_shared_out(corpus, taught_folder, tmp_path, monkeypatch, variable):
    """A process with a silent clip would not call the tower that the others wait for."""
    paths = [f"manifest={corpus}", f"model={taught_folder}", f"output_dir={tmp_path}", f"features_dir={tmp_path}"]
    recipe = read_recipe(SFTRecipe, None, [*COMMON, *paths, "train_towers=true"])
    monkeypatch.setenv(*variable.split("="))
    with pytest.raises(UserError, match="train_towers=true needs whole weights"):
        run_sft(recipe)
