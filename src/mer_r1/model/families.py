"""The differences between the omni thinkers that can be the policy, as one table for loading, building and encoding.

Both families have a vision tower, an audio tower and a language model under the same attributes, and take a clip as
separate video and audio blocks. They differ in the names of their tokens, in the number of tokens per second of audio,
and in two things that have consequences elsewhere:

- Qwen3-Omni's vision tower also feeds the first layers of the language model ("deepstack"): besides the vectors at the
  placeholders, one more set for each of those layers, added to the layer's output (`deepstack_added`). The feature
  cache keeps them as `video_deep`.
- Its positions advance by 13 per second and are not rounded to integers, so `Prompt.position_ids` are floats there, and
  stay floats wherever rows are padded or continued.

Its language model is a mixture of experts. Experts are weights like others: full fine-tuning trains them, LoRA adapts
them (PEFT knows the tensor that a layer's experts share); the router is trained in full fine-tuning only. The loss is
the method's, without a load-balancing term: packed rows keep no statistics of the router.

Source: transformers' modelling files of the two families; the tests compare with their own forwards.
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
        name: display name.
        model_types: `model_type` of a thinker, and of a full checkpoint that holds one.
        model, processor, config: the library's classes.
        tokens: special tokens by the attribute names that the processor asks its tokenizer for.
        audio_tokens: function of a thinker and numbers of mel frames that returns numbers of audio tokens.
        deepstack: whether its vision tower also feeds the first layers of the language model.
        engine: whether `rollouts=vllm` can pass its weights to the engine.
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


def _by_the_tower(model: Any, mel_frames: Tensor) -> Any:
    return model.model.audio_tower._get_feat_extract_output_lengths(mel_frames)[1]


def _thirteen_per_chunk(model: Any, mel_frames: Tensor) -> Tensor:
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
    audio_tokens=_by_the_tower,
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
    audio_tokens=_thirteen_per_chunk,
    deepstack=True,
    engine=False,
)
FAMILIES = {model_type: family for family in (QWEN25, QWEN3) for model_type in family.model_types}
"""The family of each model type."""


def family_of(model: Any) -> Family:
    """The family of a thinker."""
    return FAMILIES[model.config.model_type]


def audio_tokens(model: Any, mel_frames: Tensor) -> Tensor:
    """Number of audio tokens for numbers of mel frames, of the same shape."""
    return family_of(model).audio_tokens(model, mel_frames)


@contextmanager
def deepstack_added(model: Any, media: Sequence[dict[str, Tensor]]) -> Iterator[None]:
    """Context in which the language model's first layers get the vision tower's deepstack vectors.

    Only arguments of the language model's own forward change, outside of the part that gradient checkpointing repeats,
    and no weight is touched: required where weights are gathered by the forward alone (ZeRO-3, FSDP2; not run).

    Args:
        model: the thinker (unwrapped).
        media: media of the clips in the order of their placeholders; `video_deep` (layers, N, D) where a clip has
            frames.

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
