"""The policy: a Qwen2.5-Omni or Qwen3-Omni thinker with its processor, loaded and saved as whole checkpoints.

`load` reads a local folder or a hub name and keeps the thinker only (no talker). Models built from scratch come from
`tiny`, with the same classes and code paths.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoProcessor, BitsAndBytesConfig

from mer_r1.data.jsonl import read_object, write_atomically
from mer_r1.data.media.container import ClipLimits
from mer_r1.emotions.set_task import SetTask
from mer_r1.emotions.thinking import TAGS
from mer_r1.errors import UserError, brief, printable
from mer_r1.model.absent_towers import TowerWeights, bind, whole_state, without_towers
from mer_r1.model.families import FAMILIES, QWEN25
from mer_r1.weights import model_path

logger = logging.getLogger(__name__)

SETTINGS_FILE = "mer_r1.json"


@dataclass(frozen=True)
class Settings(SetTask, ClipLimits):
    """What the checkpoint's own files lack, the task and preprocessing; kept beside them in mer_r1.json.

    Attributes:
        form: form of the completions (`two_answers`): "once" (think, answer) or "twice" (answer, think, answer).
        must_reason: whether sampling keeps slow thinking from leaving its think block empty (`generation.Openings`);
            for the form "once". Fast thinking, whose empty think block is prefilled, is not concerned.
    """

    form: Literal["once", "twice"] = "once"
    must_reason: bool = False

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        if self.form not in ("once", "twice"):
            raise ValueError(f"form: got {self.form!r}, expected once or twice")
        if self.must_reason and self.form == "twice":
            raise ValueError("must_reason is for the form once, whose completions begin with the think block")
        SetTask.__post_init__(self)
        ClipLimits.__post_init__(self)


@dataclass
class Omni:
    """A thinker with its processor and settings."""

    model: Any
    processor: Any
    settings: Settings
    dtype: torch.dtype | None = None
    """Dtype of the checkpoint, in which the model is saved after training in another; None keeps the current one."""
    source: str | None = None
    """Checkpoint from which the towers can be restored after they are freed; None if they must stay in memory."""

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """Device of the language model."""
        return self.model.device

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end a completion."""
        eos = self.model.generation_config.eos_token_id
        listed = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        return sorted({*listed, self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids("<|im_end|>")})

    @property
    def special_tokens(self) -> dict[int, str]:
        """Tokens that are not text, by id. The tags of a completion are text, even where each is one token."""
        added = {index: token.content for index, token in self.tokenizer.added_tokens_decoder.items()}
        special = dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))
        return {index: text for index, text in (added | special).items() if text not in TAGS}

    @property
    def forbidden_ids(self) -> list[int]:
        """Special tokens that must not be sampled: a media token in a completion breaks the positions."""
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
            folder: output folder; created if absent.
            state: the language model's weights, if they were gathered from several processes.
        """
        kind = type(self.model)
        if kind.__name__.startswith("FSDP"):  # FSDP2 names the class anew; the library finds a model's names by it
            self.model.__class__ = kind.__bases__[1]
        if self.dtype is not None:
            self.model.to(self.dtype)
            if state is not None:
                kept = set(self.model._tied_weights_keys or ()) if self.model.config.tie_word_embeddings else ()
                state = {
                    name: value.to(self.dtype) if value.is_floating_point() else value
                    for name, value in state.items()
                    if name not in kept
                }
        self.model.save_pretrained(folder, state_dict=whole_state(self.model, state))
        self.processor.save_pretrained(folder)
        write_settings(folder, self.settings)
        make_readable(folder)


def make_readable(folder: Path | str) -> None:
    """Let everybody read a model's files: safetensors writes weights for their owner alone."""
    for file in Path(folder).iterdir():
        if file.is_file() and file.stat().st_mode & 0o044 != 0o044:
            file.chmod(0o644)


