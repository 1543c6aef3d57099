"""End-to-end demo: scenes, base, SFT, RL with MER-R1, evaluation, report.

It runs the public commands and recipes, each over two processes; finished stages are kept, so an interrupted demo
resumes. Test scenes are used for evaluation only.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from mer_r1.data.claim import check_claim
from mer_r1.data.jsonl import read_object, write_atomically
from mer_r1.data.workers import worker_pool
from mer_r1.errors import UserError

STAGES = ("scenes", "base", "sft", "rl", "evaluation")
MOST_PROCESSES = 2
"""More processes would change the order of sums, and so the results."""
POLL_SECONDS = 0.5
CONDITIONS = {"audio exchanged": "audio", "video exchanged": "video"}
Bar = Callable[[str, int | None], AbstractContextManager[Callable[..., object]]]
"""(title, total) -> a progress bar, and the callback that advances it."""


@dataclass(frozen=True)
class DemoSize:
    """Clips per split, and overrides of the recipe."""

    train: int
    val: int
    test: int
    build: tuple[str, ...]
    sft: tuple[str, ...]
    rl: tuple[str, ...]


# A base that is smaller and trained more briefly than the recipe's, and longer RL (8 prompts per step).
FULL = DemoSize(
    train=3280,
    val=20,
    test=500,
    build=(
        "clips=0:1800",
        "max_steps=780",
        "tiny=null",
        "vision_images=12000",
        "vision_steps=400",
        "audio_clips=4000",
        "audio_steps=600",
        "caption_examples=12000",
        "text_steps=300",
    ),
    sft=("clips=1800:2400",),
    rl=("clips=2400:", "max_steps=110"),
)
QUICK = DemoSize(
    train=640,
    val=20,
    test=100,
    build=(
        "clips=0:400",
        "max_steps=100",
        "tiny=null",
        "vision_images=1500",
        "vision_steps=100",
        "audio_clips=1000",
        "audio_steps=150",
        "caption_examples=4000",
        "text_steps=80",
    ),
    sft=("clips=400:540", "num_train_epochs=4", "learning_rate=7e-4"),
    rl=("clips=540:", "max_steps=12"),
)


def _no_bar(title: str, total: int | None) -> AbstractContextManager[Callable[..., object]]:
    return nullcontext(lambda *_: None)


def run_demo(out: Path, quick: bool = False, seed: int = 0, console: Console | None = None, bar: Bar = _no_bar) -> Path:
    """Run the demo (small if `quick`) in a folder, where the same size and seed resume it; returns its report's path.

    Raises:
        UserError: if the folder holds a demo of another size or seed.
    """
    size = QUICK if quick else FULL
    run = _Run(out, {"quick": quick, "seed": seed}, console or Console())
    manifest = out / "scenes" / "manifest.jsonl"
    run.stage("scenes", lambda: _write_scenes(out / "scenes", size, seed, bar))
    common = [f"manifest={manifest}", f"seed={seed}", "disable_tqdm=true", "resume_from_checkpoint=true"]
    stages = {"base": (["build", "--tiny"], size.build), "sft": (["sft"], size.sft), "rl": (["rl"], size.rl)}
    before: str | None = None
    for name, (command, changes) in stages.items():
        settings = [*common, f"output_dir={out / name}", *changes]
        if before:
            settings.append(f"model={out / before / 'model'}")
        run.stage(name, partial(_train, command, settings, out / name, bar))
        before = name
    run.stage("evaluation", lambda: _evaluate(out, manifest, seed, bar))
    return _conclude(run, manifest, seed)


class _Run:
    """The finished stages of a run folder and their seconds."""

    def __init__(self, out: Path, settings: dict[str, Any], console: Console) -> None:
        self.out, self.console = out, console
        self.file = out / "stages.json"
        out.mkdir(parents=True, exist_ok=True)
        found = read_object(self.file) if self.file.is_file() else {}
        check_claim(out, found.get("settings", settings), settings, "choose another --out")
        self.state: dict[str, Any] = {"settings": settings, "seconds": found.get("seconds", {})}

    def stage(self, name: str, function: Callable[[], Any]) -> None:
        number = f"[{STAGES.index(name) + 1}/{len(STAGES)}] {name}"
        if name in self.state["seconds"]:
            self.console.print(f"{number}: already done, {self.state['seconds'][name]:.0f} s")
            return
        began = time.perf_counter()
        function()
        self.state["seconds"][name] = round(time.perf_counter() - began, 1)
        write_atomically(self.file, json.dumps(self.state, indent=2))
        self.console.print(f"{number}: {self.state['seconds'][name]:.0f} s")


def _write_scenes(folder: Path, size: DemoSize, seed: int, bar: Bar) -> None:
    from mer_r1.lab.scenes import write_scenes

    splits = {"train": size.train, "val": size.val, "test": size.test}
    total = sum(splits.values())
    with bar("  scenes", total) as advance:
        write_scenes(folder, total, seed, splits=splits, progress=advance)


def _train(command: list[str], settings: list[str], folder: Path, bar: Bar) -> None:
    # The public command, one process per core: matrices this small gain nothing from a second thread.
    from mer_r1.training import recipe_files as config
    from mer_r1.training.recipe_info import shipped_recipes

    kind = {"build": config.BuildRecipe, "sft": config.SFTRecipe, "rl": config.RLRecipe}[command[0]]
    tiny = shipped_recipes()["tiny"]
    recipe: Any = config.read_recipe(kind, tiny, settings)
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launch += ["-m", "mer_r1.cli", *command, "--config", str(tiny), *settings]
    launch.append(f"per_device_train_batch_size={recipe.per_device_train_batch_size // processes}")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "console.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("ab") as output, bar("  steps", max(recipe.max_steps, 0) or None) as advance:
        child = subprocess.Popen(launch, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            shown = 0
            while child.poll() is None:
                time.sleep(POLL_SECONDS)
                steps = _steps(folder / "log.jsonl")
                advance(steps - shown)
                shown = steps
        finally:
            child.terminate()
            child.wait()
    if child.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        error = next((line.strip() for line in reversed(lines) if line.startswith("mer-r1: ")), "")
        raise UserError(f"{' '.join(command)} ended with status {child.returncode}; see {log}. {error}".strip())


def _steps(log: Path) -> int:
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return max((json.loads(line).get("step", 0) for line in lines[-2:] if line.endswith("}")), default=0)


def _evaluate(out: Path, manifest: Path, seed: int, bar: Bar) -> None:
    # In parallel, one thread each: matrices this small gain little from a second thread.
    wanted = [("sft", None), ("rl", None), *(("rl", channel) for channel in CONDITIONS.values())]
    with bar("  evaluated", len(wanted)) as advance, worker_pool(2) as pool:
        for job in [pool.submit(_evaluate_stage, out, manifest, seed, stage, exchange) for stage, exchange in wanted]:
            job.result()
            advance(1)


def _evaluate_stage(out: Path, manifest: Path, seed: int, stage: str, exchange: str | None) -> None:
    import torch

    from mer_r1.emotions.thinking import ThinkingMode
    from mer_r1.evaluation.predict import evaluate_model
    from mer_r1.model.generation import Sampling

    torch.set_num_threads(1)
    modes = [ThinkingMode.SLOW] if exchange else list(ThinkingMode)
    folder = out / "eval" / (f"{stage}-{exchange}-exchanged" if exchange else stage)
    sampling = Sampling(max_new_tokens=96, temperature=0.0, seed=seed)
    evaluate_model(str(out / stage / "model"), manifest, folder, modes, sampling, exchange=exchange, batch_size=64)


def _conclude(run: _Run, manifest: Path, seed: int) -> Path:
    from mer_r1.evaluation.records import commit, read_records, versions
    from mer_r1.evaluation.report import write_report
    from mer_r1.evaluation.summary import build_table, compare, write_summary

    out = run.out
    records = {name: f"eval/{name}/records.jsonl" for name in ("sft", "rl")}
    titles = {"sft": "SFT", "rl": "MER-R1"}
    page: dict[str, Any] = {
        "title": "MER-R1 on generated scenes",
        "stages": [
            {"name": name, "title": titles[name], "records": records[name], "logs": f"{name}/log.jsonl"}
            for name in records
        ],
        "manifest": str(manifest.relative_to(out)),
        "conditions": {name: f"eval/rl-{channel}-exchanged/records.jsonl" for name, channel in CONDITIONS.items()},
        "seed": seed,
        "settings": run.state["settings"],
        "seconds": run.state["seconds"],
        "versions": versions(),
        "commit": commit(),
    }
    write_atomically(out / "run.json", json.dumps(page, indent=2))
    summaries = {titles[name]: write_summary(out / "eval" / name, manifest, seed=seed) for name in records}
    after, before = (read_records(out / records[name]) for name in ("rl", "sft"))
    differences = {"MER-R1 slow - SFT slow": compare(after, before, "slow", seed=seed)}
    for name, channel in CONDITIONS.items():
        write_summary(out / "eval" / f"rl-{channel}-exchanged", manifest, seed=seed, condition=name)
        mixed = read_records(out / page["conditions"][name])
        differences[f"{name} - as it is (slow)"] = compare(mixed, after, "slow", seed=seed)
    run.console.print(build_table(summaries, differences))
    report = write_report(out)
    run.console.print(f"report: {report}")
    return report
