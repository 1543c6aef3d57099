"""A vLLM engine in this process: starting it, and the requests about clips.

A request is the *unexpanded* prompt, one placeholder per channel, with the frames and the waveform: vLLM expands the
placeholders itself, and an expanded prompt would be expanded twice. Frames are sampled here, once, as for training. The
request also states three things that the processor would otherwise get wrong: the true frame rate (it assumes two per
second, and so wrong times), the frame size (its class has a default of its own), and that frames are already sampled.
Fast thinking is the same request with the empty think block at its end.

vLLM supports whole omni models only. For a folder that holds a thinker alone, as our training writes it, the engine
starts with the whole model's configuration around the thinker's, and loads its weights under the names vLLM expects.

vLLM is not a dependency: it is imported when the engine starts, and a test compares the calls with its published
signatures.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import read_object
from mer_r1.data.media.read import Media, read_clip
from mer_r1.errors import UserError
from mer_r1.model.omni import Settings
from mer_r1.model.prompts import chat_text, conversation
from mer_r1.weights import model_path

THINKER = "qwen2_5_omni_thinker"
TOWERS = ("thinker.visual.", "thinker.audio_tower.")
"""Prefixes, in vLLM's names, of the weights that stay frozen."""
EMPTY_THINK = ("<think></think>", "<think> </think>", "<think></", "<think> </")
"""Beginnings of an empty think block, for tokenizers that hold a tag in one token and for those that split it."""
_NAMES = (
    # Module names of a live thinker, then names of its saved weights (the hub's, without their first part).
    ("model.language_model.", "thinker.model."),
    ("model.visual.", "thinker.visual."),
    ("model.audio_tower.", "thinker.audio_tower."),
    ("thinker.", "thinker."),
    ("model.", "thinker.model."),
    ("visual.", "thinker.visual."),
    ("audio_tower.", "thinker.audio_tower."),
    ("lm_head.", "thinker.lm_head."),
)


def start(model: str, asked: str = "--engine vllm", **options: Any) -> tuple[Any, Any]:
    """Start vLLM in this process.

    Args:
        model: folder or hub name; a folder may hold a thinker alone.
        asked: option or command that needs vLLM, for the error.
        options: further arguments of `vllm.LLM`. With `load_format="dummy"` no weights are loaded; without `dtype` the
            weights keep the checkpoint's own ("auto" would make float32 bfloat16).

    Returns:
        The module and its `LLM`.

    Raises:
        UserError: vLLM is not installed.
    """
    # In this process, so that weights and positions can be reached without sending functions to another process.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    vllm, model = required(asked), model_path(model)
    file = Path(model) / "config.json"
    alone = file.is_file() and read_object(file).get("model_type") == THINKER
    loads = alone and "load_format" not in options
    if alone:
        options = {"load_format": "dummy", "hf_overrides": whole_config} | options
    options = {"dtype": dtype_of(model)} | options
    engine = vllm.LLM(model=model, limit_mm_per_prompt={"audio": 1, "video": 1}, enable_prefix_caching=True, **options)
    if loads:
        engine.apply_model(partial(_load_folder, folder=model))
    return vllm, engine


def required(asked: str) -> Any:
    """Import the module vllm.

    Raises:
        UserError: vLLM, which `asked` (an option or command) needs, is not installed.
    """
    try:
        return import_module("vllm")
    except ImportError as error:
        raise UserError(f"{asked} needs the package vllm ({error}): pip install vllm") from error


