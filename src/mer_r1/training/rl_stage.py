"""The RL stage: from a recipe to a trained policy, with labels as the only supervision."""

from pathlib import Path

import torch

from mer_r1.data.clip import Clip
from mer_r1.emotions.meaning import matched
from mer_r1.emotions.two_answers import ONCE, TWICE
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.model.absent_towers import same_towers_as
from mer_r1.model.families import family_of
from mer_r1.model.features import Progress
from mer_r1.model.omni import Omni, task_of
from mer_r1.rl.rewards import gold_earns_full_reward
from mer_r1.rl.trainer import MERR1Trainer
from mer_r1.rl.vllm.engine import required
from mer_r1.training.recipe_files import select_clips
from mer_r1.training.recipes import RLRecipe
from mer_r1.training.stage import (
    Callbacks,
    LogFile,
    build_cache,
    claim_run,
    load_policy,
    lora_config,
    prompts,
    train_and_save,
    weights_are_sharded,
)


def run_rl(recipe: RLRecipe, progress: Progress | None = None, callbacks: Callbacks = ()) -> Path:
    """Reinforcement learning from labels only; returns the folder of the model.

    Raises:
        UserError: for rows without gold labels or whose gold answer would not earn full reward, and for settings that
            do not go together.
    """
    clips = select_clips(recipe)
    categories = task_of(recipe.model).taxonomy(recipe.wheels)
    taxonomy = matched(categories, recipe.matching, recipe.meaning_model, recipe.meaning_floor)
    check_gold(clips, taxonomy)
    _check_launch(recipe)
    omni = load_policy(recipe)
    _check_model(recipe, omni)
    claim_run(recipe, clips, taxonomy)
    omni.freeze_towers()
    cache = build_cache(recipe, omni, clips, progress)
    rows = [
        {
            "prompt": [{"role": "user", "content": omni.settings.asked(clip.subtitle)}],
            "labels": list(clip.labels or ()),
            "subtitle": clip.subtitle,
            "clip_index": index,
        }
        for index, clip in enumerate(clips)
    ]
    with same_towers_as(omni.model):  # the KL reference has no towers either
        trainer = MERR1Trainer(
            omni,
            rows,
            prompts(omni, cache, clips),
            recipe,
            taxonomy,
            recipe,
            peft_config=lora_config(recipe),
            callbacks=[LogFile(recipe.output_dir), *callbacks],
        )
    if recipe.rollouts == "vllm":
        from mer_r1.rl.vllm.rollouts import use_vllm

        use_vllm(trainer, clips, recipe.vllm_confidences)
    return train_and_save(trainer, recipe, omni)


def check_gold(clips: list[Clip], taxonomy: Taxonomy) -> None:
    """Refuse clips whose gold answer would not earn full reward.

    Raises:
        UserError: with their number and the first of them.
    """
    wrong = [clip.id for clip in clips if not clip.labels or not gold_earns_full_reward(clip.labels, taxonomy)]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(clips)} rows have gold labels that earn no full reward (first: {wrong[0]}): "
            "expected at least one label that is in a category of the task"
        )


def _check_launch(recipe: RLRecipe) -> None:
    # Before the clips are decoded.
    if recipe.rollouts == "vllm":
        required("rollouts=vllm")
        if recipe.vllm_mode == "server" and not torch.cuda.is_available():
            raise UserError("vllm_mode=server: weights reach the server from a CUDA device, and none is here")
    if recipe.train_towers:
        raise UserError("train_towers=true: RL keeps the towers frozen, so that each clip is encoded once")
    if recipe.rollouts == "hf" and weights_are_sharded():
        raise UserError(
            "rollouts=hf decodes until each GPU's own last token, and GPUs that share weights would wait for each "
            "other forever: use rollouts=vllm, or launch with --zero_stage 2, or with "
            "recipes/accelerate/one.yaml --multi_gpu"
        )


def _check_model(recipe: RLRecipe, omni: Omni) -> None:
    wanted = TWICE if recipe.answers_twice else ONCE
    if omni.settings.form != wanted:
        raise UserError(
            f"method={recipe.method} needs a model whose completions have the form {wanted!r}, and {recipe.model} has "
            f"{omni.settings.form!r}: `mer-r1 sft targets=twice` makes the form 'twice', targets=slow the form 'once'"
        )
    if recipe.rollouts == "vllm" and not (family := family_of(omni.model)).engine:
        raise UserError(f"rollouts=vllm: weights of {family.name} are not passed to vLLM yet; use rollouts=hf")
