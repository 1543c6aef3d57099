"""CPU seconds until a command or a library is there: median and range of several starts that take turns.

    python perf/startup.py --rounds 5

"floor" is what any program pays that loads Qwen2.5-Omni with transformers (torch included); "predict" and "train" are
everything that these commands import before the first weight is read. CPU seconds grow with the load of the machine,
which is printed: compare rows of one run.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys

OMNI = "from transformers import AutoProcessor, Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration"
PREDICT = (
    "import mer_r1.evaluation.predict, mer_r1.model.features, mer_r1.model.omni, mer_r1.rl.anchors, mer_r1.rl.rollout"
)
TRAIN = "import mer_r1.training.recipe_files, mer_r1.training.rl_stage, mer_r1.training.sft_stage"
PLAN = ["plan", "--config", "qwen2.5-omni-rl", "--shape", "Qwen/Qwen2.5-Omni-7B", "--num-clips", "26000"]
STARTS = {
    "python": ["-c", ""],
    "help": ["-m", "mer_r1.cli", "--help"],
    "map": ["-m", "mer_r1.cli", "map", "happy"],
    "predict --help": ["-m", "mer_r1.cli", "predict", "--help"],
    "plan": ["-m", "mer_r1.cli", *PLAN],
    "torch": ["-c", "import torch"],
    "floor": ["-c", OMNI],
    "predict": ["-c", PREDICT],
    "train": ["-c", f"from mer_r1.data.workers import uncollected\nwith uncollected():\n    {TRAIN}"],
}


def cpu_seconds(words: list[str]) -> float:
    """CPU seconds, of user and system, of a Python that runs to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print one line per start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(STARTS), choices=list(STARTS))
    asked = parser.parse_args()
    for name in asked.only:  # files into memory
        cpu_seconds(STARTS[name])
    found = {name: [] for name in asked.only}
    for _ in range(asked.rounds):
        for name in asked.only:
            found[name].append(cpu_seconds(STARTS[name]))
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores; CPU seconds, median (range) of {asked.rounds}")
    for name, seconds in found.items():
        print(f"{name:<16}{statistics.median(seconds):6.2f} ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
