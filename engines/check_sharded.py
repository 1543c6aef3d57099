"""FSDP2 and DeepSpeed's ZeRO-3: two processes on this machine, through the project's own launch files.

Run in the environment of `requirements/sharded.txt`.
"""

import json
import os
import shutil
import subprocess
import sys

import torch
from report import HERE, WORK, WORLD, check, gaps, start
from safetensors.torch import load_file

from mer_r1.model.omni import load

NAME = "sharded"
OUT = WORK / "sharded"
MANIFEST = WORLD / "clips" / "manifest.jsonl"
LAUNCH = HERE.parent / "recipes" / "accelerate"
LIMIT = 900
"""Seconds after which a launch counts as hanging."""
COMMON = ["clips=null", "gradient_accumulation_steps=1", "warmup_steps=0", "model_init_kwargs={dtype: auto}"]
COMMON += ["report_to=none", "disable_tqdm=true", "workers=0", "logging_steps=1", "bf16=false"]
COMMON += ["optim=sgd", "lr_scheduler_type=constant", "learning_rate=0.05", "max_grad_norm=0", "save_strategy=no"]
"""What is not as in the recipes of docs/scale.md."""
SFT = ["max_steps=3"]
RL = ["num_generations=4", "max_completion_length=16", "max_steps=2", "per_device_train_batch_size=4", "rollouts=vllm"]
KINDS = {"fsdp2": "FSDP2", "zero3": "ZeRO-3"}


def main() -> None:
    """Run every check; the first that fails ends the script."""
    start(NAME)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    torch.set_num_threads(1)
    launch([job("sft", "one", "untied", SFT, 2), job("sft", "one-half", "thinker", [*SFT, HALF], 2)], None)
    for kind in KINDS:
        supervised(kind)
    for kind in KINDS:
        resumed(kind)
    for kind in KINDS:
        rl(kind)
    refusals()


HALF = "model_init_kwargs={dtype: bfloat16}"


def supervised(kind: str) -> None:
    """SFT in two processes is that of one; what is saved loads, in one dtype and under a thinker's names."""
    with check(NAME, f"{KINDS[kind]}, SFT of 3 steps in 2 processes against 1, untied head") as found:
        launch([job("sft", kind, "untied", SFT, 1), job("sft", f"{kind}-half", "thinker", [*SFT, HALF], 1)], kind)
        expected, saved = load(OUT / "one" / "model").model.state_dict(), load(OUT / kind / "model").model.state_dict()
        found["weights held as"] = (OUT / kind / "kinds.txt").read_text()
        found["largest difference of weights"] = max(float((saved[n] - expected[n]).abs().max()) for n in expected)
        losses = [[line["loss"] for line in logged(name)] for name in ("one", kind)]
        found["largest difference of losses"] = max(abs(a - b) for a, b in zip(*losses, strict=True))
        assert found["largest difference of weights"] < 2e-6
        before = load(WORLD / "untied").model.state_dict()
        moved = max(float((expected[name] - value).abs().max()) for name, value in before.items())
        assert moved > 1e-4, "training has changed the weights"
    with check(NAME, f"{KINDS[kind]}, the model saved from a bfloat16 checkpoint, tied head") as found:
        weights = load_file(OUT / f"{kind}-half" / "model" / "model.safetensors")
        found["dtypes"] = ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()}))
        assert found["dtypes"] == "bfloat16"
        assert weights.keys() == load_file(OUT / "one-half" / "model" / "model.safetensors").keys()
        load(OUT / f"{kind}-half" / "model")


def resumed(kind: str) -> None:
    """One process is killed; the other ends, and the same launch resumes to the weights of a run that was not."""
    with check(NAME, f"{KINDS[kind]}, one process killed after step 3 of 4, resumed from step 2") as found:
        saving = ["max_steps=4", "save_strategy=steps", "save_steps=2", "optim=adamw_torch", "learning_rate=1e-3"]
        killed = job("sft", f"{kind}-cut", "thinker", saving, 1) | {"killed": [1, 3]}
        launch([job("sft", f"{kind}-whole", "thinker", saving, 1), killed], kind, fails=True)
        assert not (OUT / f"{kind}-cut" / "model").exists()
        launch([job("sft", f"{kind}-cut", "thinker", [*saving, "resume_from_checkpoint=true"], 1)], kind)
        expected, got = (load(OUT / f"{kind}-{end}" / "model").model.state_dict() for end in ("whole", "cut"))
        found["largest difference of weights"] = max(float((got[n] - expected[n]).abs().max()) for n in expected)
        assert found["largest difference of weights"] < 1e-6


