"""The three stages: base (tiny model only), SFT cold start, RL. Build, train, save, nothing clever.

Each stage starts from a saved checkpoint, leaves its own checkpoints in ``output_dir`` and its final model in
``output_dir/model``, and can be stopped, killed and resumed (``resume_from_checkpoint=true``).
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import set_seed

from mer_r1 import taxonomy as wheels
from mer_r1.config import BuildRecipe, DataFields, RLRecipe, SFTRecipe
from mer_r1.data import Clip, read_manifest
from mer_r1.errors import UserError
from mer_r1.features import FeatureCache, Progress
from mer_r1.inputs import Prompt, collate, encode_prompt
from mer_r1.model import SETTINGS_FILE, Omni, TinyConfig, load, tiny
from mer_r1.muon import MuonAdamW
from mer_r1.pretrain import train_ears, train_eyes, train_reading
from mer_r1.rewards import gold_earns_full_reward
from mer_r1.thinking import base_question, format_completion, question
from mer_r1.trainer import MERR1Trainer, MERSFTTrainer

logger = logging.getLogger(__name__)

Callbacks = Sequence[TrainerCallback]

NO_CLIP = -1
"""The clip index of a row without a clip."""
LANGUAGE_MODEL_LAYERS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""LoRA goes to the language model only; "all-linear" would silently adapt the towers too."""


def run_build(recipe: BuildRecipe, progress: Progress | None = None, callbacks: Callbacks = ()) -> Path:
    """Make the tiny policy and train its base stage; returns the folder of the model.

    The base stage stands for what Qwen2.5-Omni's pretraining brings: it can describe a clip and answer directly, with
    broad and noisy labels, and knows no reasoning format.
    """
    clips = select_clips(recipe)
    set_seed(recipe.seed)
    omni = _pretrained(recipe, clips, progress)
    return _supervise(recipe, omni, clips, progress, callbacks)


def run_sft(recipe: SFTRecipe, progress: Progress | None = None, callbacks: Callbacks = ()) -> Path:
    """Cold start: the model learns the slow format from reasoning texts; returns the folder of the model."""
    clips = select_clips(recipe)
    return _supervise(
        recipe, load(_required(recipe.model, "model"), device=_device(recipe)), clips, progress, callbacks
    )


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
            asked = base_question(clip.subtitle, "describe"), base_question(clip.subtitle, "emotions")
            rows.append({"clip_index": index, "asked": asked[0], "target": described})
            rows.append({"clip_index": index, "asked": asked[1], "target": broad})
        else:
            raise UserError(f"targets must be slow or base, got {targets!r}")
    return rows


class LogFile(TrainerCallback):
    """Writes every log line to ``output_dir/log.jsonl``; a resumed run goes on where its checkpoint stood."""

    def __init__(self, output_dir: str) -> None:
        self.path = Path(output_dir) / "log.jsonl"

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Rewrite the file from the trainer's own history, so that it never holds a step twice."""
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(line) + "\n" for line in state.log_history), encoding="utf-8")


def _pretrained(recipe: BuildRecipe, clips: list[Clip], progress: Progress | None) -> Omni:
    # Kept in a folder of its own, so that a resumed run does not train the towers again.
    folder = Path(str(recipe.output_dir)) / "towers"
    if (folder / SETTINGS_FILE).is_file():
        return load(folder)
    omni = tiny(_texts(clips), TinyConfig(**(recipe.tiny or {})), recipe.seed)
    rate, seed = recipe.towers_learning_rate, recipe.seed
    blank = folder.with_name("untrained")
    omni.save(blank)
    # Small matrices gain nothing from a second thread: the eyes learn in one process while the ears learn in another.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        eyes = pool.submit(_learn_to_see, blank, recipe) if recipe.eyes_stills else None
        if recipe.ears_steps:
            cache = FeatureCache(omni, _features_folder(recipe), towers=False)
            cache.build(clips, workers=1 if eyes else recipe.decode_workers, progress=progress)
            with _half_the_cores():
                heard = train_ears(omni, cache, clips, recipe.ears_steps, 2 * rate, seed, progress)
            logger.info("ears: cross-entropy %.3f per word", heard)
        if recipe.reading_steps:
            with _half_the_cores():
                texts = [(row["asked"], row["target"]) for row in _told(recipe.remarks, seed)]
                read = train_reading(omni, texts, recipe.reading_steps, recipe.learning_rate, seed, progress)
            logger.info("reading: cross-entropy %.3f per token", read)
        if eyes:
            weights, seen = eyes.result()
            omni.model.model.visual.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
            logger.info("eyes: loss %.3f", seen)
    omni.save(folder)
    return omni


