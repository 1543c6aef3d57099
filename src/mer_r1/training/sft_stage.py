"""The supervised stages: what the model learns to say about each clip, from a recipe to a trained model."""

import random
from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from mer_r1.data.clip import Clip
from mer_r1.emotions.set_task import read_task
from mer_r1.emotions.thinking import describe_question, format_completion, remark_question
from mer_r1.emotions.two_answers import format_twice
from mer_r1.errors import UserError
from mer_r1.model.checkpoints import read_record, write_record
from mer_r1.model.features import FeatureCache, Progress
from mer_r1.model.omni import SETTINGS_FILE, Omni
from mer_r1.model.prompts import Prompt, collate, encode_prompt
from mer_r1.model.shared_prefix.packing import Row, group_rows, pack
from mer_r1.model.tower_outputs import placeholder_ids
from mer_r1.training.recipe_files import select_clips
from mer_r1.training.recipes import SFTRecipe
from mer_r1.training.sft_trainer import MERSFTTrainer
from mer_r1.training.stage import (
    Callbacks,
    LogFile,
    build_cache,
    claim_run,
    load_policy,
    lora_config,
    train_and_save,
    weights_are_sharded,
)

Rows = list[dict[str, Any]]
NO_CLIP = -1
"""Clip index of a row without a clip."""


def run_sft(recipe: SFTRecipe, progress: Progress | None = None, callbacks: Callbacks = ()) -> Path:
    """Cold start: train the slow format on reasoning texts; returns the folder of the model."""
    clips = select_clips(recipe)
    task = read_task(recipe.task) if recipe.task else None
    omni = load_policy(recipe)
    claim_run(recipe, clips)
    if task is not None:
        omni.settings = replace(omni.settings, question=task.question, categories=task.categories)
    must_reason = bool(recipe.replay) if recipe.must_reason is None else recipe.must_reason
    form: Any = "twice" if recipe.targets == "twice" else "once"
    omni.settings = replace(omni.settings, form=form, must_reason=must_reason)
    rows = examples(clips, omni, recipe.targets, recipe.labels, recipe.counterfactual_rows, recipe.replay, recipe.seed)
    return supervise(recipe, omni, clips, rows, progress, callbacks)


def examples(
    clips: Iterable[Clip],
    omni: Omni,
    targets: str,
    labels: str = "careful",
    counterfactual_rows: int = 0,
    replay: int = 0,
    seed: int = 0,
) -> Rows:
    """Rows of a supervised stage: clip index, question, the text to learn, and a text given before it.

    The given text is the beginning of the completion and part of the context; only the target is learned.

    Args:
        clips: clips of the stage.
        omni: the model, for the wording of its question.
        targets: "slow", "twice" or "base".
        labels: "careful" or "gold".
        counterfactual_rows: additional rows per clip with the reasoning of other clips given.
        replay: additional rows per clip (0 or 1) with an empty think block given.
        seed: seed of the draw of other clips.

    Raises:
        UserError: for an unknown kind of target, a clip without the texts it needs, or too few clips.
    """
    if targets not in ("slow", "twice", "base"):
        raise UserError(f"targets must be slow, twice or base, got {targets!r}")
    clips = list(clips)
    rows = []
    for index, clip in enumerate(clips):
        asked = omni.settings.asked(clip.subtitle)
        said = _base_texts(clip, asked) if targets == "base" else {asked: _reasoned(clip, targets, labels)}
        rows += [_row(index, asked, target) for asked, target in said.items()]
        for other in _others(len(clips), index, counterfactual_rows, seed):
            rows.append(_row(index, asked, _reasoned(clips[other], "slow", labels), given=True))
        if replay:
            rows.append(_row(index, asked, _direct(clip, "replay=1"), given=True))
    return rows


def _row(index: int, asked: str, completion: str, given: bool = False) -> dict[str, Any]:
    # Of a completion whose beginning is given, the answer is learned.
    end = completion.index("</think>") + len("</think>") if given else 0
    return {"clip_index": index, "asked": asked, "given": completion[:end], "target": completion[end:]}


def _others(clips: int, index: int, count: int, seed: int) -> list[int]:
    # Indices of `count` different clips other than this one.
    if count >= clips:
        raise UserError(f"counterfactual_rows={count} needs at least {count + 1} clips, got {clips}")
    drawn = random.Random(f"{seed} {index}").sample(range(clips - 1), count)
    return [other + (other >= index) for other in drawn]


def _reasoned(clip: Clip, targets: str, labels: str) -> str:
    answer = (clip.meta.get("careful_labels") if labels == "careful" else None) or clip.labels
    if not clip.reasoning or not answer:
        raise UserError(f"clip {clip.id}: SFT needs a reasoning text and labels")
    if targets == "twice":
        return format_twice(answer, clip.reasoning, answer)
    return format_completion(clip.reasoning, answer)


def _direct(clip: Clip, stage: str) -> str:
    # After an empty think block, as models with both modes answer directly: what fast thinking triggers.
    if "broad_labels" not in clip.meta:
        raise UserError(f"clip {clip.id}: {stage} needs meta.broad_labels")
    return format_completion("", clip.meta["broad_labels"])


def _base_texts(clip: Clip, asked: str) -> dict[str, str]:
    missing = sorted({"description", "remark", "broad_labels"} - clip.meta.keys())
    if missing:
        raise UserError(f"clip {clip.id}: the base stage needs meta.{missing[0]}")
    return {
        describe_question(clip.subtitle): clip.meta["description"],
        remark_question(clip.subtitle): clip.meta["remark"],
        asked: _direct(clip, "the base stage"),
    }


