"""The omni policy: load any Qwen2.5-Omni thinker, or build a tiny one that takes the same code paths.

`load` reads a local folder or a hub name and keeps the thinker only (no talker). `tiny` makes a model of a few million
parameters with the same classes, towers, placeholders and chat format, and a byte-level BPE tokenizer trained on the
texts it is given, so that everything that runs on the 7B model runs on two cores in seconds.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoProcessor,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

from mer_r1.errors import UserError
from mer_r1.media import MediaLimits

SETTINGS_FILE = "mer_r1.json"
ARCHITECTURES = ("qwen2_5_omni", "qwen2_5_omni_thinker")
"""Model types that hold a thinker."""

SPECIAL_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Settings:
    """What of the preprocessing the checkpoint's own files do not say; kept beside them in mer_r1.json.

    Attributes:
        num_frames: frames sampled from a clip, evenly over its length.
        max_seconds: a longer clip is cut there, with a note.
        question: "full" or "short" wording of the question (`thinking.question`).
    """

    num_frames: int = 8
    max_seconds: float = 30.0
    question: Literal["full", "short"] = "full"

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.question not in ("full", "short"):
            raise ValueError(f"question: got {self.question!r}, expected full or short")
        if not (self.num_frames >= 1 and self.max_seconds > 0):
            raise ValueError(f"got {self.num_frames} frames and {self.max_seconds} seconds, expected positive numbers")

    def limits(self) -> MediaLimits:
        """The same, as `media.read_media` takes it."""
        return MediaLimits(max_frames=self.num_frames, max_seconds=self.max_seconds)


@dataclass
class Omni:
    """A thinker with its processor, and what both need to know of each other."""

    model: Qwen2_5OmniThinkerForConditionalGeneration
    processor: Qwen2_5OmniProcessor
    settings: Settings

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the language model lives."""
        return self.model.device

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end a completion."""
        eos = self.model.generation_config.eos_token_id
        listed = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        return sorted({*listed, self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids("<|im_end|>")})

    @property
    def forbidden_ids(self) -> list[int]:
        """Special tokens that must never be sampled: a media token in a completion breaks the positions."""
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        return sorted(special - set(self.eos_ids))

    def towers(self) -> list[nn.Module]:
        """The vision and the audio tower, projections included."""
        return [self.model.model.visual, self.model.model.audio_tower]

    def freeze_towers(self, frozen: bool = True) -> None:
        """Exclude the towers from training (or include them again)."""
        for tower in self.towers():
            tower.requires_grad_(not frozen)

    def save(self, folder: Path | str) -> None:
        """Write weights (safetensors), processor and settings to a folder that `load` reads."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        write_settings(folder, self.settings)


def write_settings(folder: Path | str, settings: Settings) -> None:
    """Write `mer_r1.json` beside a checkpoint."""
    (Path(folder) / SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")


def load(path: str | Path, dtype: str | torch.dtype = "auto", device: str | None = None) -> Omni:
    """Load a thinker: a local folder or a hub name (full Qwen2.5-Omni checkpoints work; their talker is left out).

    Args:
        path: folder or hub name.
        dtype: torch dtype, or "auto" for the checkpoint's own.
        device: where to put it; None leaves it on the CPU.

    Raises:
        UserError: if the folder is missing or holds no Qwen2.5-Omni thinker.
    """
    folder = Path(path)
    if (folder.is_absolute() or str(path).startswith(".") or folder.exists()) and not (
        folder / "config.json"
    ).is_file():
        raise UserError(
            f"no model at {path}: expected a folder with config.json, or a hub name such as Qwen/Qwen2.5-Omni-7B"
        )
    settings = read_settings(folder)
    try:
        # Asked first: from another architecture's folder the library would build a random thinker of the full size.
        architecture = AutoConfig.from_pretrained(path).model_type
        if architecture not in ARCHITECTURES:
            raise ValueError(f"it holds a {architecture} model")
        processor = AutoProcessor.from_pretrained(path)
        model, report = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
            path, dtype=dtype, output_loading_info=True
        )
        if absent := sorted(report["missing_keys"]):  # the library would go on with random ones
            raise ValueError(f"{len(absent)} weights are not in it, the first is {absent[0]}")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load {path} as a Qwen2.5-Omni thinker: {' '.join(str(error).split())}") from error
    if not isinstance(processor, Qwen2_5OmniProcessor):
        raise UserError(f"cannot load {path}: its processor is a {type(processor).__name__}, expected Qwen2.5-Omni's")
    _repair(processor)
    return Omni(model.to(device) if device else model, processor, settings)


