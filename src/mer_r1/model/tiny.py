"""Builds small thinkers from scratch: sizes, the library's configuration, tokenizer, processor and initial weights.

`tiny` makes a policy of a few million parameters with the classes, towers, placeholders and chat format of either
family (`families`) and a byte-level BPE tokenizer trained on given texts, so that everything that runs on the 7B model
runs on two cores in seconds. `make_processor` and `make_thinker` also put freshly initialised towers in front of a
pretrained language model (`lab.tiny.smollm2`). Every field that the library leaves to the checkpoint is set here once.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AddedToken,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

from mer_r1.emotions.thinking import TAGS
from mer_r1.model.families import QWEN25, Family
from mer_r1.model.omni import Omni, Settings, set_frame_size


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the tiny policy, in pixels, frames, seconds and samples.

    Attributes:
        frame_size: side of the square that frames are resized to; a multiple of patch_size * merge_size.
        merge_size: patches per side that are merged into one token of the language model.
        hop_length: samples between mel frames at 16 kHz; 4 mel frames make one token.
    """

    vocab_size: int = 2048
    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 512
    frame_size: int = 84
    num_frames: int = 4
    patch_size: int = 7
    merge_size: int = 4
    vision_size: int = 80
    vision_layers: int = 2
    audio_size: int = 128
    audio_layers: int = 2
    num_mel_bins: int = 64
    hop_length: int = 400
    max_seconds: float = 4.0

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        parts = {
            "hidden_size": 2 * self.num_heads,
            "num_heads": self.num_kv_heads,
            "frame_size": self.patch_size * self.merge_size,
            "vision_size": 4,
            "audio_size": 4,
        }
        for name, part in parts.items():
            if part < 1 or getattr(self, name) < 1 or getattr(self, name) % part:
                raise ValueError(f"{name} must be a positive multiple of {part}, got {getattr(self, name)}")


