"""Write a trained tiny model into the package, in half precision, with its card.

    python -m mer_r1.lab.tiny.ship runs/base/model tiny-base --card card.json

`card.json` holds what the card says: `command`, `commit`, `seed`, `corpus` and `scores` (name -> number).
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mer_r1 import weights
from mer_r1.data.jsonl import read_object, write_atomically

MAX_BYTES = 12_000_000
"""Largest file of weights in the package."""
CARD = """---
license: apache-2.0
library_name: mer-r1
pipeline_tag: video-text-to-text
tags: [emotion-recognition, generated-data]
---

# {name}

{what} It was trained on generated scenes only (`mer-r1 scenes`): no person was filmed or rated, and its answers about
people mean nothing. It exists so that the demo, the tests, the studies and the examples start from the same weights on
every machine.

| | |
|---|---|
| command | `{command}` |
| commit | `{commit}` |
| seed | {seed} |
| corpus | {corpus} |
| parameters | {parameters:,} |
| precision | float16 in the file, float32 in memory |
| licence | Apache-2.0 |

Scores on {split} scenes that it has not seen:

| | |
|---|---|
{scores}
"""
WHAT: dict[str, str] = {
    weights.BASE: "The base of the tiny policy: it describes a clip and answers directly, with broad and noisy labels; "
    "it cannot reason.",
    weights.POLICY: "The finished tiny policy: the base after SFT and reinforcement learning with MER-R1; it answers "
    "slow or fast.",
}


def ship(model: Path, name: str, card: dict[str, Any], target: Path | None = None) -> Path:
    """Write a model folder's files with half-precision weights, and the card, to `target` (by default the package).

    Raises:
        ValueError: if a weight is not finite in half precision, or the file is larger than `MAX_BYTES`.
    """
    folder = target or Path(weights.__file__).parent / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(model.iterdir()):
        if file.is_file() and file.suffix != ".safetensors" and file.name != "README.md":
            shutil.copy(file, folder / file.name)
    whole = load_file(model / "model.safetensors")
    half = {key: value.to(torch.float16) if value.is_floating_point() else value for key, value in whole.items()}
    wrong = [key for key, value in half.items() if not bool(torch.isfinite(value).all())]
    if wrong:
        raise ValueError(f"{model}: {wrong[0]} is not finite in half precision")
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    size = (folder / "model.safetensors").stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{folder}: the weights have {size} bytes, expected at most {MAX_BYTES}")
    scores = "\n".join(f"| {key} | {value} |" for key, value in card["scores"].items())
    count = sum(value.numel() for value in whole.values())
    rows = {**card, "name": name, "what": WHAT[name], "parameters": count, "scores": scores}
    write_atomically(folder / "README.md", CARD.format(**rows))
    return folder


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("name", choices=list(WHAT))
    parser.add_argument("--card", type=Path, required=True, help="what the card says (JSON)")
    given = parser.parse_args()
    ship(given.model, given.name, read_object(given.card))


if __name__ == "__main__":
    _main()
