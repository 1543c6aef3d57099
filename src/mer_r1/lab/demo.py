"""End-to-end demo: scenes, SFT and RL with MER-R1 from the shipped base, evaluation, report.

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
from mer_r1.weights import BASE

STAGES = ("scenes", "sft", "rl", "evaluation")
MOST_PROCESSES = 2
"""More processes would change the order of sums, and so the results."""
POLL_SECONDS = 0.5
CONDITIONS = {"audio exchanged": "audio", "video exchanged": "video"}
ANSWERS, TEMPERATURE, TOP_K = 4, 0.9, 50
"""Sampled answers per test clip, and how they are sampled (as in the authors' fork)."""
ORACLE_F1 = 0.80
"""Of an observer who sees every cue of a scene; `python -m mer_r1.lab.scenes.story.oracle` computes it."""
Bar = Callable[[str, int | None], AbstractContextManager[Callable[..., object]]]
"""(title, total) -> a progress bar, and the callback that advances it."""


@dataclass(frozen=True)
class DemoSize:
    """Clips per split, and overrides of the recipe."""

    train: int
    val: int
    test: int
    sft: tuple[str, ...] = ()
    rl: tuple[str, ...] = ()


FULL = DemoSize(train=1480, val=20, test=400)  # the recipe as it is
QUICK = DemoSize(
    train=220,
    val=20,
    test=60,
    sft=("clips=:140", "num_train_epochs=1"),
    rl=("clips=140:", "max_steps=6"),
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
    start = BASE
    for name, changes in {"sft": size.sft, "rl": size.rl}.items():
        settings = [*common, f"output_dir={out / name}", f"model={start}", *changes]
        run.stage(name, partial(_train, name, settings, out / name, bar))
        start = str(out / name / "model")
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


def _train(command: str, settings: list[str], folder: Path, bar: Bar) -> None:
    # The public command, one process per core: matrices this small gain nothing from a second thread.
    from mer_r1.training.recipe_files import read_recipe, recipe_class
    from mer_r1.training.recipe_info import shipped_recipes

    tiny = shipped_recipes()["tiny"]
    recipe: Any = read_recipe(recipe_class(command), tiny, settings)
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launch += ["-m", "mer_r1.cli", command, "--config", str(tiny), *settings]
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
        raise UserError(f"{command} ended with status {child.returncode}; see {log}. {error}".strip())


def _steps(log: Path) -> int:
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return max((json.loads(line).get("step", 0) for line in lines[-2:] if line.endswith("}")), default=0)


def _evaluate(out: Path, manifest: Path, seed: int, bar: Bar) -> None:
    # In parallel, one thread each: matrices this small gain little from a second thread.
    wanted = [(stage, kind) for kind in ("sampled", "greedy") for stage in ("sft", "rl")]
    wanted += [("rl", channel) for channel in CONDITIONS.values()]
    with bar("  evaluated", len(wanted)) as advance, worker_pool(2) as pool:
        for job in [pool.submit(_evaluate_stage, out, manifest, seed, stage, kind) for stage, kind in wanted]:
            job.result()
            advance(1)


def _evaluate_stage(out: Path, manifest: Path, seed: int, stage: str, kind: str) -> None:
    # kind: "sampled", "greedy", or the channel that is exchanged (greedy, slow only).
    import torch

    from mer_r1.emotions.thinking import ThinkingMode
    from mer_r1.evaluation.predict import evaluate_model
    from mer_r1.model.generation import Sampling

    torch.set_num_threads(1)
    channel = kind if kind in CONDITIONS.values() else None
    is_sampled = kind == "sampled"
    evaluate_model(
        str(out / stage / "model"),
        manifest,
        out / "eval" / _folder(stage, kind),
        [ThinkingMode.SLOW] if channel else list(ThinkingMode),
        Sampling(96, TEMPERATURE if is_sampled else 0.0, seed=seed, top_k=TOP_K if is_sampled else 0),
        exchange=channel,
        batch_size=64,
        num_answers=ANSWERS if is_sampled else 1,
    )


def _folder(stage: str, kind: str) -> str:
    return {"greedy": stage, "sampled": f"{stage}-sampled"}.get(kind, f"{stage}-{kind}-exchanged")


def _conclude(run: _Run, manifest: Path, seed: int) -> Path:
    from mer_r1.evaluation.records import RECORDS_FILE, commit, read_records, versions
    from mer_r1.evaluation.report import write_report
    from mer_r1.evaluation.summary import build_table, compare, score_card, write_summary

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
        "oracle": ORACLE_F1,
        "settings": run.state["settings"],
        "seconds": run.state["seconds"],
        "versions": versions(),
        "commit": commit(),
    }
    write_atomically(out / "run.json", json.dumps(page, indent=2))
    summaries: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for kind, note in (("sampled", ""), ("greedy", ", greedy")):
        folders = {name: out / "eval" / _folder(name, kind) for name in records}
        summaries |= {titles[name] + note: write_summary(at, manifest, seed=seed) for name, at in folders.items()}
        for name in records if kind == "sampled" else ():
            score_card(out / name / "model", summaries[titles[name]])
        before, after = (read_records(folder / RECORDS_FILE) for folder in folders.values())
        differences[f"MER-R1 slow - SFT slow{note}"] = compare(after, before, "slow", seed=seed)
    for name, channel in CONDITIONS.items():
        write_summary(out / "eval" / f"rl-{channel}-exchanged", manifest, seed=seed, condition=name)
        mixed = read_records(out / page["conditions"][name])
        differences[f"{name} - as it is (slow, greedy)"] = compare(mixed, after, "slow", seed=seed)
    run.console.print(
        f"Means of {ANSWERS} answers per clip (temperature {TEMPERATURE}, top-k {TOP_K}); greedy answers beside them."
    )
    run.console.print(build_table(summaries, differences, run.console.width))
    report = write_report(out)
    run.console.print(f"report: {report}")
    return report
