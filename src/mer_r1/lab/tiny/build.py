"""The base stage of the tiny policy: initialise it, pretrain its towers and language model, then train on clips.

Stands for the pretraining of Qwen2.5-Omni: afterwards the policy can describe a clip and answer directly, with broad
and noisy labels, but cannot reason. Towers and language model are pretrained side by side first (`pretrain`).
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from transformers.trainer_utils import set_seed

from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import write_atomically
from mer_r1.data.workers import worker_pool
from mer_r1.emotions.thinking import describe_question, format_completion, question, remark_question
from mer_r1.lab.tiny.muon import MuonAdamW
from mer_r1.lab.tiny.pretrain import train_audio_tower, train_language_model, train_vision_tower
from mer_r1.lab.tiny.smollm2 import TOWERS, smollm2
from mer_r1.model.features import Progress
from mer_r1.model.omni import SETTINGS_FILE, Omni, load
from mer_r1.model.tiny import TinyConfig, tiny
from mer_r1.training.recipe_files import select_clips
from mer_r1.training.recipes import BuildRecipe
from mer_r1.training.sft_stage import NO_CLIP, examples, supervise
from mer_r1.training.stage import Callbacks, claim_run

logger = logging.getLogger(__name__)


def run_build(recipe: BuildRecipe, progress: Progress | None = None, callbacks: Callbacks = ()) -> Path:
    """Initialise the tiny policy and train its base stage; returns the folder of the model."""
    clips = select_clips(recipe)
    claim_run(recipe, clips)
    set_seed(recipe.seed)
    with recipe.main_process_first():
        omni = _pretrained(recipe, clips, progress)
    omni.freeze_towers(not recipe.train_towers)
    rows = examples(clips, omni, recipe.targets)
    if recipe.text_steps:  # part of the captions again, so that they are not forgotten
        rows += _caption_rows(min(recipe.caption_examples, len(clips)), recipe.seed)
    return supervise(recipe, omni, clips, rows, progress, callbacks, _muon(recipe, omni))


def _pretrained(recipe: BuildRecipe, clips: list[Clip], progress: Progress | None) -> Omni:
    # Saved in a folder of its own, so that a resumed run does not pretrain again.
    folder = Path(str(recipe.output_dir)) / "towers"
    if (folder / SETTINGS_FILE).is_file():
        return load(folder)
    omni = _initialised(recipe, clips)
    blank = folder.with_name("untrained")
    omni.save(blank)
    # Small matrices gain nothing from a second thread: the towers train in processes beside the language model.
    lessons: dict[str, Any] = {"visual": _train_vision} if recipe.vision_images else {}
    lessons |= {"audio_tower": _train_audio} if recipe.audio_clips else {}
    with worker_pool(2) as pool:
        running = {tower: pool.submit(_kept, tower, lesson, blank, recipe) for tower, lesson in lessons.items()}
        files = {}
        if recipe.text_steps:
            files["language_model"] = _kept("language_model", _train_text, blank, recipe, progress)
        files |= {tower: trained.result() for tower, trained in running.items()}
    for part, file in files.items():
        getattr(omni.model.model, part).load_state_dict(load_file(file))
    omni.save(folder)
    return omni


def _kept(part: str, lesson: Any, blank: Path, recipe: BuildRecipe, *further: Any) -> Path:
    # The weights of a part, trained unless a run that was killed has left them.
    file = blank.with_name(f"{part}.safetensors")
    if not file.is_file():
        omni = load(blank)
        with _half_the_cores():
            loss = lesson(omni, recipe, *further)
        logger.info("%s: loss %.3f", part, loss)
        weights = {name: value.contiguous() for name, value in getattr(omni.model.model, part).state_dict().items()}
        write_atomically(file, save(weights))
    return file


def _initialised(recipe: BuildRecipe, clips: list[Clip]) -> Omni:
    if recipe.text == "smollm2":
        return smollm2(replace(TOWERS, **(recipe.tiny or {})), recipe.seed)
    return tiny(_texts(clips), TinyConfig(**(recipe.tiny or {})), recipe.seed)


def _caption_rows(count: int, seed: int) -> list[dict[str, Any]]:
    # Rows as those of `examples`, about scenes described in words instead of shown.
    from mer_r1.lab.tiny.remarks import draw_captions  # needs the extra of the scenes

    rows = []
    for caption in draw_captions(count, seed):
        said = {
            question(caption.subtitle, "short", caption.description): format_completion("", caption.broad_labels),
            remark_question(caption.subtitle, caption.description): caption.remark,
        }
        rows += [{"clip_index": NO_CLIP, "asked": asked, "given": "", "target": text} for asked, text in said.items()]
    return rows


def _train_vision(omni: Omni, recipe: BuildRecipe) -> float:
    rate = recipe.towers_learning_rate
    return train_vision_tower(omni, recipe.vision_images, recipe.vision_steps, rate, recipe.seed, recipe.workers)


def _train_audio(omni: Omni, recipe: BuildRecipe) -> float:
    workers = 1 if recipe.vision_images else recipe.workers
    rate = 3 * recipe.towers_learning_rate
    return train_audio_tower(omni, recipe.audio_clips, recipe.audio_steps, rate, recipe.seed, workers)


def _train_text(omni: Omni, recipe: BuildRecipe, progress: Progress | None) -> float:
    rows = [(row["asked"], row["target"]) for row in _caption_rows(recipe.caption_examples, recipe.seed)]
    texts = list(zip(rows[::2], rows[1::2], strict=True))
    return train_language_model(omni, texts, recipe.text_steps, recipe.learning_rate, recipe.seed, progress)


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
    return MuonAdamW(named, recipe.learning_rate, recipe.weight_decay, recipe.muon_learning_rate)


def _texts(clips: list[Clip]) -> Iterable[str]:
    for clip in clips:
        yield question(clip.subtitle, "short")
        yield format_completion(clip.reasoning or "", clip.labels or ("calm",))
        yield describe_question(clip.subtitle)
        yield remark_question(clip.subtitle)
        yield str(clip.meta.get("description", ""))
        yield format_completion("", clip.meta.get("broad_labels") or ("calm",))
