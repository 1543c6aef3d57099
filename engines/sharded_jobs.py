"""Stages in one of two processes, with FSDP2 or ZeRO-3 over gloo; started by `check_sharded.py`.

accelerate shards weights only where it sees accelerators. So one function of it is replaced: gloo counts as their
backend. The rest is the project's own code, its recipes and its launch files. vLLM is the tests' stand-in, which runs
the tiny policy: its weights must be sent in full, whatever the processes hold.

    python sharded_jobs.py JOBS.json
"""

import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

from report import HERE

sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "helpers")]

from accelerate import state
from accelerate.utils import DistributedType

if "RANK" in os.environ:
    state.PartialState._prepare_backend = lambda self, cpu=False, sagemaker_dp=False, backend=None: (
        "gloo",
        DistributedType.MULTI_GPU,
    )

import torch
import transformers

torch.set_num_threads(1)
if os.environ.get("DS_ACCELERATOR"):
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # compiling it takes minutes; gloo does without
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    # All weights of a tiny model are below the size from which ZeRO-3 shards them.
    DeepSpeedZeroConfig.model_fields["param_persistence_threshold"].default = 0
    DeepSpeedZeroConfig.model_rebuild(force=True)

import fake_vllm
from transformers.integrations import deepspeed as transformers_deepspeed

from mer_r1.training.recipe_files import read_recipe
from mer_r1.training.recipes import RLRecipe, SFTRecipe
from mer_r1.training.rl_stage import run_rl
from mer_r1.training.sft_stage import run_sft

STAGES = {"sft": (SFTRecipe, run_sft), "rl": (RLRecipe, run_rl)}


class Apart(fake_vllm.OmniModel):
    """Built as vLLM builds its model: DeepSpeed shards that of transformers only."""

    def __init__(self, *given) -> None:
        held = transformers_deepspeed._hf_deepspeed_config_weak_ref
        transformers_deepspeed._hf_deepspeed_config_weak_ref = None
        try:
            super().__init__(*given)
        finally:
            transformers_deepspeed._hf_deepspeed_config_weak_ref = held


class Killed(transformers.TrainerCallback):
    """Ends a process as the kernel would, after a step."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step and args.process_index == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


class Kinds(transformers.TrainerCallback):
    """Writes down how the weights are held while training."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_step_end(self, args, state, control, model=None, **_):
        kinds = {type(p).__name__ + (" of ZeRO-3" if hasattr(p, "ds_id") else "") for p in model.parameters()}
        local = {type(p.data).__name__ for p in model.parameters()}
        if state.is_world_process_zero:
            self.file.write_text(", ".join(sorted(kinds | local - {"Tensor"})))


def main(jobs: list[dict]) -> None:
    """Run the stages one after the other."""
    fake_vllm.OmniModel = Apart
    for job in jobs:
        sys.modules["vllm"] = fake_vllm.module()
        kind, stage = STAGES[job["stage"]]
        recipe = read_recipe(kind, job["recipe"], job["settings"])
        if job.get("wordless") == int(os.environ.get("RANK", "0")):
            end = transformers.AutoTokenizer.from_pretrained(recipe.model).eos_token_id
            fake_vllm.LLM.script = [[[100, end]] * 4 for _ in range(9)]
        Path(recipe.output_dir).mkdir(parents=True, exist_ok=True)
        callbacks = [Kinds(Path(recipe.output_dir) / "kinds.txt")]
        callbacks += [Killed(*job["killed"])] if "killed" in job else []
        stage(recipe, callbacks=callbacks)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