def write_settings(folder: Path | str, settings: Settings) -> None:
    """Write `mer_r1.json` beside a checkpoint; what is None is left out."""
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    write_atomically(Path(folder) / SETTINGS_FILE, json.dumps(given, indent=2) + "\n")


def load(
    path: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    towers: bool = True,
    attention: str | None = None,
    limits: Mapping[str, Any] | None = None,
    four_bit: bool = False,
) -> Omni:
    """Load a thinker: a local folder or a hub name (full checkpoints work; their talker is left out).

    Args:
        path: folder, hub name, or the name of a shipped model (`weights`).
        dtype: torch dtype, or "auto" for the checkpoint's own.
        device: target device; None leaves it on the CPU.
        towers: whether to load the towers; False leaves them in the checkpoint until they are needed
            (`absent_towers`).
        attention: the library's attention implementation ("sdpa", "flash_attention_2"); None for its own choice.
        limits: fields of `ClipLimits` that replace the checkpoint's own.
        four_bit: whether the language model's matrices are held in 4 bits (NF4, bitsandbytes), to answer, not to train.

    Raises:
        UserError: the folder is missing or holds no thinker of a known family (`families`).
    """
    path, folder = model_path(path), model_folder(path)
    settings = replace(read_settings(folder), **(limits or {}))
    with loading(path, "a Qwen2.5-Omni or Qwen3-Omni thinker"):
        # Checked first: for another architecture's folder the library would build a random thinker of the full size.
        architecture = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
        if architecture not in FAMILIES:
            raise ValueError(f"it holds a {architecture} model")
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        if len(processor.tokenizer.get_vocab()) <= len(processor.tokenizer.added_tokens_decoder):
            raise ValueError("its tokenizer has no words")  # for a missing file the library makes an empty one
        kind: Any = FAMILIES[architecture].model
        placed = _four_bit(FAMILIES[architecture].name, device) if four_bit else {}
        with _without_report(), nullcontext() if towers else without_towers(kind):
            model, report = kind.from_pretrained(
                path, dtype=dtype, attn_implementation=attention, output_loading_info=True, **placed
            )
        # What the library notes to undo when it saves: a thinker is saved under a thinker's names, whatever it was
        # loaded from, and under ZeRO-3 the library notes renamings that it never made.
        model._weight_conversions = None
        _require_tokens(folder / "generation_config.json", processor.tokenizer, model)
        if absent := sorted(report["missing_keys"]):  # the library would continue with random ones
            raise ValueError(f"{len(absent)} weights are not in it, the first is {absent[0]}")
        if not towers:
            bind(model, TowerWeights(path, model.config.dtype))
    if not isinstance(processor, FAMILIES[architecture].processor):
        name = FAMILIES[architecture].name
        raise UserError(f"cannot load {path}: its processor is a {type(processor).__name__}, expected {name}'s")
    _require_placeholders(path, processor, model.config)
    set_frame_size(processor)
    source = None if towers else path
    held = model.to(device) if device and not four_bit else model
    # `model.dtype` would be the one in which ZeRO-3 holds the weights.
    return Omni(held, processor, settings, model.config.dtype, source)


def model_folder(path: str | Path) -> Path:
    """Where a model is on this machine; for a hub name a path that need not exist.

    Raises:
        UserError: a folder without a model.
    """
    name = model_path(path)
    folder = Path(name)
    if (folder.is_absolute() or name.startswith(".") or folder.exists()) and not (folder / "config.json").is_file():
        raise UserError(
            f"no model at {name}: expected a folder with config.json, or a hub name such as Qwen/Qwen2.5-Omni-7B"
        )
    return folder


