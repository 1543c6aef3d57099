"""Time of `mer-r1 score openset`, including process start.

Twenty prediction files of 332 clips are generated from the words of the tables and scored against one gold file with
all twelve metrics (M1, M2, five wheels on two levels), in a new process each time. Prints wall and CPU time of several
runs and of a process that only prints its help, the time of each stage, and the slowest functions (under the profiler,
which slows everything down).

    PYTHONPATH=src python perf/score_speed.py                       # the built-in wheels
    PYTHONPATH=src python perf/score_speed.py --wheels DIR          # the official tables
"""

import argparse
import cProfile
import io
import json
import os
import pstats
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from mer_r1.emotions import wheels as taxonomy
from mer_r1.emotions.metrics import openset_report

FILES, CLIPS, MOST_WORDS = 20, 332, 8
BUDGET = 2.0
"""Maximum seconds of the whole command."""


def write_files(folder, words, seed=0):
    """One gold file and `FILES` prediction files: label strings of one to `MOST_WORDS` words."""
    rng = random.Random(seed)
    paths = []
    for number in range(FILES + 1):
        labels = {f"clip{i:04d}": f"[{', '.join(rng.sample(words, rng.randint(1, MOST_WORDS)))}]" for i in range(CLIPS)}
        paths.append(folder / f"file{number:02d}.json")
        paths[-1].write_text(json.dumps(labels), encoding="utf-8")
    return paths[0], paths[1:]


def timed(arguments):
    """Wall and CPU seconds of one new process."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "mer_r1.cli", *arguments], check=True, capture_output=True)
    wall, after = time.perf_counter() - start, os.times()
    return wall, (after.children_user + after.children_system) - (before.children_user + before.children_system)


def show(name, runs):
    walls, processor = ([run[place] for run in runs] for place in (0, 1))
    print(
        f"{name:<44} wall {min(walls):.2f} best, {statistics.median(walls):.2f} median; "
        f"processor {min(processor):.2f} best, {statistics.median(processor):.2f} median (s)"
    )


def stages(wheels, gold, predictions):
    """Seconds of each stage in this process, without imports."""
    marks = [("", time.perf_counter())]
    words = taxonomy.load(wheels)
    marks.append(("read the tables", time.perf_counter()))
    for wheel in words.wheels:
        for level in taxonomy.LEVELS:
            words.placed(wheel, level)
    marks.append(("place every form on every wheel", time.perf_counter()))
    golds, *others = (json.loads(path.read_text(encoding="utf-8")) for path in (gold, *predictions))
    marks.append(("read the files", time.perf_counter()))
    for predicted in others:
        openset_report(golds, predicted, words)
    marks.append((f"score {len(others)} files", time.perf_counter()))
    for (_, start), (name, end) in pairwise(marks):
        print(f"  {name:<42} {end - start:.3f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", help="folder of the official tables; default: built-in wheels")
    parser.add_argument("--runs", type=int, default=5, help="number of new processes")
    arguments = parser.parse_args()
    where = ["--wheels", arguments.wheels] if arguments.wheels else []
    with tempfile.TemporaryDirectory() as folder:
        gold, predictions = write_files(Path(folder), sorted(taxonomy.load(arguments.wheels).forms))
        command = ["score", "openset", "--gold", str(gold), *where, "--json"]
        for path in predictions:
            command += ["--pred", str(path)]
        scoring = [timed(command) for _ in range(arguments.runs)]
        show("start alone (mer-r1 score --help)", [timed(["score", "--help"]) for _ in range(arguments.runs)])
        show(f"{FILES} files of {CLIPS} clips, twelve metrics", scoring)
        best = min(wall for wall, _ in scoring)
        verdict = "under" if best < BUDGET else "OVER"
        print(f"{verdict} {BUDGET} s from the start of the process; load {os.getloadavg()[0]:.1f}")
        print("stages")
        taxonomy.builtin.cache_clear()
        stages(arguments.wheels, gold, predictions)
        profile = cProfile.Profile()
        words = taxonomy.load(arguments.wheels)
        golds, *others = (json.loads(path.read_text(encoding="utf-8")) for path in (gold, *predictions))
        profile.runcall(lambda: [openset_report(golds, predicted, words) for predicted in others])
        stream = io.StringIO()
        pstats.Stats(profile, stream=stream).sort_stats("tottime").print_stats(12)
        print(stream.getvalue())


if __name__ == "__main__":
    main()
