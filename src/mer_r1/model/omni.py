"""The omni policy: load a Qwen2.5-Omni or Qwen3-Omni thinker, or build a tiny one that takes the same code paths.

`load` reads a local folder or a hub name and keeps the thinker only (no talker). `tiny` makes a model of a few million
parameters with the same classes, towers, placeholders and chat format, and a byte-level BPE tokenizer trained on the
texts it is given, so that everything that runs on the 7B model runs on two cores in seconds.
"""

import json
import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

from mer_r1.data.media.read import MediaLimits
from mer_r1.emotions.thinking import TAGS
from mer_r1.errors import UserError
from mer_r1.model.absent_towers import TowerWeights, bind, whole_state, without_towers
from mer_r1.model.families import FAMILIES, QWEN25, Family
from mer_r1.model.tiny import TinyConfig, chat_template, thinker_config

SETTINGS_FILE = "mer_r1.json"
SPECIAL_TOKENS = QWEN25.tokens


@dataclass(frozen=True)
class Settings:
    """What of the preprocessing the checkpoint's own files do not say; kept beside them in mer_r1.json.

    Attributes:
        num_frames: frames sampled from a clip, evenly over its length.
        max_seconds: a longer clip is cut there, with a note.
        question: "full" or "short" wording of the question (`thinking.question`).
        form: of its completions (`two_answers`): "once" (think, answer) or "twice" (answer, think, answer).
    """

    num_frames: int = 8
    max_seconds: float = 30.0
    question: Literal["full", "short"] = "full"
    form: Literal["once", "twice"] = "once"

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.question not in ("full", "short"):
            raise ValueError(f"question: got {self.question!r}, expected full or short")
        if self.form not in ("once", "twice"):
            raise ValueError(f"form: got {self.form!r}, expected once or twice")
        if not (self.num_frames >= 1 and self.max_seconds > 0):
            raise ValueError(f"got {self.num_frames} frames and {self.max_seconds} seconds, expected positive numbers")

    def limits(self) -> MediaLimits:
        """The same, as `media.read.read_media` takes it."""
        return MediaLimits(max_frames=self.num_frames, max_seconds=self.max_seconds)


@dataclass
class Omni:
    """A thinker with its processor, and what both need to know of each other."""

    model: Any
    processor: Any
    settings: Settings
    dtype: torch.dtype | None = None
    """What it was loaded as, and is saved as, whatever it was trained as; None leaves it as it is."""
    source: str | None = None
    """Where the towers can be had again if they leave memory; None: they must stay."""

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
    def special_tokens(self) -> dict[int, str]:
        """Tokens that are no text, by id. The tags of a completion are text, even where each is a token of its own."""
        added = {index: token.content for index, token in self.tokenizer.added_tokens_decoder.items()}
        special = dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))
        return {index: text for index, text in (added | special).items() if text not in TAGS}

    @property
    def forbidden_ids(self) -> list[int]:
        """Special tokens that must never be sampled: a media token in a completion breaks the positions."""
        return sorted(set(self.special_tokens) - set(self.eos_ids))

    def towers(self) -> list[nn.Module]:
        """The vision and the audio tower, projections included."""
        return [self.model.model.visual, self.model.model.audio_tower]

    def freeze_towers(self, frozen: bool = True) -> None:
        """Exclude the towers from training (or include them again)."""
        for tower in self.towers():
            tower.requires_grad_(not frozen)

    def save(self, folder: Path | str, state: dict[str, torch.Tensor] | None = None) -> None:
        """Write weights (safetensors), processor and settings to a folder that `load` reads.

        Args:
            folder: made if absent.
            state: the language model's weights, where they had to be gathered from several processes.
        """
        if state is None and self.dtype is not None:
            self.model.to(self.dtype)
        self.model.save_pretrained(folder, state_dict=whole_state(self.model, state))
        self.processor.save_pretrained(folder)
        write_settings(folder, self.settings)


