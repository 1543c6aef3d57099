"""What the SFT and RL stages share: choose the clips, load the policy, fill the feature cache, train, save.

Each stage starts from a saved checkpoint, keeps its own checkpoints in ``output_dir`` and its final model in
``output_dir/model``, and resumes after a stop or a kill (``resume_from_checkpoint=true``).
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from mer_r1.data.claim import differences, digest, weights_digest
from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import write_atomically
from mer_r1.data.media.container import ClipLimits
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError, printable
from mer_r1.model.absent_towers import drop_towers
from mer_r1.model.checkpoints import CARD_FILE, UNFINISHED, checkpoints, damage, read_record, write_record
from mer_r1.model.features import FeatureCache, Progress, content_of
from mer_r1.model.omni import Omni, load
from mer_r1.model.prompts import Prompt, encode_prompt, num_tokens
from mer_r1.training.recipe_files import required, stage_of
from mer_r1.training.recipe_info import recipe_fields
from mer_r1.training.recipes import DataFields
from mer_r1.weights import model_path
from mer_r1.weights.card import metadata, model_card

logger = logging.getLogger(__name__)
for _name in ("grpo_trainer", "sft_trainer"):  # TRL's warning is untrue: `load_policy` reads the field
    logging.getLogger(f"trl.trainer.{_name}").addFilter(
        lambda record: "`model_init_kwargs` will be ignored" not in record.getMessage()
    )

Callbacks = Sequence[TrainerCallback]

LANGUAGE_MODEL_LAYERS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""Layers that LoRA adapts: the language model's only; "all-linear" would silently adapt the towers too."""

ANY_VALUE = re.compile(
    r"(activation_|dataloader_(?!drop_last)|ddp_|do_|eval_|gradient_checkpointing|hub_|log_|logging_|save_|trackio_"
    r"|vllm_(enable|gpu|group|server|tensor)).*|.*(_eval|eval_batch_size)"
    r"|output_dir|model|manifest|split|clips|features_dir|wheels|task|workers|resume_from_checkpoint|report_to"
    r"|disable_tqdm|meaning_model|run_name|project|push_to_hub|local_rank|debug|use_cpu|deepspeed|fsdp|fsdp_config"
    r"|parallelism_config"
    r"|num_completions_to_print|torch_empty_cache_steps|skip_memory_metrics|enable_jit_checkpoint"
)
"""Fields of a recipe that may differ when a run resumes: they do not decide its content, or `identity` reads it."""
CARD_FIELDS = {"learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "warmup_steps", "seed"}
CARD_FIELDS |= {"gradient_accumulation_steps", "temperature", "beta", "num_generations", "max_completion_length"}
"""TRL's fields that a model's card names, beside those of this project."""
NOT_IN_CARD = {"model", "manifest", "features_dir", "wheels", "workers", "split", "clips", "report_to", "output_dir"}
NOT_IN_CARD |= {"logging_steps", "remove_unused_columns", "disable_tqdm", "resume_from_checkpoint", "save_strategy"}
NOT_IN_CARD |= {"task"}
SAMPLE = 16
"""Clips whose tokens are counted when a stage starts."""
RESUMED = ("checkpoint-*", "towers*", "untrained", "visual.*", "audio_tower.*", "language_model.*")
"""What a run takes up again in its output folder."""


def launched_with(plugin: str) -> bool:
    """Whether `accelerate launch` started this process with a plugin, "FSDP" or "DEEPSPEED"."""
    return os.environ.get(f"ACCELERATE_USE_{plugin}", "").lower() == "true"


def weights_are_sharded() -> bool:
    """Whether each process holds only a part of the weights (FSDP or ZeRO-3)."""
    return launched_with("FSDP") or os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"


def features_folder(recipe: DataFields) -> Path:
    """Folder of the feature cache: the recipe's, or features/ beside the manifest."""
    return Path(recipe.features_dir or Path(required(recipe.manifest, "manifest")).parent / "features")


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
        required(recipe.model, "model"),
        dtype=chosen.get("dtype", "auto"),
        device=str(recipe.device),
        towers=recipe.train_towers,
        attention=chosen.get("attn_implementation"),
        limits=ClipLimits.given(recipe),
    )
    if launched_with("FSDP"):  # of either family, unless the launch file names the layers
        layers = omni.model.model.language_model.layers
        os.environ.setdefault("FSDP_TRANSFORMER_CLS_TO_WRAP", type(layers[0]).__name__)
    if zero:
        _hold_shape_for_gradient(omni.model.get_output_embeddings().weight)
    elif not recipe.lora_rank:
        omni.model.float()  # steps of 1e-6 vanish in bf16 weights; DeepSpeed keeps float32 copies itself
    return omni