def read_settings(folder: Path) -> Settings:
    """The settings beside a checkpoint; the defaults where it has none (a hub name, say).

    Raises:
        UserError: `mer_r1.json` cannot be read or holds something else.
    """
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return Settings()
    try:
        return Settings(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{file}: {error}; expected the settings of a model folder, as `mer-r1 build` writes them"
        ) from error


def _repair(processor: Qwen2_5OmniProcessor) -> None:
    # The processor class carries a frame size of its own that overrides the video processor's, and loses an instance's
    # override when saved: hand the video processor's own size on, every time.
    size = processor.video_processor.size
    processor.videos_kwargs = {"size": {"shortest_edge": size["shortest_edge"], "longest_edge": size["longest_edge"]}}
    processor.tokenizer.padding_side = "left"


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the tiny policy. Lengths in pixels, frames, seconds, samples.

    Attributes:
        frame_size: frames are resized to this square; a multiple of patch_size * merge_size.
        merge_size: patches merged per side into one token of the language model.
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
        """Refuse sizes that no model can have."""
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


def tiny(texts: Iterable[str], config: TinyConfig | None = None, seed: int = 0) -> Omni:
    """Build an untrained tiny thinker and train its tokenizer.

    Args:
        texts: what the tokenizer learns its merges from.
        config: sizes; the defaults give about 3 M parameters.
        seed: of the weights.
    """
    config = config or TinyConfig()
    processor = _tiny_processor(texts, config)
    torch.manual_seed(seed)
    model = Qwen2_5OmniThinkerForConditionalGeneration(_thinker_config(config, processor.tokenizer))
    _initialise(model)
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.config.architectures = [type(model).__name__]
    return Omni(model, processor, Settings(config.num_frames, config.max_seconds, "short"))


def _tiny_processor(texts: Iterable[str], config: TinyConfig) -> Qwen2_5OmniProcessor:
    template = Qwen2Tokenizer()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *SPECIAL_TOKENS.values()]
    trained = template.train_new_from_iterator(
        texts, vocab_size=config.vocab_size, new_special_tokens=specials, show_progress=False
    )
    bpe = json.loads(trained.backend_tokenizer.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(pair) for pair in bpe["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=SPECIAL_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]}, replace_extra_special_tokens=False)
    area = config.frame_size**2
    vision = {
        "patch_size": config.patch_size,
        "merge_size": config.merge_size,
        "size": {"shortest_edge": area, "longest_edge": area},
    }
    processor = Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        video_processor=Qwen2VLVideoProcessor(**vision, cap_pixels_per_frame=False),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=config.num_mel_bins,
            hop_length=config.hop_length,
            chunk_length=math.ceil(config.max_seconds),
            n_fft=400,
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    _repair(processor)
    return processor


def _thinker_config(config: TinyConfig, tokenizer: Any) -> Qwen2_5OmniThinkerConfig:
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()}
    quarter = config.hidden_size // config.num_heads // 8
    half = config.hidden_size // config.num_heads // 2
    mel_frames = math.ceil(config.max_seconds) * 16000 // config.hop_length
    return Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
            "max_position_embeddings": 4096,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
            # The three parts (time, height, width) must sum to half the head size.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half - 2 * (half // 3), half // 3, half // 3] if quarter else [half, 0, 0],
            },
        },
        vision_config={
            "depth": config.vision_layers,
            "hidden_size": config.vision_size,
            "intermediate_size": 2 * config.vision_size,
            "num_heads": 4,
            "patch_size": config.patch_size,
            "spatial_merge_size": config.merge_size,
            "window_size": config.frame_size,
            "fullatt_block_indexes": list(range(config.vision_layers)),
            "out_hidden_size": config.hidden_size,
        },
        audio_config={
            "num_mel_bins": config.num_mel_bins,
            "encoder_layers": config.audio_layers,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 2 * config.audio_size,
            "d_model": config.audio_size,
            "output_dim": config.hidden_size,
            "n_window": math.ceil(mel_frames / 2),
            "max_source_positions": mel_frames,
        },
        audio_token_index=ids["audio_token"],
        image_token_index=ids["image_token"],
        video_token_index=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        vision_start_token_id=ids["vision_bos_token"],  # undeclared, yet read by get_rope_index; survives a reload
        vision_end_token_id=ids["vision_eos_token"],
        tie_word_embeddings=True,
    )


def _initialise(model: Any) -> None:
    # The library's standard deviation of 0.02 fits widths of thousands; at this width signals would die out.
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Conv1d | nn.Conv3d):
            fan_in = math.prod(module.weight.shape[1:])
            nn.init.normal_(module.weight, std=fan_in**-0.5)
    embedding = model.get_input_embeddings()
    nn.init.normal_(embedding.weight, std=embedding.embedding_dim**-0.5)
