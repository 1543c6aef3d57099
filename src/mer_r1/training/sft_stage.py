"""The supervised stages: what is said about each clip, learned from a recipe."""

import os
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import describe_question, format_completion, question, remark_question
from mer_r1.emotions.two_answers import format_twice
from mer_r1.errors import UserError
from mer_r1.model.features import Progress
from mer_r1.model.omni import SETTINGS_FILE, Omni
from mer_r1.model.prompts import Prompt, collate, encode_prompt
from mer_r1.model.shared_prefix.packing import Row, group_rows, pack
from mer_r1.model.tower_outputs import placeholder_ids
from mer_r1.training.recipes import SFTRecipe
from mer_r1.training.sft_trainer import MERSFTTrainer
from mer_r1.training.stage import Callbacks, LogFile, _cache, _launched_with, _lora, _policy, _run, select_clips

NO_CLIP = -1
"""The clip index of a row without a clip."""


def run_sft(recipe: SFTRecipe, progress: Progress | None = None, callbacks: Callbacks = ()) -> Path:
    """Cold start: the model learns the slow format from reasoning texts; returns the folder of the model."""
    clips = select_clips(recipe)
    omni = _policy(recipe)
    omni.settings = replace(omni.settings, form="twice" if recipe.targets == "twice" else "once")
    return supervise(recipe, omni, clips, progress, callbacks)


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