def _hold_shape_for_gradient(weight: Any) -> None:
    """Give a weight that ZeRO-3 has freed its shape, without memory, while its gradient is taken.

    TRL's losses read the head's weight past its module and free it before autograd keeps the gradient, which then does
    not fit: "The size of tensor a (0) must match ..." (a head tied to the embeddings is not freed).
    """
    freed: list[Tensor] = []

    def before(gradient: Tensor) -> None:
        if weight.shape != gradient.shape:
            freed.append(weight.data)
            weight.data = weight.data.new_empty(1).expand(gradient.shape)

    def after(_: Tensor) -> None:
        if freed:
            weight.data = freed.pop()

    weight.register_hook(before)
    weight.register_post_accumulate_grad_hook(after)


def build_cache(recipe: Any, omni: Omni, clips: list[Clip], progress: Progress | None) -> FeatureCache:
    """Compute the missing features of the clips, then free the towers unless they are trained."""
    cache = FeatureCache(omni, features_folder(recipe), towers=not recipe.train_towers)
    with recipe.main_process_first():  # the other processes then find every entry
        cache.build(clips, workers=recipe.workers, progress=progress)
    if recipe.should_log:
        logger.info("%s", prompt_lengths(omni, cache, clips))
    if omni.source and not recipe.train_towers:
        drop_towers(omni.model, omni.source)
    return cache


def prompt_lengths(omni: Omni, cache: FeatureCache, clips: Sequence[Clip]) -> str:
    """How much of each clip the model is given, and the tokens that this makes in `SAMPLE` clips of equal distance."""
    counts = [num_tokens(omni, cache.get(clip)) for clip in clips[:: max(1, len(clips) // SAMPLE)][:SAMPLE]]
    settings, sums = omni.settings, [sum(count.values()) for count in counts]
    bounds = omni.processor.video_processor.size["longest_edge"], settings.limits().max_side ** 2, settings.max_pixels
    means = (f"{sum(count[channel] for count in counts) / len(counts):.0f} {channel}" for channel in ("video", "audio"))
    return (
        f"of each clip {settings.num_frames} frames of at most {min(bound for bound in bounds if bound)} pixels and "
        f"{settings.max_seconds:g} s: {' and '.join(means)} tokens on average, at most {max(sums)} together "
        f"({len(counts)} clips; num_frames, max_pixels and max_seconds bound them)"
    )


def prompts(omni: Omni, cache: FeatureCache, clips: list[Clip]) -> Callable[[int], Prompt]:
    """Function from a clip's index to its prompt, encoded on first use."""

    @lru_cache(maxsize=4096)
    def prompt_of(index: int) -> Prompt:
        clip = clips[index]
        return encode_prompt(omni, omni.settings.asked(clip.subtitle), cache.get(clip))

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
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in state.log_history))


def train_and_save(trainer: Any, recipe: Any, omni: Omni) -> Path:
    """Train, resuming if the recipe says so, and save the model with adapters merged; returns its folder.

    Raises:
        UserError: as `checkpoint_to_resume`.
    """
    trainer.card = card_of(recipe)
    if recipe.disable_tqdm:
        trainer.remove_callback(PrinterCallback)  # no bar and no log lines on stdout instead of it
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(recipe))
    target = Path(recipe.output_dir) / "model"
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None  # all processes take part
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        omni.model = model.merge_and_unload() if isinstance(model, PeftModel) else model
        beside = target.with_name(UNFINISHED)
        shutil.rmtree(beside, ignore_errors=True)
        omni.save(beside, state)
        write_atomically(beside / CARD_FILE, trainer.card)
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
    return target