def dtype_of(model: str) -> str:
    """The dtype in which a checkpoint's weights are saved, by its configuration; "auto" where that does not say it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    found = config.dtype or getattr(config, "thinker_config", config).dtype
    return "auto" if found is None else str(found).removeprefix("torch.")


def weight_name(name: str) -> str:
    """The name of a thinker's weight in vLLM's loader of the whole model.

    Args:
        name: name in a live module (`model.language_model.norm.weight`) or of a saved weight (`model.norm.weight`).

    Raises:
        ValueError: not the name of a thinker's weight.

    >>> weight_name("model.language_model.norm.weight"), weight_name("visual.merger.mlp.0.bias")
    ('thinker.model.norm.weight', 'thinker.visual.merger.mlp.0.bias')
    """
    for ours, theirs in _NAMES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"{name} is no weight of an omni thinker: expected one of model., visual., audio_tower., lm_head.")


def whole_config(config: Any) -> Any:
    """The whole model's configuration around a thinker's; any other configuration is returned unchanged."""
    if config.model_type != THINKER:
        return config
    from transformers import Qwen2_5OmniConfig

    whole = Qwen2_5OmniConfig(thinker_config=config.to_dict())
    whole.architectures = ["Qwen2_5OmniForConditionalGeneration"]
    whole.dtype = config.dtype
    return whole


def _load_folder(model: Any, folder: str) -> None:
    from safetensors.torch import load_file

    files = sorted(Path(folder).glob("*.safetensors"))
    model.load_weights((weight_name(name), weight) for file in files for name, weight in load_file(file).items())


class Requests:
    """Builds requests about clips from the checkpoint's chat template, our question, frames and waveform.

    Args:
        model: folder or hub name of the processor and the settings.
        limits: fields of `ClipLimits` that replace the model's own.
    """

    def __init__(self, model: str, limits: Mapping[str, Any] | None = None) -> None:
        from transformers import AutoProcessor

        from mer_r1.model.omni import read_settings

        folder = model_path(model)
        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        self.settings = replace(read_settings(Path(folder)), **(limits or {}))

    def of(self, clip: Clip, ask: Callable[[Clip], str] | None = None) -> tuple[dict[str, Any], list[str]] | str:
        """The request about a clip (vLLM's `TextPrompt`) and the notes about it, or why its media cannot be read.

        `ask` gives the question; None takes the model's own emotion question.
        """
        try:
            media = read_clip(clip, self.settings.limits())
        except UserError as error:
            return f"clip {clip.id}: {error}"
        turns = conversation(
            clip, self.settings.question, has_picture=media.frames is not None, has_sound=media.waveform is not None
        )
        if ask is not None:
            turns[0]["content"][-1]["text"] = ask(clip)
        prompt = chat_text(self.processor, turns)
        return {"prompt": prompt, **media_of(media, self.processor)}, list(media.notes)


def bad_words(settings: Settings) -> list[str] | None:
    """The `bad_words` of a model (`Settings.must_reason`): vLLM does not sample the last token of one after its others.

    Only sampled tokens count, so fast thinking, whose empty think block is part of the prompt, is not concerned.
    """
    return list(EMPTY_THINK) if settings.must_reason else None


def media_of(media: Media, processor: Any) -> dict[str, Any]:
    """The media of a request; the processor has the frame size and the minimum length of audio.

    Returns:
        `multi_modal_data` with `video` (F, H, W, 3) uint8 and `audio` (waveform, sampling rate), each where the clip
        has it; for a video also `mm_processor_kwargs` with the true frame rate in frames per second and the frame size.
        Empty for a text-only clip.
    """
    data: dict[str, Any] = {}
    request: dict[str, Any] = {}
    if media.frames is not None:
        data["video"] = np.ascontiguousarray(media.frames.transpose(0, 2, 3, 1))
        size = processor.video_processor.size
        request["mm_processor_kwargs"] = {
            "fps": media.fps or 1.0 / max(media.seconds, 0.04),  # a single frame spans the clip
            "do_sample_frames": False,
            "size": {"shortest_edge": size["shortest_edge"], "longest_edge": size["longest_edge"]},
        }
    if media.waveform is not None:
        from mer_r1.model.prompts import whole_frames

        data["audio"] = (whole_frames(media.waveform, processor.feature_extractor), media.sampling_rate)
    return request | {"multi_modal_data": data} if data else request


def unexpanded(ids: Sequence[int], placeholders: Iterable[int]) -> list[int]:
    """Token ids with each run of a placeholder collapsed to one, as vLLM expects them.

    >>> unexpanded([1, 9, 9, 9, 2, 8, 8, 3, 3], [8, 9])
    [1, 9, 2, 8, 3, 3]
    """
    media = set(placeholders)
    return [token for value, run in groupby(ids) for token in ([value] if value in media else run)]


def id_difference(expected: Sequence[int], found: Sequence[int], names: dict[int, str]) -> str | None:
    """The difference between two token sequences in a few words; None if they are equal.

    Args:
        expected: our own tokens.
        found: tokens that the engine read.
        names: placeholder tokens and their channels; a difference in their counts, the most frequent, comes first.
    """
    expected, found = list(expected), list(found)
    if expected == found:
        return None
    counts = [
        f"{found.count(token)} {name} tokens, expected {expected.count(token)}"
        for token, name in names.items()
        if found.count(token) != expected.count(token)
    ]
    if counts:
        return "; ".join(counts)
    for index, (ours, theirs) in enumerate(zip(expected, found, strict=False)):
        if ours != theirs:
            return f"token {index} is {theirs}, expected {ours}"
    return f"{len(found)} tokens, expected {len(expected)}"
