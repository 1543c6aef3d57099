"""Sizes of omni thinkers, and the parameters, multiply-adds and tokens that follow from them.

Loads no weights: the shapes of Qwen2.5-Omni are listed here, those of a local checkpoint are read from its files.
Every count is a sum over the matrices of the published architecture (transformers' Qwen2.5-Omni).

A multiply-add counts as 2 FLOPs. Norms, activations, biases and rotations are left out of the FLOPs (below 1 % at full
size) but not out of the parameters, which are exact.
"""

import json
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mer_r1.data.jsonl import read_object
from mer_r1.data.media.container import ClipLimits
from mer_r1.errors import UserError
from mer_r1.weights import model_path


@dataclass(frozen=True)
class Text:
    """The language model. `vocabulary` in tokens, `tied`: the head is the embedding."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def layer_matrices(self) -> int:
        """Weights of one layer's matrices."""
        attention = self.hidden * self.head_size * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def layer_parameters(self) -> int:
        """All weights of one layer."""
        return self.layer_matrices + self.head_size * (self.heads + 2 * self.kv_heads) + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """All weights: layers, last norm, embedding and, if it is not tied, head."""
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + self.hidden + tables

    def lora_parameters(self, rank: int) -> int:
        """Weights of adapters on the seven matrices of every layer."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        ends = 2 * (self.hidden + queries) + 2 * (self.hidden + keys) + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * ends

    def forward(self, new: float, past: float = 0, scored: float = 0) -> float:
        """FLOPs of a forward pass.

        Args:
            new: tokens that are computed, each attending to those before it.
            past: tokens that are attended to but not computed (a KV cache, a shared prefix).
            scored: tokens that the head computes logits for.
        """
        attention = 2 * self.layers * self.hidden * (past + new / 2)
        return 2 * (new * (self.layers * self.layer_matrices + attention) + scored * self.hidden * self.vocabulary)


@dataclass(frozen=True)
class Vision:
    """The vision tower. `window` in pixels; `full_layers` attend over a whole frame, the others within a window."""

    hidden: int
    intermediate: int
    layers: int
    full_layers: int
    patch: int
    merge: int
    window: int
    out: int
    temporal: int = 2
    channels: int = 3

    @property
    def _patch_weights(self) -> int:
        return self.channels * self.temporal * self.patch**2 * self.hidden

    @property
    def _merged(self) -> int:
        return self.hidden * self.merge**2

    @property
    def parameters(self) -> int:
        """All weights, the merger included."""
        size, inner = self.hidden, self.intermediate
        block = 4 * size**2 + 4 * size + 3 * size * inner + 2 * inner + size + 2 * size
        merger = size + self._merged**2 + self._merged + self._merged * self.out + self.out
        return self._patch_weights + self.layers * block + merger

    def frame_tokens(self, height: int, width: int, least: int, most: int) -> int:
        """Tokens of one time step of frames, which the processor scales to whole tokens.

        Args:
            height: height of a frame in pixels, as it comes from the media layer.
            width: its width.
            least: pixels below which the processor enlarges a frame.
            most: pixels above which it shrinks one.
        """
        side = self.patch * self.merge
        rows, columns = round(height / side), round(width / side)
        if rows * columns * side**2 > most:
            scale = math.sqrt(height * width / most)
            rows, columns = (max(1, math.floor(size / scale / side)) for size in (height, width))
        elif rows * columns * side**2 < least:
            scale = math.sqrt(least / (height * width))
            rows, columns = (math.ceil(size * scale / side) for size in (height, width))
        return rows * columns

    def forward(self, patches: float, steps: int) -> float:
        """FLOPs for a video of that many patches in that many time steps (`temporal` frames each)."""
        block = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate
        frame = patches / max(steps, 1)
        window = min(frame, (self.window / self.patch) ** 2)
        seen = self.full_layers * frame + (self.layers - self.full_layers) * window
        merger = self._merged**2 + self._merged * self.out
        each = self._patch_weights + self.layers * block + 2 * self.hidden * seen
        return 2 * (patches * each + patches / self.merge**2 * merger)


@dataclass(frozen=True)
class Audio:
    """The audio tower. `chunk`: mel frames that attend to each other; four mel frames become one token."""

    hidden: int
    intermediate: int
    layers: int
    mels: int
    chunk: int
    out: int

    @property
    def parameters(self) -> int:
        """All weights, the projection included."""
        size = self.hidden
        convolutions = 3 * self.mels * size + size + 3 * size**2 + size
        block = 4 * size**2 + 3 * size + 2 * size * self.intermediate + self.intermediate + size + 4 * size
        return convolutions + self.layers * block + 2 * size + size * self.out + self.out + 2 * self.out

    def forward(self, mel_frames: float) -> float:
        """FLOPs for audio of that many mel frames."""
        size, half = self.hidden, mel_frames / 2
        block = 4 * size**2 + 2 * size * self.intermediate
        convolutions = mel_frames * 3 * self.mels * size + half * 3 * size**2
        seen = min(half, self.chunk / 2)
        return 2 * (convolutions + half * self.layers * (block + 2 * size * seen) + half / 2 * size * self.out)


@dataclass(frozen=True)
class Shape:
    """A thinker: language model and both towers, and what they are given of a clip.

    Attributes:
        name: display name.
        text: its language model.
        vision: its vision tower.
        audio: its audio tower.
        mels_per_second: mel frames of a second of audio.
        least_pixels: pixels below which its processor enlarges a frame.
        most_pixels: pixels above which its processor shrinks one.
        limits: what it takes of each clip.
    """

    name: str
    text: Text
    vision: Vision
    audio: Audio
    mels_per_second: float = 100.0
    least_pixels: int = 56 * 56
    most_pixels: int = 16384 * 28 * 28
    limits: ClipLimits = field(default_factory=ClipLimits)

    def video_tokens(self, height: int, width: int) -> int:
        """Tokens of a clip whose frames have this size in its file."""
        size = self.limits.limits().frame_size(height, width)
        steps = -(-self.limits.num_frames // self.vision.temporal)
        return steps * self.vision.frame_tokens(*size, self.least_pixels, self.most_pixels)

    def mel_frames(self, seconds: float) -> float:
        """Mel frames of a clip of that length; four make a token."""
        return min(seconds, self.limits.max_seconds) * self.mels_per_second

    @property
    def tower_parameters(self) -> int:
        """Weights of both towers."""
        return self.vision.parameters + self.audio.parameters

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.text.parameters + self.tower_parameters


def _qwen(name: str, text: Text) -> Shape:
    vision = Vision(1280, 3420, 32, 4, patch=14, merge=2, window=112, out=text.hidden)
    return Shape(name, text, vision, Audio(1280, 5120, 32, mels=128, chunk=200, out=text.hidden))


# The 7B's text and audio sizes are the defaults of transformers' Qwen2.5-Omni configuration (tested against it), the
# 3B's text sizes those that Qwen2.5-3B publishes; the vision tower is Qwen2.5-VL's, of 675 M parameters in the
# technical report (arXiv 2503.20215). Neither checkpoint ties its head. From documents, not from the checkpoints. The
# bounds of a frame are those of the hub's preprocessor_config.json, which lists no other for video; copies of that file
# in public repositories agree on them.
SHAPES = {
    "Qwen/Qwen2.5-Omni-7B": _qwen("Qwen2.5-Omni-7B", Text(3584, 18944, 28, 28, 4, 152064, tied=False)),
    "Qwen/Qwen2.5-Omni-3B": _qwen("Qwen2.5-Omni-3B", Text(2048, 11008, 36, 16, 2, 151936, tied=False)),
}
"""Shapes known without a checkpoint, by hub name."""


def shape_of(model: str) -> Shape:
    """The shape of a model: from the config.json of a local folder, or from `SHAPES` by hub name.

    Raises:
        UserError: if it is neither, or the configuration lacks a size.
    """
    file = Path(model_path(model)) / "config.json"
    if file.is_file():
        try:
            shape = from_config(json.loads(file.read_text(encoding="utf-8")), model)
            return replace(shape, **_inputs(file.parent))
        except Exception as error:  # whatever stands in it
            raise UserError(f"{file}: cannot read a thinker's sizes ({error!r})") from error
    if model in SHAPES:
        return SHAPES[model]
    raise UserError(
        f"no sizes for {model!r}: expected a folder with config.json or one of {', '.join(SHAPES)} (plan: --shape)"
    )


def _inputs(folder: Path) -> dict[str, Any]:
    """What a checkpoint's files say of its inputs, as fields of `Shape`; a later file overrides an earlier one."""
    found: dict[str, Any] = {"least_pixels": 128 * 28**2, "most_pixels": 768 * 28**2}  # the library's, if no file does
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"):
        said = read_object(folder / name) if (folder / name).is_file() else {}
        audio, video = said.get("feature_extractor", said), said.get("video_processor", said)
        if "hop_length" in audio:
            found["mels_per_second"] = float(audio.get("sampling_rate", 16000)) / float(audio["hop_length"])
        size = video.get("size") or {}
        found["least_pixels"] = video.get("min_pixels") or size.get("shortest_edge") or found["least_pixels"]
        found["most_pixels"] = video.get("max_pixels") or size.get("longest_edge") or found["most_pixels"]
    own = read_object(folder / "mer_r1.json") if (folder / "mer_r1.json").is_file() else {}
    limits = ClipLimits(**{item.name: own[item.name] for item in fields(ClipLimits) if item.name in own})
    return {**found, "limits": limits}


def from_config(config: dict[str, Any], name: str) -> Shape:
    """The shape in a configuration of Qwen2.5-Omni or its thinker.

    Raises:
        KeyError: if a size is missing.
    """
    config = config.get("thinker_config", config)
    text, vision, audio = config["text_config"], config["vision_config"], config["audio_config"]
    return Shape(
        name,
        Text(
            text["hidden_size"],
            text["intermediate_size"],
            text["num_hidden_layers"],
            text["num_attention_heads"],
            text["num_key_value_heads"],
            text["vocab_size"],
            tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        ),
        Vision(
            vision["hidden_size"],
            vision["intermediate_size"],
            vision["depth"],
            len(vision["fullatt_block_indexes"]),
            patch=vision["patch_size"],
            merge=vision["spatial_merge_size"],
            window=vision["window_size"],
            out=vision["out_hidden_size"],
            temporal=vision.get("temporal_patch_size", 2),
            channels=vision.get("in_channels", 3),
        ),
        Audio(
            audio["d_model"],
            audio["encoder_ffn_dim"],
            audio["encoder_layers"],
            mels=audio["num_mel_bins"],
            chunk=2 * audio["n_window"],
            out=audio["output_dim"],
        ),
    )