def card_of(recipe: Any) -> str:
    """The card of the model that a recipe trains; paths of this machine are not part of it."""
    stage = stage_of(type(recipe))
    start = str(recipe.model or "a freshly initialised one")
    before = Path(model_path(start)) / CARD_FILE
    if before.is_file():
        inherited = metadata(before.read_text(encoding="utf-8", errors="replace"))
    else:
        inherited = {} if Path(start).exists() or "/" not in start else {"base_model": start}
    shown = {field.name for field in recipe_fields(stage)} | CARD_FIELDS
    given = {name: getattr(recipe, name, None) for name in sorted(shown - NOT_IN_CARD)}
    settings = {name: value for name, value in given.items() if value not in (None, False, "", [], {})}
    data = f"{Path(recipe.manifest or '').name}, split {recipe.split}, clips {recipe.clips or 'all'}"
    title = f"{Path(str(recipe.output_dir)).name} ({stage})"
    start = Path(start).name if Path(start).exists() else start
    return model_card(title, stage, start, data, settings, inherited)


def claim_run(recipe: Any, clips: list[Clip], taxonomy: Taxonomy | None = None) -> None:
    """Claim the output folder for a run, by all that decides the run's content; called before anything is reused.

    Raises:
        UserError: the folder holds checkpoints, or other parts to resume from, of another run.
    """
    out = Path(recipe.output_dir)
    with recipe.main_process_first():  # the other processes then find the digests of all files
        run = identity(recipe, clips, taxonomy)
    before = read_record(out).get("run")
    if before is None or (differing := differences(before, run)):
        for part in (path for pattern in RESUMED for path in out.glob(pattern)):
            which = "a run without a record" if before is None else f"another run ({differing})"
            raise UserError(f"{printable(out)} holds {printable(part.name)} of {which}: choose another output_dir")
        if recipe.should_save:
            write_record(out, run=run)


def identity(recipe: Any, clips: list[Clip], taxonomy: Taxonomy | None = None) -> dict[str, Any]:
    """What decides the content of a run: stage, starting model, clips, wheels, settings; paths count by content."""
    names = (item.name for item in fields(recipe) if item.init and not ANY_VALUE.fullmatch(item.name))
    rows = [asdict(clip) | {"video": None, "audio": None, "media": content_of(clip)} for clip in clips]
    for row in rows:
        row.pop("section")  # manifests have none
    run = {
        "stage": stage_of(type(recipe)),
        "starting model": weights_digest(recipe.model) if recipe.model else None,
        "clips": digest(json.dumps(rows)),
        "wheels": taxonomy and digest(f"{taxonomy!r}{taxonomy.meaning or ''}"),
        "task": digest(Path(recipe.task).read_bytes()) if getattr(recipe, "task", None) else None,
        "processes": recipe.world_size,
        **{name: getattr(recipe, name) for name in names},
    }
    return dict(json.loads(json.dumps(run, default=str)))


def checkpoint_to_resume(recipe: Any) -> str | None:
    """Folder of the checkpoint to resume from, the newest whole one; None starts from the beginning.

    Raises:
        UserError: if the named checkpoint is not whole, a checkpoint is another run's or lacks files, or a run exists
            and the recipe does not resume it.
    """
    out, asked = Path(recipe.output_dir), recipe.resume_from_checkpoint
    found, word = checkpoints(out), str(asked or "no").lower()
    if word in ("false", "0", "no"):
        if found:
            raise UserError(
                f"{out} holds a run up to {found[-1].name}: pass resume_from_checkpoint=true to resume it, or another "
                "output_dir"
            )
        return None
    named = word not in ("true", "1", "yes")
    if named and not Path(asked).is_dir():
        raise UserError(f"no complete checkpoint at {asked}: expected a folder checkpoint-N of this run")
    run = read_record(out).get("run", {})
    for folder in [Path(asked)] if named else found[::-1]:
        if not (problem := damage(folder, run)):
            return str(folder)
        if named:
            raise UserError(f"no complete checkpoint at {asked}: {problem}")
        logger.warning("%s is skipped: %s", folder, problem)
    return None
