"""Runs a list of stages, in this process alone or as one of several: what `test_processes.py` starts twice.

    torchrun --standalone --nproc_per_node 2 tests/helpers/two_processes.py jobs.json

A job says which stage, its settings, and whether its sampling is *seeded by row*: the random number of a token is then
a function of step, clip, place in the group and place in the completion, so that a row is sampled the same in whichever
process it lies. Every RL batch is written down, rows of all processes in order.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from mer_r1.model import generation
from mer_r1.model.shared_prefix.continuation import Branches
from mer_r1.rl.trainer import MERR1Trainer
from mer_r1.training import rl_stage
from mer_r1.training.recipe_files import read_recipe
from mer_r1.training.recipes import RLRecipe, SFTRecipe
from mer_r1.training.sft_stage import run_sft

STAGES = {"sft": (SFTRecipe, run_sft), "rl": (RLRecipe, rl_stage.run_rl)}


class Recording(MERR1Trainer):
    """Writes every scored batch to ``output_dir/batches.jsonl``; seeds the rows if the job asks for it."""

    seeded = False

    def _sample(self, prompts, other):
        if not self.seeded:
            return super()._sample(prompts, other)
        first = self.accelerator.process_index * len(self.step.clips)
        places = [(first + row) % self.num_generations for row in range(len(self.step.clips))]
        names = [
            f"{self.state.global_step} {clip} {place}" for clip, place in zip(self.step.clips, places, strict=True)
        ]
        token = iter(range(1000))

        def pick(probabilities, _):
            number = next(token)
            digests = [hashlib.blake2b(f"{name} {number}".encode(), digest_size=4).digest() for name in names]
            heights = torch.tensor([int.from_bytes(digest, "big") / 2**32 for digest in digests]).double()
            return torch.searchsorted(probabilities.double().cumsum(1), heights[:, None]).squeeze(1)

        drawn, generation.pick = generation.pick, pick
        left, Branches.leave = Branches.leave, lambda *_: None  # the heights are for all rows
        try:
            return super()._sample(prompts, other)
        finally:
            generation.pick, Branches.leave = drawn, left

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        rows = list(zip(self.step.clips, self.step.rollouts.completion_ids, output["advantages"].tolist(), strict=True))
        rows = gather_object(rows)
        if self.accelerator.is_main_process:
            with open(Path(self.args.output_dir) / "batches.jsonl", "a") as file:
                file.write(json.dumps({"step": self.state.global_step, "rows": rows}) + "\n")
        return output


class Killed(TrainerCallback):
    """Ends one process as the kernel would, at the end of a step."""

    def __init__(self, rank, step):
        self.rank, self.step = rank, step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and args.process_index == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


def run(jobs):
    torch.set_num_threads(1)
    original = rl_stage.MERR1Trainer
    try:
        for job in jobs:
            rl_stage.MERR1Trainer = type("Recording", (Recording,), {"seeded": job.get("seeded", False)})
            kind, stage = STAGES[job["stage"]]
            recipe = read_recipe(kind, None, job["settings"])
            Path(recipe.output_dir).mkdir(parents=True, exist_ok=True)
            stage(recipe, callbacks=[Killed(*job["killed"])] if "killed" in job else [])
    finally:
        rl_stage.MERR1Trainer = original


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()))
