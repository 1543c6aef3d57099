"""The table of docs/scale.md: `mer-r1 plan` for each model, stage and number of GPUs, as Markdown.

python perf/plans.py
"""

import json

from typer.testing import CliRunner

from mer_r1.cli import app

ROWS = [
    # model, stage, GPUs, rank of LoRA, engine
    *((size, "sft", gpus, rank, "hf") for size in ("3B", "7B") for gpus, rank in ((1, 64), (1, 0), (8, 0))),
    ("7B", "sft", 16, 0, "hf"),
    *(
        (size, "rl", gpus, rank, engine)
        for size in ("3B", "7B")
        for gpus, rank, engine in ((1, 64, "hf"), (1, 0, "hf"), (8, 64, "vllm"), (8, 0, "vllm"), (16, 0, "vllm"))
    ),
]


def plan(size: str, stage: str, gpus: int, rank: int, engine: str) -> dict:
    """The plan of one row, with 32 clips (SFT) or 16 prompts (RL) a step and the share that lets vLLM start."""
    words = ["plan", "--json", "--shape", f"Qwen/Qwen2.5-Omni-{size}", "--config", f"qwen2.5-omni-{stage}"]
    words += ["--num-clips", "5000" if stage == "sft" else "26000", "--gpus", str(gpus), f"lora_rank={rank}"]
    words += [f"gradient_accumulation_steps={16 // gpus}", "clips="]
    done = CliRunner().invoke(app, [*words, *([f"rollouts={engine}"] if stage == "rl" else [])], catch_exceptions=False)
    return json.loads(done.stdout)


def main() -> None:
    """Print the table."""
    for row in ROWS:
        size, stage, gpus, rank, engine = row
        found = plan(*row)
        memory = f"{found['memory_bytes']['total'] / 1e9:.0f}"
        cells = [size, stage.upper(), str(gpus), f"LoRA {rank}" if rank else "in full"]
        cells += ["-" if gpus == 1 or rank else "ZeRO-3", {"vllm": "vLLM", "hf": "PyTorch"}[engine]]
        seconds, hours = found["step_seconds"]["total"], found["run_seconds"] / 3600
        cells[-1] = "-" if stage == "sft" else cells[-1]
        if found["fits"]:
            cells += [memory, f"{seconds:.1f}", f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"]
        else:
            cells += [f"{memory}: does not fit", "", ""]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
