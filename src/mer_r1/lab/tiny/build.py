"""The base stage of the tiny policy: make it, let it see, hear and read, then meet clips. Stands for a pretraining.

After it the policy can describe a clip and answer directly, with broad and noisy labels, and knows no reasoning: what
Qwen2.5-Omni brings along. The towers and the reading come first (`pretrain`), side by side.
"""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.trainer_utils import set_seed

from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import describe_question, format_completion, question, remark_question
from mer_r1.lab.tiny.muon import MuonAdamW
from mer_r1.lab.tiny.pretrain import train_audio_tower, train_language_model, train_vision_tower
from mer_r1.lab.tiny.smollm2 import TOWERS, smollm2
from mer_r1.model.features import Progress
from mer_r1.model.omni import SETTINGS_FILE, Omni, load
from mer_r1.model.tiny import TinyConfig, tiny
from mer_r1.training.recipes import BuildRecipe
from mer_r1.training.sft_stage import NO_CLIP, supervise
from mer_r1.training.stage import Callbacks, select_clips

logger = logging.getLogger(__name__)

Learned = tuple[dict[str, Any], float]
"""Weights of a tower, and the last loss."""


def run_build(recipe: BuildRecipe, progress: Progress | None = None, callbacks: Callbacks = ()) -> Path:
    """Make the tiny policy and train its base stage; returns the folder of the model."""
    clips = select_clips(recipe)
    set_seed(recipe.seed)
    with recipe.main_process_first():
        omni = _pretrained(recipe, clips, progress)
    omni.freeze_towers(not recipe.train_towers)
    # Part of what was read comes again, so that it is not forgotten.
    told = _told(min(recipe.remarks, len(clips)), recipe.seed) if recipe.reading_steps else []
    return supervise(recipe, omni, clips, progress, callbacks, told, _muon(recipe, omni))


def _pretrained(recipe: BuildRecipe, clips: list[Clip], progress: Progress | None) -> Omni:
    # Kept in a folder of its own, so that a resumed run does not train the towers again.
    folder = Path(str(recipe.output_dir)) / "towers"
    if (folder / SETTINGS_FILE).is_file():
        return load(folder)
    omni = _made(recipe, clips)
    blank = folder.with_name("untrained")
    omni.save(blank)
    # Small matrices gain nothing from a second thread: eyes and ears learn in processes beside the reader.
    lessons = {"visual": _learn_to_see} if recipe.eyes_stills else {}
    lessons |= {"audio_tower": _learn_to_hear} if recipe.ears_sounds else {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        learning = {tower: pool.submit(lesson, blank, recipe) for tower, lesson in lessons.items()}
        if recipe.reading_steps:
            with _half_the_cores():
                rows = [(row["asked"], row["target"]) for row in _told(recipe.remarks, recipe.seed)]
                texts = list(zip(rows[::2], rows[1::2], strict=True))
                read = train_language_model(
                    omni, texts, recipe.reading_steps, recipe.learning_rate, recipe.seed, progress
                )
            logger.info("reading: cross-entropy %.3f per token", read)
        for tower, learned in learning.items():
            weights, loss = learned.result()
            module = getattr(omni.model.model, tower)
            module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
            logger.info("%s: loss %.3f", tower, loss)
    omni.save(folder)
    return omni


def _made(recipe: BuildRecipe, clips: list[Clip]) -> Omni:
    if recipe.text == "smollm2":
        return smollm2(replace(TOWERS, **(recipe.tiny or {})), recipe.seed)
    return tiny(_texts(clips), TinyConfig(**(recipe.tiny or {})), recipe.seed)


def _told(count: int, seed: int) -> list[dict[str, Any]]:
    # Rows like those of `examples`, of scenes that are told and not shown.
    from mer_r1.lab.tiny.remarks import draw_captions  # needs the extra `scenes`

    rows = []
    for caption in draw_captions(count, seed):
        said = {
            question(caption.subtitle, "short", caption.description): format_completion("", caption.broad_labels),
            remark_question(caption.subtitle, caption.description): caption.remark,
        }
        rows += [{"clip_index": NO_CLIP, "asked": asked, "target": target} for asked, target in said.items()]
    return rows


def _learn_to_see(folder: Path, recipe: BuildRecipe) -> Learned:
    omni, rate = load(folder), recipe.towers_learning_rate
    with _half_the_cores():
        loss = train_vision_tower(omni, recipe.eyes_stills, recipe.eyes_steps, rate, recipe.seed, recipe.decode_workers)
    return _weights(omni.model.model.visual), loss


def _learn_to_hear(folder: Path, recipe: BuildRecipe) -> Learned:
    omni, rate = load(folder), 3 * recipe.towers_learning_rate
    workers = 1 if recipe.eyes_stills else recipe.decode_workers
    with _half_the_cores():
        loss = train_audio_tower(omni, recipe.ears_sounds, recipe.ears_steps, rate, recipe.seed, workers)
    return _weights(omni.model.model.audio_tower), loss


def _weights(module: nn.Module) -> dict[str, Any]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


@contextmanager
def _half_the_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _muon(recipe: BuildRecipe, omni: Omni) -> MuonAdamW | None:
    if not recipe.muon_learning_rate:
        return None
    named = [(name, parameter) for name, parameter in omni.model.named_parameters() if parameter.requires_grad]
    return MuonAdamW(named, recipe.learning_rate, recipe.weight_decay, recipe.muon_learning_rate, divided=True)


def _texts(clips: list[Clip]) -> Iterable[str]:
    for clip in clips:
        yield question(clip.subtitle, "short")
        yield format_completion(clip.reasoning or "", clip.labels or ("calm",))
        yield describe_question(clip.subtitle)
        yield remark_question(clip.subtitle)
        yield str(clip.meta.get("description", ""))
        yield format_completion("", clip.meta.get("broad_labels") or ("calm",))
