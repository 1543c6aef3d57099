"""The runs of docs/beyond.md: a made data set of texts, a cold start per seed, RL by three methods, and their table.

    python perf/set_tasks.py allergens --out runs/allergens --seeds 0 1 2
    python perf/set_tasks.py scenes --out runs/told --seeds 0 1 2

Runs the commands of `mer-r1` one after another, prints each, and takes up an interrupted one where it stopped.
`key=value` after the options goes to every training stage (`max_steps=2` to try). `--table` only prints the table.

A score of the table is a mean over test rows of the mean over seeds; its interval is a bootstrap over rows. Differences
are paired by row and seed. With few seeds the intervals say little about other seeds: the range over seeds stands
beside them.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from mer_r1.evaluation.intervals import bootstrap, interval_text
from mer_r1.evaluation.records import RECORDS_FILE, read_records, rescore, taxonomy_in

METHODS = ("f1", "ad", "mer-r1")
STAGES = ("sft", *METHODS)
SCORES = ("precision", "recall", "f1")
Values = dict[str, list[float]]
"""Test row -> its numbers, one per seed."""


def mer(*words: object) -> None:
    """Run a command of `mer-r1`; its output is this script's."""
    line = [str(word) for word in words]
    print("$ mer-r1", shlex.join(line), flush=True)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mer_r1.cli", *line], check=True)
    print(f"  {time.perf_counter() - began:.0f} s", flush=True)


def run(name: str, out: Path, seeds: Sequence[int], rows: int, settings: Sequence[str], diagnosed: int) -> None:
    """Everything that is not there yet."""
    manifest, base = out / "manifest.jsonl", out / "smollm2"
    if not manifest.exists():
        mer("texts", name, "--out", out, "--num-rows", rows)
    if not (base / "config.json").exists():
        mer("build", "--text", "smollm2", "--out", base)
    how = ["--config", "texts", f"manifest={manifest}", "resume_from_checkpoint=true", "disable_tqdm=true", *settings]
    for seed in seeds:
        folder = out / f"seed{seed}"
        for stage in STAGES:
            if not (folder / stage / "model").exists():
                start = base if stage == "sft" else folder / "sft" / "model"
                own = [f"task={out / 'task.json'}"] if stage == "sft" else [f"method={stage}"]
                command = "sft" if stage == "sft" else "rl"
                mer(command, *how, *own, f"model={start}", f"output_dir={folder / stage}", f"seed={seed}")
            model = ["--model", folder / stage / "model", "--manifest", manifest, "--max-new-tokens", 64]
            mer("evaluate", *model, "--out", folder / stage / "eval", "--json")
            report = folder / stage / "diagnosis.json"
            if diagnosed and stage in ("sft", "mer-r1") and not report.exists():
                drawn = ["--num-clips", diagnosed, "--num-generations", 6, "--num-answers", 6, "--split", "test"]
                mer("diagnose", *model, *drawn, "--config", "texts", "--out", report)


def values(out: Path, seeds: Sequence[int], stage: str, mode: str, score: str) -> Values:
    """A score of every test row in one mode, over the seeds that are there."""
    found: Values = {}
    for seed in seeds:
        folder = out / f"seed{seed}" / stage / "eval"
        records = read_records(folder / RECORDS_FILE) if (folder / RECORDS_FILE).exists() else []
        for record in rescore(records, taxonomy_in(folder)):
            if record.mode == mode and record.scores is not None:
                one = float(record.well_formed) if score == "well_formed" else record.scores[score]
                found.setdefault(record.id, []).append(one)
    return found


def cell(found: Values, other: Values | None = None) -> str:
    """Mean, interval over rows and, of several seeds, the range over seeds; less another score if it is given."""
    rows = [found[row] if other is None else differences(found[row], other[row]) for row in sorted(found)]
    seeds = [fmean(column) for column in zip(*rows, strict=True)]
    text = interval_text(bootstrap(map(fmean, rows)), signed=other is not None)
    return text + (f" ({min(seeds):.3f} to {max(seeds):.3f})" if len(seeds) > 1 else "")


def differences(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """One less the other, seed by seed."""
    return [a - b for a, b in zip(one, other, strict=True)]


def table(out: Path, seeds: Sequence[int]) -> None:
    """Print the scores and the differences as Markdown."""
    print("| | thinking | precision | recall | F1 | well formed |\n|---|---|---:|---:|---:|---:|")
    f1 = {(stage, mode): values(out, seeds, stage, mode, "f1") for stage in STAGES for mode in ("slow", "fast")}
    there = [key for key, found in f1.items() if found]
    for stage, mode in there:
        cells = [cell(values(out, seeds, stage, mode, score)) for score in (*SCORES, "well_formed")]
        print(f"| {stage} | {mode} | {' | '.join(cells)} |")
    print("\n| difference of F1 | slow | fast |\n|---|---:|---:|")
    for one, other in (("f1", "sft"), ("ad", "f1"), ("mer-r1", "ad"), ("mer-r1", "f1")):
        if {(one, "slow"), (other, "slow"), (one, "fast"), (other, "fast")} <= {*there}:
            cells = [cell(f1[one, mode], f1[other, mode]) for mode in ("slow", "fast")]
            print(f"| {one} - {other} | {' | '.join(cells)} |")
    for stage in STAGES:
        if {(stage, "slow"), (stage, "fast")} <= {*there}:
            print(f"| {stage}, slow - fast | {cell(f1[stage, 'slow'], f1[stage, 'fast'])} | |")
    for seed in seeds:
        for report in sorted((out / f"seed{seed}").glob("*/diagnosis.json")):
            found = json.loads(report.read_text(encoding="utf-8"))
            cost = {name: interval_text(found["exchange"][name]) for name in ("own", "other", "difference")}
            print(f"\nseed {seed}, {report.parent.name}: F1 after its own reasoning {cost['own']}, after another row's "
                  f"{cost['other']}, difference {cost['difference']}. {found['verdict']}")  # fmt: skip


def main() -> None:
    """Read the options, run, print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("name", choices=("allergens", "scenes"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--diagnosed", type=int, default=30, help="test rows to diagnose before and after; 0 for none")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("settings", nargs="*")
    given = parser.parse_intermixed_args()
    if not given.table:
        run(given.name, given.out, given.seeds, given.rows, given.settings, given.diagnosed)
    table(given.out, given.seeds)


if __name__ == "__main__":
    main()