class SFTData:
    """Rows of a supervised stage and the batches they become.

    Attributes:
        rows: rows for the trainer; with shared prefixes one per clip, holding all rows of that clip.
    """

    def __init__(self, omni: Omni, clips: list[Clip], rows: Rows, cache: FeatureCache, shared_prefixes: bool) -> None:
        self.omni, self.shared_prefixes = omni, shared_prefixes
        media_of = lru_cache(maxsize=4096)(lambda index: cache.get(clips[index]))

        @lru_cache(maxsize=8192)
        def prompt_of(index: int, asked: str) -> Prompt:
            return encode_prompt(omni, asked, {} if index == NO_CLIP else media_of(index))

        self._prompt_of = prompt_of
        self.rows = self._grouped(rows) if shared_prefixes else rows

    def _grouped(self, rows: Rows) -> Rows:
        texts = self.omni.tokenizer([row["asked"] + row["given"] + row["target"] for row in rows])["input_ids"]
        shared = len(self._prompt_of(0, "").input_ids)
        return [{"rows": group} for group in group_rows(rows, [len(ids) for ids in texts], shared, NO_CLIP)]

    def _encoded(self, row: dict[str, Any]) -> Row:
        prompt, tokenizer = self._prompt_of(row["clip_index"], row["asked"]), self.omni.tokenizer
        whole = [*tokenizer(row["given"] + row["target"])["input_ids"], tokenizer.eos_token_id]
        # Cut where the tokens of the given text end; a token that reaches beyond it is learned.
        pairs = zip(tokenizer(row["given"])["input_ids"], whole, strict=False)
        given = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        return (prompt.extended(whole[:given]) if given else prompt), whole[given:]

    def collate(self, rows: Rows) -> dict[str, Any]:
        """The batch of some rows: padded, or packed with shared prefixes."""
        padding = self.omni.tokenizer.pad_token_id
        if self.shared_prefixes:
            groups = [[self._encoded(row) for row in item["rows"]] for item in rows]
            return pack(groups, padding, placeholder_ids(self.omni.model))
        found, targets = zip(*(self._encoded(row) for row in rows), strict=True)
        return collate(found, targets, padding)


def supervise(
    recipe: SFTRecipe,
    omni: Omni,
    clips: list[Clip],
    rows: Rows,
    progress: Progress | None = None,
    callbacks: Callbacks = (),
    optimizer: torch.optim.Optimizer | None = None,
) -> Path:
    """Train a model on rows about clips; returns the folder of the model.

    Args:
        recipe: settings of the stage.
        omni: the model; its towers are frozen unless the recipe trains them.
        clips: clips that the rows refer to.
        rows: rows as `examples` makes them; a row without a clip has the index `NO_CLIP`.
        progress: callback called with the number of clips decoded and encoded.
        callbacks: callbacks of the trainer.
        optimizer: optimizer to use instead of the recipe's `optim`.

    Raises:
        UserError: for settings that do not go together, or as `stage.train_and_save`.
    """
    if (recipe.train_towers or recipe.towers_first_steps) and weights_are_sharded():
        raise UserError(
            "train_towers=true needs whole weights in each process, since not every batch has audio and video: "
            "launch without FSDP, and with --zero_stage 2 at most"
        )
    if recipe.unlikelihood and weights_are_sharded():
        raise UserError("unlikelihood reads the head's weights, which this launch divides: use --zero_stage 2 at most")
    if recipe.towers_first_steps:
        if optimizer is not None:  # it holds the weights of a model that this stage replaces
            raise UserError("towers_first_steps and muon_learning_rate do not go together: set one of them to 0")
        omni = _towers_first(recipe, omni, clips, rows, progress, callbacks)
    _train_language_model(omni, True)
    return _train(recipe, omni, clips, rows, progress, callbacks, optimizer)


def _train(
    recipe: SFTRecipe,
    omni: Omni,
    clips: list[Clip],
    rows: Rows,
    progress: Any,
    callbacks: Callbacks,
    optimizer: Any = None,
) -> Path:
    omni.freeze_towers(not recipe.train_towers)
    cache = build_cache(recipe, omni, clips, progress)
    data = SFTData(omni, clips, rows, cache, recipe.shared_prefixes)
    trainer = MERSFTTrainer(
        omni,
        optimizers=(optimizer, None),
        model=omni.model,
        args=recipe,
        train_dataset=Dataset.from_list(data.rows),
        data_collator=data.collate,
        peft_config=lora_config(recipe),
        callbacks=[LogFile(str(recipe.output_dir)), *callbacks],
    )
    return train_and_save(trainer, recipe, omni)


def _train_language_model(omni: Omni, trained: bool) -> None:
    for part in (omni.model.model.language_model, omni.model.get_output_embeddings()):
        part.requires_grad_(trained)


def _towers_first(
    recipe: SFTRecipe, omni: Omni, clips: list[Clip], rows: Rows, progress: Any, callbacks: Callbacks
) -> Omni:
    # A stage of its own, with its own checkpoints and model; a resumed run that is past it starts from that model.
    stage = copy(recipe)
    stage.output_dir = str(Path(str(recipe.output_dir)) / "towers_first")
    stage.max_steps, stage.towers_first_steps, stage.train_towers = recipe.towers_first_steps, 0, True
    folder = Path(stage.output_dir) / "model"
    if recipe.should_save:
        write_record(folder.parent, run={**read_record(Path(str(recipe.output_dir))).get("run", {}), "part": "towers"})
    if not (folder / SETTINGS_FILE).is_file():
        _train_language_model(omni, False)
        _train(stage, omni, clips, rows, progress, callbacks)
    with recipe.main_process_first():  # it saved the model; the others find it complete
        again = copy(recipe)
        again.model = str(folder)
        return load_policy(again)
