"""The paper's two stages: SFT cold start and RL. Load, train, save, nothing clever. `build` has the tiny policy's base.

Each stage starts from a saved checkpoint, leaves its own checkpoints in ``output_dir`` and its final model in
``output_dir/model``, and can be stopped, killed and resumed (``resume_from_checkpoint=true``).
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PrinterCallback, TrainerCallback

from mer_r1 import taxonomy as wheels
from mer_r1.config import DataFields, RLRecipe, SFTRecipe
from mer_r1.data import Clip, read_manifest
from mer_r1.errors import UserError
from mer_r1.features import FeatureCache, Progress
from mer_r1.inputs import Prompt, collate, encode_prompt
from mer_r1.model import Omni, load
from mer_r1.rewards import gold_earns_full_reward
from mer_r1.thinking import describe_question, format_completion, observations, question
from mer_r1.trainer import MERR1Trainer, MERSFTTrainer

logger = logging.getLogger(__name__)

Callbacks = Sequence[TrainerCallback]

NO_CLIP = -1
"""The clip index of a row without a clip."""
LANGUAGE_MODEL_LAYERS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""LoRA goes to the language model only; "all-linear" would silently adapt the towers too."""


def run_sft(recipe: SFTRecipe, progress: Progress | None = None, callbacks: Callbacks = ()) -> Path:
    """Cold start: the model learns the slow format from reasoning texts; returns the folder of the model."""
    clips = select_clips(recipe)
    return supervise(recipe, load(_required(recipe.model, "model"), device=_device(recipe)), clips, progress, callbacks)


def run_rl(recipe: RLRecipe, progress: Progress | None = None, callbacks: Callbacks = ()) -> Path:
    """Reinforcement learning from labels only; returns the folder of the model.

    Raises:
        UserError: for rows without gold labels, or whose gold answer would not earn full reward.
    """
    clips = select_clips(recipe)
    taxonomy = wheels.load(recipe.wheels)
    _check_gold(clips, taxonomy)
    if recipe.train_towers:
        raise UserError("train_towers=true: RL keeps the towers frozen, so that each clip is encoded once")
    omni = load(_required(recipe.model, "model"), device=_device(recipe))
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
    return _run(trainer, recipe, omni)


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
        if targets == "slow":
            labels = clip.meta.get("careful_labels") or clip.labels
            if not clip.reasoning or not labels:
                raise UserError(f"clip {clip.id}: SFT needs a reasoning text and labels")
            target = format_completion(clip.reasoning, labels)
            rows.append(
                {"clip_index": index, "asked": question(clip.subtitle, omni.settings.question), "target": target}
            )
        elif targets == "base":
            missing = {"description", "broad_labels"} - clip.meta.keys()
            if missing:
                raise UserError(f"clip {clip.id}: the base stage needs meta.{sorted(missing)[0]}")
            described = clip.meta["description"]
            # A direct answer behind an empty think, as models that can do both give it: what fast thinking triggers.
            broad = format_completion("", clip.meta["broad_labels"])
            asked = describe_question(clip.subtitle), question(clip.subtitle, omni.settings.question)
            tellings = [described, observations(clip.reasoning or "")]  # as a list, and as annotators talk
            rows += [{"clip_index": index, "asked": asked[0], "target": told} for told in tellings if told]
            rows.append({"clip_index": index, "asked": asked[1], "target": broad})
        else:
            raise UserError(f"targets must be slow or base, got {targets!r}")
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
    """
    omni.freeze_towers(not recipe.train_towers)
    cache = _cache(recipe, omni, clips, progress)
    recipe.dataset_kwargs = {**(recipe.dataset_kwargs or {}), "skip_prepare_dataset": True}

    @lru_cache(maxsize=8192)
    def prompt_of(index: int, asked: str) -> Prompt:
        return encode_prompt(omni, asked, {} if index == NO_CLIP else cache.get(clips[index]))

    def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
        found = [prompt_of(row["clip_index"], row["asked"]) for row in rows]
        targets = [[*omni.tokenizer(row["target"])["input_ids"], omni.tokenizer.eos_token_id] for row in rows]
        return collate(found, targets, omni.tokenizer.pad_token_id)

    trainer = MERSFTTrainer(
        omni,
        optimizers=(optimizer, None),
        model=omni.model,
        args=recipe,
        train_dataset=Dataset.from_list([*examples(clips, omni, recipe.targets), *more_rows]),
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
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        omni.model = model.merge_and_unload() if isinstance(model, PeftModel) else model
        omni.save(target)
    return target


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
    return cache


def _check_gold(clips: list[Clip], taxonomy: wheels.Taxonomy) -> None:
    # A task validates its own gold: the gold answer must earn full reward, for every row.
    wrong = [clip.id for clip in clips if not clip.labels or not gold_earns_full_reward(clip.labels, taxonomy)]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(clips)} rows have gold labels that earn no full reward (first: {wrong[0]}): "
            "expected at least one label that a wheel can place"
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
