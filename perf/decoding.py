"""Cost of sampling the rollouts of an RL step, before and after a change: two source trees take turns.

Run: git worktree add ../before COMMIT
     python perf/decoding.py --manifest runs/demo/scenes/manifest.jsonl --before ../before/src

Each tree runs in a process of its own on the same clips, with the same seeds. Prints CPU seconds of decoding and of the
whole sampling, their ratios with the range over the rounds, the share of rows that would be decoded after they have
finished, and how many completions have the same tokens.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

SOURCE = Path(__file__).resolve().parents[1] / "src"
FILLER = "The lips curl up, the brows are low, the voice is bright and loud and the words complain about the day. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--before", type=Path, help="source tree to compare with; left out in the processes themselves")
    parser.add_argument("--model", default="tiny-mer-r1")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=0, help="length of the prompts; 0 is their own")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.before is None:
        work(args)
        return
    names = {"before": args.before.resolve(), "after": SOURCE}
    workers = {name: start(path) for name, path in names.items()}
    found: dict[str, list[dict]] = {"before": [], "after": []}
    for number in range(args.rounds + 1):
        for name in list(workers)[:: 1 if number % 2 else -1]:
            process = workers[name]
            print(number, file=process.stdin, flush=True)
            found[name].append(json.loads(process.stdout.readline()))
    for process in workers.values():
        process.stdin.close()
        process.wait()
    pairs = list(zip(found["before"], found["after"], strict=True))
    for part in ("decode", "all"):
        before, after = ([row[part] for row in found[name][1:]] for name in names)  # the first round warms up
        ratios = [x / y for x, y in zip(before, after, strict=True)]
        print(f"{part:<6} before {spread(before)} s, after {spread(after)} s, before / after {spread(ratios)}")
    idle = [1 - sum(map(len, row["ids"])) / (len(row["ids"]) * max(map(len, row["ids"]))) for row in found["after"]]
    same = sum(x == y for before, after in pairs for x, y in zip(before["ids"], after["ids"], strict=True))
    print(
        f"finished rows {spread(idle)}; the same tokens in {same} of {sum(len(row['ids']) for row in found['after'])}"
    )


def start(source: Path) -> subprocess.Popen:
    command = [sys.executable, __file__, *(word for word in sys.argv[1:])]
    place = command.index("--before")
    del command[place : place + 2]
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def work(args: argparse.Namespace) -> None:
    """Sample once for each seed that is read, and write the CPU seconds and the tokens as a line."""
    from mer_r1.data.manifest import read_manifest
    from mer_r1.emotions.thinking import question
    from mer_r1.evaluation.predict import encode_clip
    from mer_r1.model.generation import Sampling
    from mer_r1.model.omni import load
    from mer_r1.model.prompts import encode_prompt
    from mer_r1.rl import rollout as module

    module.time = SimpleNamespace(perf_counter=time.process_time)  # the stages in CPU seconds
    omni = load(args.model)
    prompts = []
    for clip in read_manifest(args.manifest)[: args.prompts]:
        asked, media = question(clip.subtitle, omni.settings.question), encode_clip(omni, clip)
        if args.prompt_tokens:
            missing = args.prompt_tokens - len(encode_prompt(omni, asked, media).input_ids)
            asked += omni.tokenizer.decode((omni.tokenizer(FILLER)["input_ids"] * 99)[:missing])
        prompts.append(encode_prompt(omni, asked, media))
    for line in sys.stdin:
        began = time.process_time()
        sampled = module.rollout(omni, prompts, args.group, Sampling(args.max_new_tokens, 1.0, seed=int(line)))
        taken = {"decode": sampled.seconds["decode"], "all": time.process_time() - began}
        print(json.dumps(taken | {"ids": sampled.completion_ids}), flush=True)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} (of {len(values)}: {min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