def rl(kind: str) -> None:
    """RL with weights that the processes share. The clips include one without audio and one without video.

    In the first run the completions of one process have no answer, so it reads no confidence.
    """
    runs = [("untied", "policy", "untied head, confidences by the policy, no answers in one process")]
    runs += [("thinker", who, f"tied head, confidences by the {who}") for who in ("policy", "engine")]
    with check(NAME, f"{KINDS[kind]}, three RL runs of 2 steps, weights sent in full") as found:
        jobs = []
        for number, (model, who, _) in enumerate(runs):
            settings = [*RL, f"vllm_confidences={who}", "calibration=difference"]
            jobs.append(job("rl", f"{kind}-{model}-{who}", model, settings, 1))
            jobs[-1]["wordless"] = 1 if number == 0 else None
        launch(jobs, kind)
        for model, who, told in runs:
            lines = logged(f"{kind}-{model}-{who}")
            found[f"gap of each step in nats, {told}:"] = gaps(lines)
            assert len(lines) == 2
            assert all(line["sampling/sampling_logp_difference/mean"] < 5e-3 for line in lines)
            load(OUT / f"{kind}-{model}-{who}" / "model")


def refusals() -> None:
    """What does not work says so before a clip is decoded."""
    with check(NAME, "refused in one line: LoRA, and rollouts=hf, with sharded weights") as found:
        for name, settings, told in (
            ("lora", [*RL, "lora_rank=4"], "lora_rank works without ZeRO and FSDP"),
            ("hf", [*RL, "rollouts=hf"], "rollouts=hf decodes until each GPU's own last token"),
        ):
            said = launch([job("rl", f"refused-{name}", "thinker", settings, 1)], "fsdp2", fails=True)
            assert told in said, said[-2000:]
        found["lines"] = 2


def job(stage: str, name: str, model: str, settings: list[str], rows: int) -> dict:
    """One stage; `rows` per process, unless the settings say otherwise."""
    paths = [f"manifest={MANIFEST}", f"model={WORLD / model}", f"output_dir={OUT / name}"]
    paths.append(f"features_dir={OUT / 'features'}")
    rows_of = [] if any("per_device" in one for one in settings) else [f"per_device_train_batch_size={rows}"]
    recipe = str(LAUNCH.parent / f"qwen2.5-omni-{stage}.yaml")
    return {"stage": stage, "recipe": recipe, "settings": [*COMMON, *paths, *rows_of, *settings]}


def launch(jobs: list[dict], kind: str | None, fails: bool = False) -> str:
    """Run jobs in two processes (in one without a kind); returns what they wrote to stderr."""
    (OUT / "jobs.json").write_text(json.dumps(jobs))
    words = [str(HERE / "sharded_jobs.py"), str(OUT / "jobs.json")]
    environment = {**os.environ, "ACCELERATE_TORCH_DEVICE": "cpu"}
    if kind == "zero3":
        environment |= {"DS_ACCELERATOR": "cpu"}
    if kind is not None:
        config = ["--config_file", str(LAUNCH / f"{kind}.yaml"), "--num_processes", "2", "--mixed_precision", "no"]
        words = ["-m", "accelerate.commands.accelerate_cli", "launch", *config, "--main_process_port", "0", *words]
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    (OUT / "launch.log").write_text(done.stdout + done.stderr)
    if (done.returncode != 0) != fails:
        raise RuntimeError(f"status {done.returncode}: {done.stderr[-3000:]}")
    return done.stderr


def logged(name: str) -> list[dict]:
    """Log lines of the steps of a run."""
    lines = [json.loads(line) for line in (OUT / name / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


if __name__ == "__main__":
    main()
