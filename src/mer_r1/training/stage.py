"""The paper's two stages: SFT cold start and RL. Load, train, save, nothing clever. `build` has the tiny policy's base.

Each stage starts from a saved checkpoint, leaves its own checkpoints in ``output_dir`` and its final model in
``output_dir/model``, and can be stopped, killed and resumed (``resume_from_checkpoint=true``).
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PrinterCallback, TrainerCallback

from mer_r1.data.manifest import Clip, read_manifest
from mer_r1.emotions import wheels
from mer_r1.emotions.thinking import describe_question, format_completion, question, remark_question
from mer_r1.emotions.two_answers import ONCE, TWICE, format_twice
from mer_r1.errors import UserError
from mer_r1.model.absent_towers import drop_towers, made_like
from mer_r1.model.families import family_of
from mer_r1.model.features import FeatureCache, Progress
from mer_r1.model.omni import SETTINGS_FILE, Omni, load
from mer_r1.model.prompts import Prompt, collate, encode_prompt, placeholder_ids
from mer_r1.model.shared_prefix.packing import Row, group_rows, pack
from mer_r1.rl.rewards import gold_earns_full_reward
from mer_r1.rl.trainer import MERR1Trainer
from mer_r1.rl.vllm.engine import required
from mer_r1.training.recipe_files import DataFields, RLRecipe, SFTRecipe
from mer_r1.training.sft_trainer import MERSFTTrainer

logger = logging.getLogger(__name__)

Callbacks = Sequence[TrainerCallback]

NO_CLIP = -1
"""The clip index of a row without a clip."""
LANGUAGE_MODEL_LAYERS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""LoRA goes to the language model only; "all-linear" would silently adapt the towers too."""


def run_sft(recipe: SFTRecipe, progress: Progress | None = None, callbacks: Callbacks = ()) -> Path:
    """Cold start: the model learns the slow format from reasoning texts; returns the folder of the model."""
    clips = select_clips(recipe)
    omni = _policy(recipe)
    omni.settings = replace(omni.settings, form="twice" if recipe.targets == "twice" else "once")
    return supervise(recipe, omni, clips, progress, callbacks)


def run_rl(recipe: RLRecipe, progress: Progress | None = None, callbacks: Callbacks = ()) -> Path:
    """Reinforcement learning from labels only; returns the folder of the model.

    Raises:
        UserError: for rows without gold labels, or whose gold answer would not earn full reward.
    """
    clips = select_clips(recipe)
    taxonomy = wheels.load(recipe.wheels)
    _check_gold(clips, taxonomy)
    if recipe.rollouts == "vllm":
        required("rollouts=vllm")  # said now, not after the clips are decoded
    if recipe.train_towers:
        raise UserError("train_towers=true: RL keeps the towers frozen, so that each clip is encoded once")
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") if _launched_with("DEEPSPEED") else None
    if recipe.rollouts == "hf" and (stage == "3" or _launched_with("FSDP")):
        raise UserError(
            "rollouts=hf decodes until each GPU's own last token, and GPUs that share weights would wait for each "
            "other forever: say rollouts=vllm, or launch with --zero_stage 2, or with "
            "recipes/accelerate/one.yaml --multi_gpu"
        )
    omni = _policy(recipe)
    _check_form(recipe, omni)
    if recipe.rollouts == "vllm" and not (family := family_of(omni.model)).engine:
        raise UserError(f"rollouts=vllm: weights of {family.name} are not handed on to vLLM yet; say rollouts=hf")
    omni.freeze_towers()
    cache = _cache(recipe, omni, clips, progress)
    rows = [
        {
            "prompt": [{"role": "user", "content": question(clip.subtitle, omni.settings.question)}],
            "labels": list(clip.labels or ()),
            "clip_index": index,
        }
        for index, clip in enumerate(clips)
    ]
    with made_like(omni.model):  # the reference too does without towers
        trainer = MERR1Trainer(
            omni,
            rows,
            prompts(omni, cache, clips),
            recipe.method_choices(),
            taxonomy,
            recipe,
            peft_config=_lora(recipe),
            callbacks=[LogFile(recipe.output_dir), *callbacks],
        )
    if recipe.rollouts == "vllm":
        from mer_r1.rl.vllm.rollouts import use_vllm

        use_vllm(trainer, clips, recipe.vllm_confidences)
    return _run(trainer, recipe, omni)


def _launched_with(plugin: str) -> bool:
    return (
        os.environ.get(f"ACCELERATE_USE_{plugin}", "").lower() == "true"
    )  # as `accelerate launch` tells its processes