def chat_template(family: Family) -> str:
    """The chat format with separate video and audio blocks, in the family's tokens."""
    token = family.tokens
    video = token["vision_bos_token"] + token["video_token"] + token["vision_eos_token"]
    audio = token["audio_bos_token"] + token["audio_token"] + token["audio_eos_token"]
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'video' %}}{video}"
        f"{{% elif part['type'] == 'audio' %}}{audio}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def thinker_config(config: TinyConfig, tokenizer: Any, family: Family, text: dict[str, Any] | None = None) -> Any:
    """The library's configuration of a thinker.

    Args:
        config: sizes.
        tokenizer: tokenizer with the family's tokens.
        family: family of the classes.
        text: fields of the language model that differ from the tiny policy's (those of a pretrained one).
    """
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in family.tokens.items()}
    language, vision, audio = _text(config, tokenizer), _vision(config), _audio(config)
    all_layers = list(range(config.vision_layers))
    if family.deepstack:
        language |= {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": config.hidden_size // config.num_heads}
        language["moe_intermediate_size"] = config.intermediate_size // 4
        side = config.frame_size // config.patch_size
        vision |= {"deepstack_visual_indexes": all_layers, "num_position_embeddings": side**2}
        # Upstream counts 13 tokens per chunk for every window, so the window must be theirs.
        audio |= {"n_window": 50, "n_window_infer": 400, "downsample_hidden_size": 16}
    else:
        vision |= {"window_size": config.frame_size, "fullatt_block_indexes": all_layers}
        audio["n_window"] = math.ceil(audio["max_source_positions"] / 2)
    suffix = "id" if family.deepstack else "index"  # the families name the same three fields differently
    return family.config(
        text_config=language | (text or {}),
        vision_config=vision,
        audio_config=audio,
        **{f"{name}_token_{suffix}": ids[f"{name}_token"] for name in ("audio", "image", "video")},
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        vision_start_token_id=ids["vision_bos_token"],  # undeclared, yet read by get_rope_index; survives a reload
        vision_end_token_id=ids["vision_eos_token"],
        position_id_per_seconds=13 if family.deepstack else 25,
        tie_word_embeddings=True,
    )


def mrope_section(head_size: int) -> list[int]:
    """Rotary dimensions of a head for time, height and width; they sum to half the head size."""
    half = head_size // 2
    return [half - 2 * (half // 3), half // 3, half // 3] if head_size >= 8 else [half, 0, 0]


def _text(config: TinyConfig, tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": mrope_section(config.hidden_size // config.num_heads),
        },
    }


def _vision(config: TinyConfig) -> dict[str, Any]:
    return {
        "depth": config.vision_layers,
        "hidden_size": config.vision_size,
        "intermediate_size": 2 * config.vision_size,
        "num_heads": 4,
        "patch_size": config.patch_size,
        "spatial_merge_size": config.merge_size,
        "out_hidden_size": config.hidden_size,
    }


def _audio(config: TinyConfig) -> dict[str, Any]:
    return {
        "num_mel_bins": config.num_mel_bins,
        "encoder_layers": config.audio_layers,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 2 * config.audio_size,
        "d_model": config.audio_size,
        "output_dim": config.hidden_size,
        "max_source_positions": math.ceil(config.max_seconds) * 16000 // config.hop_length,
    }


def tiny(texts: Iterable[str], config: TinyConfig | None = None, seed: int = 0, family: Family = QWEN25) -> Omni:
    """Build an untrained tiny thinker and train its tokenizer.

    Args:
        texts: texts from which the tokenizer learns its merges.
        config: sizes; the defaults give about 3 M parameters.
        seed: seed of the weights.
        family: family of the classes.
    """
    config = config or TinyConfig()
    processor = make_processor(_tiny_tokenizer(texts, config, family), config, family)
    torch.manual_seed(seed)
    return make_thinker(processor, config, family)


def make_thinker(
    processor: Any, config: TinyConfig, family: Family = QWEN25, text: dict[str, Any] | None = None
) -> Omni:
    """Build an untrained thinker for a processor.

    Args:
        processor: from `make_processor`.
        config: sizes.
        family: family of the classes.
        text: fields of the language model's configuration that differ from the tiny policy's.
    """
    model = family.model(thinker_config(config, processor.tokenizer, family, text))
    _initialise(model)
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.config.architectures = [type(model).__name__]
    return Omni(model, processor, Settings(config.num_frames, config.max_seconds, question="short"))


def _tiny_tokenizer(texts: Iterable[str], config: TinyConfig, family: Family) -> Any:
    template = Qwen2Tokenizer()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *family.tokens.values()]
    trained = template.train_new_from_iterator(
        texts, vocab_size=config.vocab_size, new_special_tokens=specials, show_progress=False
    )
    bpe = json.loads(trained.backend_tokenizer.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(pair) for pair in bpe["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=family.tokens,
        chat_template=chat_template(family),
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]}, replace_extra_special_tokens=False)
    # One token each, as in Qwen3: in pieces, "<think>" and "<answer>" end in the same one, and a small cold start then
    # teaches to reason after either (docs/log.md).
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return tokenizer


def make_processor(tokenizer: Any, config: TinyConfig, family: Family = QWEN25) -> Any:
    """The family's processor for frames and audio of these sizes, with a tokenizer that has its tokens."""
    area = config.frame_size**2
    vision = {
        "patch_size": config.patch_size,
        "merge_size": config.merge_size,
        "size": {"shortest_edge": area, "longest_edge": area},
    }
    processor = family.processor(
        image_processor=Qwen2VLImageProcessor(**vision),
        video_processor=Qwen2VLVideoProcessor(**vision, cap_pixels_per_frame=False),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=config.num_mel_bins,
            hop_length=config.hop_length,
            chunk_length=math.ceil(config.max_seconds),
            n_fft=400,
        ),
        tokenizer=tokenizer,
        chat_template=chat_template(family),
    )
    set_frame_size(processor)
    return processor


def _initialise(model: Any) -> None:
    # The library's standard deviation of 0.02 fits widths of thousands; at this width signals would vanish.
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            fan_in = math.prod(module.weight.shape[1:])
            nn.init.normal_(module.weight, std=fan_in**-0.5)
    for name, parameter in model.named_parameters():
        if ".experts." in name:  # (experts, outputs, inputs), no modules of their own
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    embedding = model.get_input_embeddings()
    nn.init.normal_(embedding.weight, std=embedding.embedding_dim**-0.5)
