r"""A long run of RL: does memory stay flat, and does a killed and resumed run end like an uninterrupted one?

Run: python perf/long_run.py --out runs/long \
       --model runs/demo/sft/model --manifest runs/demo/scenes/manifest.jsonl

Two runs with the same settings run side by side, one thread each. One is killed (SIGKILL) after `--kill-at` steps and
resumes from its last checkpoint. At the end their weights and log lines are compared bit by bit. Memory is the
process's anonymous memory (what it allocated, without mapped feature files), every ten steps. Linux only.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

SMALL = ["use_cpu=true", "bf16=false", "report_to=none", "disable_tqdm=true", "workers=0", "save_total_limit=1"]
SMALL += ["per_device_train_batch_size=8", "num_generations=4", "max_completion_length=64", "logging_steps=10"]
SMALL += ["seed=0", "learning_rate=2e-5", "format_weight=0.5", "distinct_words=true"]
EVERY = 10
TIMES = ("seconds/", "train_runtime", "train_samples_per_second", "train_steps_per_second", "step_time", "num_tokens")
"""Log entries that contain times, which differ between runs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="where RL starts")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--kill-at", type=int, default=1300)
    parser.add_argument("--save-steps", type=int, default=250)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)  # this process is one of the two runs
    parser.add_argument("--set", action="append", default=[], help="further settings of the recipe, key=value")
    args = parser.parse_args()
    if args.train:
        train(args)
        return
    whole, broken = start(args, "whole"), start(args, "broken")
    memory = args.out / "broken" / "memory.jsonl"
    while broken.poll() is None and (not memory.is_file() or last_step(memory) < args.kill_at):
        time.sleep(1)
    if broken.poll() is not None:
        sys.exit(f"the run ended before step {args.kill_at}: {args.out / 'broken.log'} says why")
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    killed = last_step(memory)
    broken = start(args, "broken")
    if whole.wait() or broken.wait():
        sys.exit(f"a run failed: see {args.out / 'whole.log'} and {args.out / 'broken.log'}")
    report(args, killed)


def start(args: argparse.Namespace, name: str) -> "subprocess.Popen[bytes]":
    args.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--train", str(args.out / name)]
    with (args.out / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def train(args: argparse.Namespace) -> None:
    """One run, or the rest of it, with a log of its memory."""
    from transformers import TrainerCallback

    from mer_r1.training.recipe_files import read_recipe
    from mer_r1.training.recipes import RLRecipe
    from mer_r1.training.rl_stage import run_rl

    class Memory(TrainerCallback):
        def on_step_end(self, recipe, state, control, **kwargs) -> None:
            if state.global_step % EVERY == 0:
                with (args.train / "memory.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": state.global_step, "mib": anonymous()}) + "\n")

    paths = [f"manifest={args.manifest}", f"model={args.model}", f"output_dir={args.train}"]
    steps = [f"max_steps={args.steps}", f"save_steps={args.save_steps}", "resume_from_checkpoint=true"]
    run_rl(read_recipe(RLRecipe, None, [*paths, *SMALL, *steps, *args.set]), callbacks=[Memory()])


def anonymous() -> float:
    """Anonymous memory of this process in MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("Anonymous:")).split()[1]) / 1024


def last_step(memory: Path) -> int:
    lines = memory.read_text(encoding="utf-8").splitlines()
    return int(json.loads(lines[-1])["step"]) if lines else 0


def report(args: argparse.Namespace, killed: int) -> None:
    from safetensors.torch import load_file

    memory = read(args.out / "whole" / "memory.jsonl")
    tenth = max(args.steps // 10 // EVERY, 2)
    parts = [memory[index : index + tenth] for index in range(0, len(memory), tenth)]
    print(f"{args.steps} steps; the other run killed after step {killed}, and resumed")
    print("anonymous memory, median MiB of each tenth of the run:")
    print("  " + " ".join(f"{statistics.median(line['mib'] for line in part):.0f}" for part in parts))
    settled = [line for line in memory if line["step"] > args.steps // 5]
    steps, sizes = [line["step"] for line in settled], [line["mib"] for line in settled]
    fit = statistics.linear_regression(steps, sizes)
    between = f"{min(sizes):.0f} to {max(sizes):.0f} MiB"
    print(f"after the first fifth: {between}, {1000 * fit.slope:+.1f} MiB per 1,000 steps")
    ours, theirs = (load_file(args.out / name / "model" / "model.safetensors") for name in ("whole", "broken"))
    differing = [key for key, value in ours.items() if not value.equal(theirs[key])]
    print(f"weights: {len(differing)} of {len(ours)} tensors differ")
    logs = [[without_times(line) for line in read(args.out / name / "log.jsonl")] for name in ("whole", "broken")]
    print(f"log: {sum(a != b for a, b in zip(*logs, strict=True))} of {len(logs[0])} lines differ")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_times(line: dict) -> dict:
    return {key: value for key, value in line.items() if not key.startswith(TIMES)}


if __name__ == "__main__":
    main()