def select_clips(recipe: DataFields) -> list[Clip]:
    """The clips a recipe asks for: manifest, split, slice.

    Raises:
        UserError: if nothing is left, or the slice cannot be read.
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


def prompts(omni: Omni, cache: FeatureCache, clips: list[Clip]) -> Callable[[int], Prompt]:
    """The prompt of each clip by its index, made on first use and remembered."""

    @lru_cache(maxsize=4096)
    def prompt_of(index: int) -> Prompt:
        clip = clips[index]
        return encode_prompt(omni, question(clip.subtitle, omni.settings.question), cache.get(clip))

    return prompt_of


def examples(clips: Iterable[Clip], omni: Omni, targets: str) -> list[dict[str, Any]]:
    """Rows for supervised stages: which clip, what is asked, what is to be said.

    Raises:
        UserError: for an unknown kind of target, or a clip without the texts it needs.
    """
    rows = []
    for index, clip in enumerate(clips):
        if targets in ("slow", "twice"):
            labels = clip.meta.get("careful_labels") or clip.labels
            if not clip.reasoning or not labels:
                raise UserError(f"clip {clip.id}: SFT needs a reasoning text and labels")
            target = format_completion(clip.reasoning, labels)
            if targets == "twice":  # the same words before the reasoning and after it
                target = format_twice(labels, clip.reasoning, labels)
            rows.append(
                {"clip_index": index, "asked": question(clip.subtitle, omni.settings.question), "target": target}
            )
        elif targets == "base":
            missing = sorted({"description", "remark", "broad_labels"} - clip.meta.keys())
            if missing:
                raise UserError(f"clip {clip.id}: the base stage needs meta.{missing[0]}")
            said = {
                describe_question(clip.subtitle): clip.meta["description"],
                remark_question(clip.subtitle): clip.meta["remark"],
                # Behind an empty think, as models that can do both answer directly: what fast thinking triggers.
                question(clip.subtitle, omni.settings.question): format_completion("", clip.meta["broad_labels"]),
            }
            rows += [{"clip_index": index, "asked": asked, "target": target} for asked, target in said.items()]
        else:
            raise UserError(f"targets must be slow, twice or base, got {targets!r}")
    return rows


def features_folder(recipe: DataFields) -> Path:
    """Where the feature cache of a recipe lies: beside the manifest, if it does not say otherwise."""
    return Path(recipe.features_dir or Path(_required(recipe.manifest, "manifest")).parent / "features")


class LogFile(TrainerCallback):
    """Writes every log line to ``output_dir/log.jsonl``; a resumed run goes on where its checkpoint stood."""

    def __init__(self, output_dir: str) -> None:
        self.path = Path(output_dir) / "log.jsonl"

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Rewrite the file from the trainer's own history, so that it never holds a step twice."""
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(line) + "\n" for line in state.log_history), encoding="utf-8")


