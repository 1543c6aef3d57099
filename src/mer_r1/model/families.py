"""What differs between the omni thinkers that can be the policy: one table, read by whoever loads, builds or encodes.

Both families keep a vision tower, an audio tower and a language model at the same places, and read a clip as separate
video and audio blocks. They differ in the names of their tokens, in how many tokens a sound becomes, and in two things
that have consequences elsewhere:

- Qwen3-Omni's vision tower also speaks to the first layers of the language model ("deepstack"): besides the vectors at
  the placeholders, one set more for each of those layers, added to what the layer puts out (`deepened`). The feature
  cache keeps them as `video_deep`.
- Its positions count 13 to the second and are not rounded to whole numbers, so `Prompt.position_ids` are floats there,
  and stay floats wherever rows are padded or continued.

Its language model is a mixture of experts. Experts are weights like others: full fine-tuning trains them, LoRA adapts
them (PEFT knows the tensor that a layer's experts share); the router learns in full fine-tuning alone. The loss is the
method's, without a term for the balance of the experts: packed rows keep no statistics of the router.

Source: transformers' modelling files of the two families, which decide; the tests compare with their own forwards.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)


@dataclass(frozen=True)
class Family:
    """One kind of thinker.

    Attributes:
        name: as people say it.
        model_types: `model_type` of a thinker, and of a full checkpoint that holds one.
        model, processor, config: the library's classes.
        tokens: special tokens by the attribute names that the processor asks its tokenizer for.
        audio_tokens: of a thinker and numbers of mel frames, how many tokens those sounds become.
        deepstack: its vision tower speaks to the first layers of the language model too.
        engine: `rollouts=vllm` knows how to hand its weights on.
    """

    name: str
    model_types: tuple[str, ...]
    model: type
    processor: type
    config: type
    tokens: dict[str, str]
    audio_tokens: Callable[[Any, Tensor], Tensor]
    deepstack: bool
    engine: bool


def _asked_of_the_tower(model: Any, mel_frames: Tensor) -> Tensor:
    lengths: Tensor = model.model.audio_tower._get_feat_extract_output_lengths(mel_frames)[1]
    return lengths


def _thirteen_in_a_hundred(model: Any, mel_frames: Tensor) -> Tensor:
    # Three convolutions halve each chunk of two windows; upstream writes the 13 tokens of a whole chunk as a number.
    rest = mel_frames % (2 * model.config.audio_config.n_window)
    whole = mel_frames // (2 * model.config.audio_config.n_window)
    for _ in range(3):
        rest = (rest - 1) // 2 + 1
    return rest + 13 * whole


QWEN25 = Family(
    name="Qwen2.5-Omni",
    model_types=("qwen2_5_omni_thinker", "qwen2_5_omni"),
    model=Qwen2_5OmniThinkerForConditionalGeneration,
    processor=Qwen2_5OmniProcessor,
    config=Qwen2_5OmniThinkerConfig,
    tokens={
        "image_token": "<|IMAGE|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    },
    audio_tokens=_asked_of_the_tower,
    deepstack=False,
    engine=True,
)
QWEN3 = Family(
    name="Qwen3-Omni",
    model_types=("qwen3_omni_moe_thinker", "qwen3_omni_moe"),
    model=Qwen3OmniMoeThinkerForConditionalGeneration,
    processor=Qwen3OmniMoeProcessor,
    config=Qwen3OmniMoeThinkerConfig,
    tokens={
        "image_token": "<|image_pad|>",
        "audio_token": "<|audio_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
    },
    audio_tokens=_thirteen_in_a_hundred,
    deepstack=True,
    engine=False,
)
FAMILIES = {model_type: family for family in (QWEN25, QWEN3) for model_type in family.model_types}
"""The family of each model type."""


def family_of(model: Any) -> Family:
    """The family of a thinker."""
    return FAMILIES[model.config.model_type]


def audio_tokens(model: Any, mel_frames: Tensor) -> Tensor:
    """How many tokens sounds of so many mel frames become; of the same shape."""
    return family_of(model).audio_tokens(model, mel_frames)


@contextmanager
def deepened(model: Any, media: Sequence[dict[str, Tensor]]) -> Iterator[None]:
    """Within, the language model's first layers get what the vision tower has to say to them.

    Only arguments of the language model's own forward are changed, outside of what gradient checkpointing repeats, and
    no weight is touched, as it must be where weights are gathered by the forward alone (ZeRO-3, FSDP2; not run).

    Args:
        model: the thinker (unwrapped).
        media: of the clips in the order of their placeholders; `video_deep` (layers, N, D) where a clip has frames.

    Raises:
        ValueError: in the forward, if placeholders and vectors differ in number.
    """
    deep = [tensors["video_deep"] for tensors in media if "video_deep" in tensors]
    if not deep:
        yield
        return
    layers = torch.cat(deep, dim=1)
    places: list[Tensor] = []

    def look(_: Any, args: tuple[Any, ...]) -> None:
        places[:] = [args[0] == model.config.video_token_id]

    def add(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if (count := int(places[0].sum())) != layers.shape[1]:
            raise ValueError(f"{count} video placeholders but {layers.shape[1]} vectors for the deeper layers")
        return args, {**kwargs, "visual_pos_masks": places[0], "deepstack_visual_embeds": list(layers)}

    handles = [
        model.get_input_embeddings().register_forward_pre_hook(look),
        model.model.language_model.register_forward_pre_hook(add, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