def _told(count: int, seed: int) -> list[dict[str, Any]]:
    # Rows like those of `examples`, of scenes that are told and not shown.
    from mer_r1.scenes.remarks import draw_remarks  # the corpus is an extra

    return [
        {
            "clip_index": NO_CLIP,
            "asked": base_question(remark.subtitle, "emotions", remark.description),
            "target": format_completion("", remark.broad_labels),
        }
        for remark in draw_remarks(count, seed)
    ]


def _learn_to_see(folder: Path, recipe: BuildRecipe) -> tuple[dict[str, Any], float]:
    omni = load(folder)
    with _half_the_cores():
        rate, workers = recipe.towers_learning_rate, recipe.decode_workers
        loss = train_eyes(omni, recipe.eyes_stills, recipe.eyes_steps, rate, recipe.seed, workers)
    return {name: value.numpy() for name, value in omni.model.model.visual.state_dict().items()}, loss


@contextmanager
def _half_the_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _supervise(
    recipe: SFTRecipe, omni: Omni, clips: list[Clip], progress: Progress | None, callbacks: Callbacks
) -> Path:
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

    rows = examples(clips, omni, recipe.targets)
    if isinstance(recipe, BuildRecipe) and recipe.reading_steps:
        rows += _told(min(recipe.remarks, len(clips)), recipe.seed)  # so that what was read is not forgotten
    trainer = MERSFTTrainer(
        omni,
        optimizers=(_muon(recipe, omni), None),
        model=omni.model,
        args=recipe,
        train_dataset=Dataset.from_list(rows),
        data_collator=batch,
        peft_config=_lora(recipe),
        callbacks=[LogFile(recipe.output_dir), *callbacks],
    )
    return _run(trainer, recipe, omni)


def _muon(recipe: SFTRecipe, omni: Omni) -> MuonAdamW | None:
    if not isinstance(recipe, BuildRecipe) or not recipe.muon_learning_rate:
        return None
    named = [(name, parameter) for name, parameter in omni.model.named_parameters() if parameter.requires_grad]
    return MuonAdamW(named, recipe.learning_rate, recipe.weight_decay, recipe.muon_learning_rate)


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


def _cache(recipe: DataFields, omni: Omni, clips: list[Clip], progress: Progress | None) -> FeatureCache:
    cache = FeatureCache(omni, _features_folder(recipe), towers=not recipe.train_towers)
    cache.build(clips, workers=recipe.decode_workers, progress=progress)
    return cache


def _features_folder(recipe: DataFields) -> Path:
    return Path(recipe.features_dir or Path(_required(recipe.manifest, "manifest")).parent / "features")


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


def _texts(clips: list[Clip]) -> Iterable[str]:
    for clip in clips:
        yield question(clip.subtitle, "short")
        yield format_completion(clip.reasoning or "", clip.labels or ("calm",))
        yield base_question(clip.subtitle, "describe")
        yield base_question(clip.subtitle, "emotions")
        yield str(clip.meta.get("description", ""))
        yield format_completion("", clip.meta.get("broad_labels") or ("calm",))


def _required(value: str | None, name: str) -> str:
    if not value:
        raise UserError(f"the recipe has no {name}: give {name}=...")
    return value


def _device(recipe: Any) -> str:
    return str(recipe.device)