def write_settings(folder: Path | str, settings: Settings) -> None:
    """Write `mer_r1.json` beside a checkpoint."""
    (Path(folder) / SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")


def load(
    path: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    towers: bool = True,
    attention: str | None = None,
) -> Omni:
    """Load a thinker: a local folder or a hub name (full checkpoints work; their talker is left out).

    Args:
        path: folder or hub name.
        dtype: torch dtype, or "auto" for the checkpoint's own.
        device: where to put it; None leaves it on the CPU.
        towers: False leaves the towers in the checkpoint until they are needed (`towers`).
        attention: the library's attention implementation ("sdpa", "flash_attention_2"); None for its own choice.

    Raises:
        UserError: if the folder is missing or holds no thinker of a known family (`families`).
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
        if architecture not in FAMILIES:
            raise ValueError(f"it holds a {architecture} model")
        processor = AutoProcessor.from_pretrained(path)
        kind: Any = FAMILIES[architecture].model
        with nullcontext() if towers else without_towers(kind):
            model, report = kind.from_pretrained(
                path, dtype=dtype, attn_implementation=attention, output_loading_info=True
            )
        if absent := sorted(report["missing_keys"]):  # the library would go on with random ones
            raise ValueError(f"{len(absent)} weights are not in it, the first is {absent[0]}")
        if not towers:
            bind(model, TowerWeights(path, model.dtype))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"cannot load {path} as a Qwen2.5-Omni or Qwen3-Omni thinker: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(processor, FAMILIES[architecture].processor):
        name = FAMILIES[architecture].name
        raise UserError(f"cannot load {path}: its processor is a {type(processor).__name__}, expected {name}'s")
    _repair(processor)
    source = None if towers else str(path)
    return Omni(model.to(device) if device else model, processor, settings, model.dtype, source)


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


def _repair(processor: Any) -> None:
    # The processor class carries a frame size of its own that overrides the video processor's, and loses an instance's
    # override when saved: hand the video processor's own size on, every time.
    size = processor.video_processor.size
    processor.videos_kwargs = {"size": {"shortest_edge": size["shortest_edge"], "longest_edge": size["longest_edge"]}}
    processor.tokenizer.padding_side = "left"


def tiny(texts: Iterable[str], config: TinyConfig | None = None, seed: int = 0, family: Family = QWEN25) -> Omni:
    """Build an untrained tiny thinker and train its tokenizer.

    Args:
        texts: what the tokenizer learns its merges from.
        config: sizes; the defaults give about 3 M parameters.
        seed: of the weights.
        family: whose classes it has.
    """
    config = config or TinyConfig()
    processor = make_processor(_tiny_tokenizer(texts, config, family), config, family)
    torch.manual_seed(seed)
    return make_thinker(processor, config, family)


def make_thinker(
    processor: Any, config: TinyConfig, family: Family = QWEN25, text: dict[str, Any] | None = None
) -> Omni:
    """An untrained thinker around a processor.

    Args:
        processor: of `make_processor`.
        config: sizes.
        family: whose classes it has.
        text: fields of the language model's configuration that differ from the tiny policy's.
    """
    model = family.model(thinker_config(config, processor.tokenizer, family, text))
    _initialise(model)
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.config.architectures = [type(model).__name__]
    return Omni(model, processor, Settings(config.num_frames, config.max_seconds, "short"))


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
    # One token each, as Qwen3's: in pieces, "<think>" and "<answer>" end in the same one, and a small cold start then
    # teaches to reason behind either (docs/log.md).
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return tokenizer


def make_processor(tokenizer: Any, config: TinyConfig, family: Family = QWEN25) -> Any:
    """The family's processor for frames and sounds of these sizes, around a tokenizer that has its tokens."""
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
    _repair(processor)
    return processor


def _initialise(model: Any) -> None:
    # The library's standard deviation of 0.02 fits widths of thousands; at this width signals would die out.
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
