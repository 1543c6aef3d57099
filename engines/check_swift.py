"""ms-swift 4.6.0: three real steps of its GRPO on a whole tiny Qwen2.5-Omni, with raw video and audio.

The command is that of docs/integrations.md, smaller, and without vLLM. Run in the environment of
`requirements/swift.txt`.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

from report import HERE, WORK, WORLD, check, documented, start

NAME = "swift"
OUT = WORK / "swift"
SMALL = {"VIDEO_MAX_PIXELS": "6272", "VIDEO_MIN_PIXELS": "3136", "FPS_MAX_FRAMES": "2", "FPS_MIN_FRAMES": "2"}
CHANGED = ["--use_vllm", "false", "--torch_dtype", "float32", "--attn_impl", "eager", "--max_completion_length", "24"]
CHANGED += [
    "--gradient_accumulation_steps",
    "2",
    "--logging_steps",
    "1",
    "--save_strategy",
    "no",
    "--report_to",
    "none",
]
CHANGED += ["--dataloader_num_workers", "0", "--dataset_num_proc", "1"]
"""What is not as docs/integrations.md has it, beside the learning rate and the number of steps."""
METHOD = {"method": "mer-r1", "calibration": "difference", "alpha": 0.1}


def main() -> None:
    """Run every check; the first that fails ends the script."""
    start(NAME)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    steps("full", ["--tuner_type", "full", "--learning_rate", "1e-3"])
    steps("lora", ["--tuner_type", "lora", "--lora_rank", "8", "--lora_dropout", "0.05", "--learning_rate", "1e-2"])
    baseline()
    refusals()


def steps(name: str, tuner: list[str]) -> None:
    """Three steps: our advantages are those in its loss, and confidences are read without dropout."""
    with check(NAME, f"`swift rlhf --rlhf_type grpo`, 3 steps, {name}, mer-r1 with calibration") as found:
        lines = trained(name, METHOD, ["format", "recall", "precision"], [*tuner, "--max_steps", "3"])
        made = [line for line in lines if "advantages" in line]
        used = [value for line in lines for value in line.get("used", ())]
        computed = [value for line in made for value in line["advantages"]]
        found["batches"] = len(made)
        same = sum(any(abs(a - b) < 1e-6 for b in computed) for a in used)
        found["advantages in its loss that are ours"] = f"{same} of {len(used)}"
        terms = [value for line in made for term in line["terms"] if term for value in term]
        known = [value for value in terms if value is not None and not math.isnan(value)]
        found["answers with terms"] = f"{len(known) // 2} of {len(terms) // 2}"
        for key, name in {
            "full": "logits at the anchors, from a full forward",
            "again": "from a second reading",
        }.items():
            found[name] = max(line[key] for line in made if line[key] is not None)
        assert len(made) >= 3
        assert same == len(used)
        assert max(map(abs, used)) > 0.1
        assert known
        assert found["logits at the anchors, from a full forward"] < 1e-4
        assert found["from a second reading"] < 1e-6


def baseline() -> None:
    """A baseline of another paper has its reward here, too."""
    with check(NAME, 'one step with `{"method": "r1-omni"}`') as found:
        one = ["--tuner_type", "full", "--max_steps", "1"]
        lines = trained("r1", {"method": "r1-omni"}, ["format", "accuracy"], one)
        found["batches"] = sum("advantages" in line for line in lines)
        assert found["batches"]


def refusals() -> None:
    """What cannot work ends before the model is loaded."""
    with check(NAME, "refused before the model is loaded: hinge, a method that is none") as found:
        for method, told in (
            ({"calibration": "hinge"}, "calibration=hinge needs the starting policy"),
            ({"method": "x"}, "MER_R1_METHOD: method must be one of"),
        ):
            done = swift(method, ["format", "recall", "precision"], ["--max_steps", "1"], OUT / "refused")
            assert done.returncode != 0
            assert told in done.stderr, done.stderr[-2000:]
            assert "Loading weights" not in done.stderr
        found["lines"] = 2


def trained(name: str, method: dict, rewards: list[str], more: list[str]) -> list[dict]:
    """Lines of `swift_record.py`."""
    done = swift(method, rewards, more, OUT / name)
    (OUT / f"{name}.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return [json.loads(line) for line in (OUT / f"{name}.jsonl").read_text().splitlines()]


def swift(method: dict, rewards: list[str], more: list[str], out) -> subprocess.CompletedProcess:
    """Run `swift rlhf` as docs/integrations.md has it, but for `CHANGED`."""
    plugin = find_spec("mer_r1.integrations.ms_swift").origin
    options: dict[str, list[str]] = {}
    for word in [*documented("integrations.md", "swift rlhf"), *CHANGED, "--output_dir", str(out), *more]:
        if word.startswith("--"):
            options[word] = values = []
        else:
            values.append(word)
    options |= {"--model": [str(WORLD / "whole")], "--dataset": [str(WORLD / "swift.jsonl")]}
    del options["--vllm_mode"]  # goes with --use_vllm true
    options["--external_plugins"] = [plugin, str(HERE / "swift_record.py")]
    options["--reward_funcs"] = [f"mer_{name}" for name in rewards]
    words = [word for option, values in options.items() for word in (option, *values)]
    environment = os.environ | SMALL | {
        "MER_R1_METHOD": json.dumps(method), "RECORD": f"{out}.jsonl", "ENABLE_AUDIO_OUTPUT": "0", "USE_HF": "1",
        "CUDA_VISIBLE_DEVICES": "", "MODELSCOPE_CACHE": str(OUT / "cache"),
    }  # fmt: skip
    entry = find_spec("swift.cli.rlhf").origin
    return subprocess.run(
        [sys.executable, entry, *words], env=environment, capture_output=True, text=True, timeout=1800, check=False
    )


if __name__ == "__main__":
    main()