def supervise(
    recipe: SFTRecipe,
    omni: Omni,
    clips: list[Clip],
    progress: Progress | None = None,
    callbacks: Callbacks = (),
    more_rows: Sequence[dict[str, Any]] = (),
    optimizer: torch.optim.Optimizer | None = None,
    language: bool = True,
) -> Path:
    """Train a model on what is to be said about clips; returns the folder of the model.

    Args:
        recipe: of the stage.
        omni: the model; its towers are frozen unless the recipe trains them.
        clips: with the texts that the recipe's targets need.
        progress: told of clips decoded and encoded.
        callbacks: of the trainer.
        more_rows: as those of `examples`; `NO_CLIP` as clip index where there is none.
        optimizer: instead of the recipe's `optim`.
        language: False freezes the language model.
    """
    if recipe.train_towers and (_launched_with("FSDP") or os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"):
        raise UserError(
            "train_towers=true needs whole weights in each process, since not every batch has sound and picture: "
            "launch without FSDP, and with --zero_stage 2 at most"
        )
    if recipe.towers_first_steps:
        if optimizer is not None:  # it holds the weights of a model that this stage replaces
            raise UserError("towers_first_steps and muon_learning_rate do not go together: set one of them to 0")
        omni = _towers_first(recipe, omni, clips, progress, callbacks, more_rows)
    omni.freeze_towers(not recipe.train_towers)
    for part in (omni.model.model.language_model, omni.model.get_output_embeddings()):
        part.requires_grad_(language)
    cache = _cache(recipe, omni, clips, progress)
    recipe.dataset_kwargs = {**(recipe.dataset_kwargs or {}), "skip_prepare_dataset": True}

    @lru_cache(maxsize=4096)
    def media_of(index: int) -> dict[str, Any]:
        return cache.get(clips[index])

    @lru_cache(maxsize=8192)
    def prompt_of(index: int, asked: str) -> Prompt:
        return encode_prompt(omni, asked, {} if index == NO_CLIP else media_of(index))

    def ready(row: dict[str, Any]) -> Row:
        target = [*omni.tokenizer(row["target"])["input_ids"], omni.tokenizer.eos_token_id]
        return prompt_of(row["clip_index"], row["asked"]), target

    def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
        if recipe.shared_prefixes:
            groups = [[ready(row) for row in item["rows"]] for item in rows]
            return pack(groups, omni.tokenizer.pad_token_id, placeholder_ids(omni.model))
        found, targets = zip(*(ready(row) for row in rows), strict=True)
        return collate(found, targets, omni.tokenizer.pad_token_id)

    rows = [*examples(clips, omni, recipe.targets), *more_rows]
    if recipe.shared_prefixes:
        texts = omni.tokenizer([row["asked"] + row["target"] for row in rows])["input_ids"]
        of_clip = len(prompt_of(0, "").input_ids)
        rows = [{"rows": group} for group in group_rows(rows, [len(ids) for ids in texts], of_clip, NO_CLIP)]
    trainer = MERSFTTrainer(
        omni,
        optimizers=(optimizer, None),
        model=omni.model,
        args=recipe,
        train_dataset=Dataset.from_list(rows),
        data_collator=batch,
        peft_config=_lora(recipe),
        callbacks=[LogFile(recipe.output_dir), *callbacks],
    )
    return _run(trainer, recipe, omni)


def _run(trainer: Any, recipe: Any, omni: Omni) -> Path:
    if recipe.disable_tqdm:
        trainer.remove_callback(PrinterCallback)  # who hides the bar does not want every log line printed instead
    trainer.train(resume_from_checkpoint=_checkpoint(recipe))
    target = Path(recipe.output_dir) / "model"
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None  # all processes take part
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        omni.model = model.merge_and_unload() if isinstance(model, PeftModel) else model
        omni.save(target, state)
    return target


def _policy(recipe: Any) -> Omni:
    """The model of a recipe. TRL's field `model_init_kwargs` says its dtype and attention, the KL reference's too."""
    chosen = recipe.model_init_kwargs or {}
    zero = _launched_with("DEEPSPEED")
    if recipe.lora_rank and (zero or _launched_with("FSDP")):
        raise UserError("lora_rank works without ZeRO and FSDP: launch with recipes/accelerate/one.yaml --multi_gpu")
    omni = load(
        _required(recipe.model, "model"),
        dtype=chosen.get("dtype", "auto"),
        device=_device(recipe),
        towers=recipe.train_towers,
        attention=chosen.get("attn_implementation"),
    )
    if not recipe.lora_rank and not zero:
        omni.model.float()  # steps of 1e-6 vanish in bf16 weights; DeepSpeed keeps exact ones by itself
    return omni


def _towers_first(
    recipe: SFTRecipe,
    omni: Omni,
    clips: list[Clip],
    progress: Progress | None,
    callbacks: Callbacks,
    more_rows: Sequence[dict[str, Any]],
) -> Omni:
    # A stage of its own, with its own checkpoints and model; a resumed run that is past it begins with that model.
    stage = copy(recipe)
    stage.output_dir = str(Path(str(recipe.output_dir)) / "towers_first")
    stage.max_steps, stage.towers_first_steps, stage.train_towers = recipe.towers_first_steps, 0, True
    folder = Path(stage.output_dir) / "model"
    if not (folder / SETTINGS_FILE).is_file():
        supervise(stage, omni, clips, progress, callbacks, more_rows, language=False)
    with recipe.main_process_first():  # who saved it; the others find it whole
        again = copy(recipe)
        again.model = str(folder)
        return _policy(again)


def _checkpoint(recipe: Any) -> str | None:
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
            raise UserError(f"no whole checkpoint at {asked}: expected a folder checkpoint-N of this run")
        return str(asked)
    if found:
        raise UserError(
            f"{recipe.output_dir} holds a run up to {found[-1].name}: pass resume_from_checkpoint=true to go on, "
            "or another output_dir"
        )
    return None


def _cache(recipe: Any, omni: Omni, clips: list[Clip], progress: Progress | None) -> FeatureCache:
    cache = FeatureCache(omni, features_folder(recipe), towers=not recipe.train_towers)
    with recipe.main_process_first():  # the others then find every entry there
        cache.build(clips, workers=recipe.decode_workers, progress=progress)
    if omni.source and not recipe.train_towers:
        drop_towers(omni.model, omni.source)
    return cache


def _check_gold(clips: list[Clip], taxonomy: wheels.Taxonomy) -> None:
    # A task validates its own gold: the gold answer must earn full reward, for every row.
    wrong = [clip.id for clip in clips if not clip.labels or not gold_earns_full_reward(clip.labels, taxonomy)]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(clips)} rows have gold labels that earn no full reward (first: {wrong[0]}): "
            "expected at least one label that a wheel can place"
        )


def _check_form(recipe: RLRecipe, omni: Omni) -> None:
    wanted = TWICE if recipe.method_choices().answers_twice else ONCE
    if omni.settings.form != wanted:
        raise UserError(
            f"method={recipe.method} needs a model whose completions have the form {wanted!r}, and {recipe.model} has "
            f"{omni.settings.form!r}: `mer-r1 sft targets=twice` makes the form 'twice', targets=slow the form 'once'"
        )


def _lora(recipe: DataFields) -> LoraConfig | None:
    if not recipe.lora_rank:
        return None
    return LoraConfig(r=recipe.lora_rank, lora_alpha=2 * recipe.lora_rank, target_modules=LANGUAGE_MODEL_LAYERS)


def _required(value: str | None, name: str) -> str:
    if not value:
        raise UserError(f"the recipe has no {name}: give {name}=...")
    return value


def _device(recipe: Any) -> str:
    return str(recipe.device)
