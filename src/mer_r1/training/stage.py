"""What the SFT and RL stages share: choose the clips, load the policy, fill the feature cache, train, save.

Each stage starts from a saved checkpoint, keeps its own checkpoints in ``output_dir`` and its final model in
``output_dir/model``, and resumes after a stop or a kill (``resume_from_checkpoint=true``).
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from transformers import PrinterCallback, TrainerCallback

from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.thinking import question
from mer_r1.errors import UserError
from mer_r1.model.absent_towers import drop_towers
from mer_r1.model.features import FeatureCache, Progress
from mer_r1.model.omni import Omni, load
from mer_r1.model.prompts import Prompt, encode_prompt
from mer_r1.training.recipes import DataFields

Callbacks = Sequence[TrainerCallback]

LANGUAGE_MODEL_LAYERS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""Layers that LoRA adapts: the language model's only; "all-linear" would silently adapt the towers too."""


def launched_with(plugin: str) -> bool:
    """Whether `accelerate launch` started this process with a plugin, "FSDP" or "DEEPSPEED"."""
    return os.environ.get(f"ACCELERATE_USE_{plugin}", "").lower() == "true"


def weights_are_sharded() -> bool:
    """Whether each process holds only a part of the weights (FSDP or ZeRO-3)."""
    return launched_with("FSDP") or os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"


def select_clips(recipe: DataFields) -> list[Clip]:
    """The clips of a recipe: its manifest, split and slice.

    Raises:
        UserError: if no clip is left, or the slice is invalid.
    """
    clips = read_manifest(_required(recipe.manifest, "manifest"))
    if recipe.split != "all":
        clips = [clip for clip in clips if clip.split == recipe.split]
    if recipe.clips:
        match = re.fullmatch(r"(\d*):(\d*)", recipe.clips)
        if not match:
            raise UserError(f"clips must be a slice such as 0:400, got {recipe.clips!r}")
        start, end = (int(part) if part else None for part in match.groups())
        clips = clips[start:end]
    if not clips:
        raise UserError(f"no clips: {recipe.manifest} has none with split={recipe.split}, clips={recipe.clips}")
    return clips


def features_folder(recipe: DataFields) -> Path:
    """Folder of the feature cache: the recipe's, or features/ beside the manifest."""
    return Path(recipe.features_dir or Path(_required(recipe.manifest, "manifest")).parent / "features")


def load_policy(recipe: Any) -> Omni:
    """Load the model of a recipe, trained weights in float32.

    TRL's field `model_init_kwargs` sets its dtype and attention, as it does for the KL reference.

    Raises:
        UserError: if the recipe names no model, or LoRA would run under FSDP or DeepSpeed.
    """
    chosen = recipe.model_init_kwargs or {}
    zero = launched_with("DEEPSPEED")
    if recipe.lora_rank and (zero or launched_with("FSDP")):
        raise UserError("lora_rank works without ZeRO and FSDP: launch with recipes/accelerate/one.yaml --multi_gpu")
    omni = load(
        _required(recipe.model, "model"),
        dtype=chosen.get("dtype", "auto"),
        device=str(recipe.device),
        towers=recipe.train_towers,
        attention=chosen.get("attn_implementation"),
    )
    if not recipe.lora_rank and not zero:
        omni.model.float()  # steps of 1e-6 vanish in bf16 weights; DeepSpeed keeps float32 copies itself
    return omni


def build_cache(recipe: Any, omni: Omni, clips: list[Clip], progress: Progress | None) -> FeatureCache:
    """Compute the missing features of the clips, then free the towers unless they are trained."""
    cache = FeatureCache(omni, features_folder(recipe), towers=not recipe.train_towers)
    with recipe.main_process_first():  # the other processes then find every entry
        cache.build(clips, workers=recipe.workers, progress=progress)
    if omni.source and not recipe.train_towers:
        drop_towers(omni.model, omni.source)
    return cache


def prompts(omni: Omni, cache: FeatureCache, clips: list[Clip]) -> Callable[[int], Prompt]:
    """Function from a clip's index to its prompt, encoded on first use."""

    @lru_cache(maxsize=4096)
    def prompt_of(index: int) -> Prompt:
        clip = clips[index]
        return encode_prompt(omni, question(clip.subtitle, omni.settings.question), cache.get(clip))

    return prompt_of


def lora_config(recipe: DataFields) -> LoraConfig | None:
    """LoRA on the language model, or None for full training."""
    if not recipe.lora_rank:
        return None
    return LoraConfig(r=recipe.lora_rank, lora_alpha=2 * recipe.lora_rank, target_modules=LANGUAGE_MODEL_LAYERS)


class LogFile(TrainerCallback):
    """Writes every log line to ``output_dir/log.jsonl``; a resumed run continues from its checkpoint's lines."""

    def __init__(self, output_dir: str) -> None:
        self.path = Path(output_dir) / "log.jsonl"

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Rewrite the file from the trainer's history, so that no step occurs twice."""
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(line) + "\n" for line in state.log_history), encoding="utf-8")


def train_and_save(trainer: Any, recipe: Any, omni: Omni) -> Path:
    """Train, resuming if the recipe says so, and save the model with adapters merged; returns its folder.

    Raises:
        UserError: if ``output_dir`` holds a run that the recipe does not resume.
    """
    if recipe.disable_tqdm:
        trainer.remove_callback(PrinterCallback)  # no bar and no log lines on stdout instead of it
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(recipe))
    target = Path(recipe.output_dir) / "model"
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None  # all processes take part
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        omni.model = model.merge_and_unload() if isinstance(model, PeftModel) else model
        omni.save(target, state)
    return target


def checkpoint_to_resume(recipe: Any) -> str | None:
    """Folder of the checkpoint to resume from; None starts from the beginning.

    Raises:
        UserError: if the named checkpoint is incomplete, or a run exists and the recipe does not resume it.
    """
    # trainer_state.json is written last: a folder without it was cut short by a kill.
    found = sorted(
        (path.parent for path in Path(recipe.output_dir).glob("checkpoint-*/trainer_state.json")),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    asked = recipe.resume_from_checkpoint
    if str(asked).lower() in ("true", "1", "yes"):
        return str(found[-1]) if found else None
    if asked and str(asked).lower() not in ("false", "0", "no"):
        if not (Path(asked) / "trainer_state.json").is_file():
            raise UserError(f"no complete checkpoint at {asked}: expected a folder checkpoint-N of this run")
        return str(asked)
    if found:
        raise UserError(
            f"{recipe.output_dir} holds a run up to {found[-1].name}: pass resume_from_checkpoint=true to resume it, "
            "or another output_dir"
        )
    return None


def _required(value: str | None, name: str) -> str:
    if not value:
        raise UserError(f"the recipe has no {name}: give {name}=...")
    return value