def _four_bit(family: str, device: str | None) -> dict[str, Any]:
    """Arguments of the library that hold the matrices of the language model in 4 bits; towers and head stay whole."""
    if find_spec("bitsandbytes") is None:
        raise UserError("4-bit weights need bitsandbytes: install mer-r1 with the extra 4bit")
    if family != QWEN25.name:
        raise UserError(f"4-bit weights are for {QWEN25.name}: the experts of {family} are not held in layers")
    held: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    held["bnb_4bit_compute_dtype"] = torch.bfloat16 if (device or "cpu").startswith("cuda") else torch.float32
    whole = [rf".*{name}" for name in ("visual", "audio_tower", "lm_head")]
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=whole, **held)
    return {"quantization_config": config, "device_map": {"": device or "cpu"}}


def choose_device(device: str | None = None) -> str:
    """The device that a model answers on: the named one, else the first GPU, else the CPU; it is logged.

    Raises:
        UserError: there is no such device here.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except Exception as error:  # a library without that device, a driver that is not there, a misspelt name
        raise UserError(f"--device {printable(name)}: not here ({' '.join(str(error).split())[:200]})") from None
    about = torch.cuda.get_device_name(name) if name.startswith("cuda") else f"{torch.get_num_threads()} threads"
    logger.info("the model runs on %s (%s)%s", name, about, "" if device else ", chosen by itself: see --device")
    return name


def _require_tokens(file: Path, tokenizer: Any, model: Any) -> None:
    # For a damaged file the library makes one of its own without a word.
    if file.is_file():
        read_object(file)
    ends, size = model.generation_config.eos_token_id, model.get_input_embeddings().num_embeddings
    for token in (*(ends if isinstance(ends, list) else [ends]), *tokenizer.get_vocab().values()):
        if token is not None and (type(token) is not int or not 0 <= token < size):
            raise ValueError(f"it names the token {brief(token)}, expected numbers from 0 to {size - 1}")


def _require_placeholders(path: str | Path, processor: Any, config: Any) -> None:
    for channel in ("video", "audio"):
        named = getattr(config, f"{channel}_token_id")
        known = processor.tokenizer.convert_tokens_to_ids(getattr(processor, f"{channel}_token"))
        if type(named) is not int or named != known:
            raise UserError(
                f"cannot load {path}: its configuration names token {brief(named)} for {channel}, its tokenizer {known}"
            )


@contextmanager
def _without_report() -> Iterator[None]:
    # The library prints a table of all weights that are missing; one line names the first (`load`).
    log = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(is_other)
    try:
        yield
    finally:
        log.removeFilter(is_other)


@contextmanager
def loading(path: str | Path, what: str) -> Iterator[None]:
    """Turn whatever a library raises over a model's files, which may be damaged in any way, into one line.

    Raises:
        UserError: naming the path, what was expected there, and the library's reason.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        if "trust_remote_code" in reason:  # the library's advice is to run it
            reason = "it brings code of its own, which is never run"
        raise UserError(f"cannot load {path} as {what}: {' '.join(reason.split())}") from error


def read_settings(folder: Path) -> Settings:
    """Read the settings beside a checkpoint; the defaults if it has none (for example for a hub name).

    Raises:
        UserError: `mer_r1.json` cannot be read or holds something else.
    """
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return Settings()
    content = read_object(file)
    try:
        return Settings(**content)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file}: {error}; expected the settings of a model folder, as `mer-r1 build` writes them"
        ) from error


def task_of(model: str | Path | None) -> SetTask:
    """The task that a model answers, from the settings in its folder; emotions for a model that is elsewhere."""
    return read_settings(Path(model_path(model))) if model is not None else SetTask()


def set_frame_size(processor: Any) -> None:
    """Make a processor use its video processor's frame size, and pad on the left.

    The processor class has a frame size of its own that overrides the video processor's, and an instance's override is
    lost when it is saved: needed after every load.
    """
    size = processor.video_processor.size
    processor.videos_kwargs = {"size": {"shortest_edge": size["shortest_edge"], "longest_edge": size["longest_edge"]}}
    processor.tokenizer.padding_side = "left"


def thinker(model: Any) -> Any:
    """The thinker itself, with or without an adapter around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
