"""From a clip's tensors and a question to what the language model reads.

The towers turn a clip into a few dozen to a few hundred vectors; a prompt is token ids with placeholders where those
vectors go, and a time-height-width position for each token. Everything after the towers (SFT on cached features,
sampling, the loss) starts from a `Prompt`, so a clip passes the towers once however often it is used.

Shapes: P prompt tokens, T completion tokens, N vectors of a clip, D hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from mer_r1.data.media.read import Media
from mer_r1.model.families import audio_tokens, deepened, family_of
from mer_r1.model.omni import Omni

IGNORE = -100
"""Label of a token that is read but not learned."""


@dataclass(frozen=True)
class Prompt:
    """One prompt, ready for the language model.

    Attributes:
        input_ids: (P,) tokens, placeholders included.
        position_ids: (3, P) time, height, width; whole numbers, or fractions where the family has them.
        media: what goes where the placeholders stand: `video` and `audio` vectors (N, D) from frozen towers, or the raw
            tower inputs (see `media_tensors`) where the towers are trained.
    """

    input_ids: Tensor
    position_ids: Tensor
    media: dict[str, Tensor]

    @property
    def next_position(self) -> float:
        """Position of the first token after the prompt, the same in all three axes; whole where positions are."""
        return self.position_ids.max().item() + 1

    def extended(self, token_ids: Sequence[int]) -> "Prompt":
        """The prompt with text tokens appended (a prefilled completion)."""
        more = torch.tensor(list(token_ids), dtype=torch.long)
        positions = torch.arange(len(more)).expand(3, -1) + self.next_position
        return Prompt(torch.cat([self.input_ids, more]), torch.cat([self.position_ids, positions], dim=1), self.media)


def media_tensors(omni: Omni, media: Media) -> dict[str, Tensor]:
    """What the towers read: patches of the frames, the trimmed mel spectrogram, and their grids.

    Returns:
        pixel_values_videos (patches, pixels), video_grid_thw (1, 3), video_second_per_grid (1,) in seconds and
        input_features (mel bins, mel frames); the keys of a channel that the clip lacks are absent.
    """
    tensors: dict[str, Tensor] = {}
    if media.frames is not None:
        processor = omni.processor.video_processor
        video = processor([media.frames], return_tensors="pt", do_sample_frames=False)
        tensors["pixel_values_videos"] = video["pixel_values_videos"]
        tensors["video_grid_thw"] = video["video_grid_thw"]
        # The true rate of the sampled frames; a single frame spans the clip.
        fps = media.fps or 1.0 / max(media.seconds, 0.04)
        tensors["video_second_per_grid"] = torch.tensor([processor.temporal_patch_size / fps])
    if media.waveform is not None:
        extractor = omni.processor.feature_extractor
        sound = whole_frames(media.waveform, extractor)
        audio = extractor(
            [np.pad(sound, (0, extractor.n_fft))],  # the last frame looks beyond: at silence, as in a padded batch
            sampling_rate=media.sampling_rate,
            padding="longest",
            truncation=False,  # the length is limited where it is read, and said there
            return_tensors="pt",
        )
        tensors["input_features"] = audio["input_features"][0][:, : len(sound) // extractor.hop_length]
    return tensors


def whole_frames(waveform: np.ndarray, extractor: Any) -> np.ndarray:
    """The sound cut to whole mel frames, which every way of padding counts alike.

    Args:
        waveform: (S,) samples.
        extractor: the checkpoint's feature extractor.

    Returns:
        At least one token's worth (4 mel frames): shorter sounds, which would have none, are filled up with silence.
    """
    hop = extractor.hop_length
    least = -(-max(4 * hop, extractor.n_fft) // hop) * hop
    return np.pad(waveform, (0, max(least - len(waveform), 0)))[: max(least, len(waveform) // hop * hop)]


def num_tokens(omni: Omni, tensors: dict[str, Tensor]) -> dict[str, int]:
    """How many placeholders each channel takes."""
    counts = {"video": 0, "audio": 0}
    if "video_grid_thw" in tensors:
        counts["video"] = int(tensors["video_grid_thw"].prod()) // omni.model.spatial_merge_size**2
    if "mel_frames" in tensors or "input_features" in tensors:
        length = _mel_frames(tensors)
        counts["audio"] = int(audio_tokens(omni.model, length))
    return counts


def _mel_frames(tensors: dict[str, Tensor]) -> Tensor:
    return tensors["mel_frames"] if "mel_frames" in tensors else torch.tensor(tensors["input_features"].shape[-1])


def encode_prompt(omni: Omni, question: str, tensors: dict[str, Tensor]) -> Prompt:
    """Chat format with separate video and audio blocks, placeholders in the right number, positions.

    Args:
        omni: the model and its processor.
        question: the user's text.
        tensors: of the clip, from `media_tensors` or the feature cache; a channel it lacks has no block.
    """
    counts = num_tokens(omni, tensors)
    parts: list[dict[str, str]] = [{"type": channel} for channel in ("video", "audio") if counts[channel]]
    conversation = [{"role": "user", "content": [*parts, {"type": "text", "text": plain_text(omni, question)}]}]
    text = omni.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    for channel, token in (("video", omni.processor.video_token), ("audio", omni.processor.audio_token)):
        text = text.replace(token, token * counts[channel])
    ids = torch.tensor([omni.tokenizer(text)["input_ids"]])
    positions, _ = omni.model.get_rope_index(
        ids,
        video_grid_thw=tensors.get("video_grid_thw"),
        attention_mask=torch.ones_like(ids),
        audio_seqlens=_mel_frames(tensors).view(1) if counts["audio"] else None,
        second_per_grids=tensors.get("video_second_per_grid"),
    )
    return Prompt(ids[0], positions[:, 0], tensors)


def plain_text(omni: Omni, text: str) -> str:
    """The text without special tokens: a subtitle that spells one must not become one."""
    for token in omni.special_tokens.values():
        text = text.replace(token, " ")
    return text


def collate(prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], pad_id: int) -> dict[str, Any]:
    """Pad prompts on the left and completions on the right into one batch.

    Returns:
        input_ids, attention_mask, labels (B, P+T) with `IGNORE` outside the completions, position_ids (3, B, P+T) and
        media, the list of the prompts' media.
    """
    width = max(len(prompt.input_ids) for prompt in prompts)
    length = max((len(completion) for completion in completions), default=0)
    size = (len(prompts), width + length)
    input_ids = torch.full(size, pad_id)
    attention_mask = torch.zeros(size, dtype=torch.long)
    labels = torch.full(size, IGNORE)
    position_ids = torch.zeros(3, *size, dtype=prompts[0].position_ids.dtype)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        whole = prompt.extended(completion)
        start = width - len(prompt.input_ids)
        end = start + len(whole.input_ids)
        input_ids[row, start:end] = whole.input_ids
        attention_mask[row, start:end] = 1
        labels[row, width:end] = whole.input_ids[len(prompt.input_ids) :]
        position_ids[:, row, start:end] = whole.position_ids
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "position_ids": position_ids,
        "media": [prompt.media for prompt in prompts],
    }


def tower_features(model: Any, media: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Run the towers over the clips of a batch, all frames in one pass and all sounds in another.

    Args:
        model: the thinker, under an adapter or not.
        media: of each clip, from `media_tensors`.

    Returns:
        Of each clip `video` (N, D) and `audio` (N, D), where it has them, and `video_deep` (layers, N, D; `families`).
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    features: list[dict[str, Tensor]] = [{} for _ in media]
    device = model.device
    seen = [row for row, tensors in enumerate(media) if "pixel_values_videos" in tensors]
    if seen:
        pixels = torch.cat([media[row]["pixel_values_videos"] for row in seen]).to(device)
        grids = torch.cat([media[row]["video_grid_thw"] for row in seen]).to(device)
        output = model.get_video_features(pixels, grids, return_dict=True)
        for number, row in enumerate(seen):
            features[row]["video"] = output.pooler_output[number]
            if family_of(model).deepstack:
                features[row]["video_deep"] = torch.stack([layer[number] for layer in output.deepstack_features])
    heard = [row for row, tensors in enumerate(media) if "input_features" in tensors]
    if heard:
        mels = [media[row]["input_features"] for row in heard]
        lengths = torch.tensor([mel.shape[-1] for mel in mels])
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        padded = torch.zeros(len(mels), mels[0].shape[0], mask.shape[1])
        for row, mel in enumerate(mels):
            padded[row, :, : mel.shape[-1]] = mel
        output = model.get_audio_features(padded.to(device), mask.to(device), return_dict=True).last_hidden_state
        sizes = audio_tokens(model, lengths).tolist()
        for row, vector in zip(heard, output.split(sizes), strict=True):
            features[row]["audio"] = vector
    return features


@torch.no_grad()
def encode_media(model: Any, media: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The towers' outputs with the grids that positions need, and without the tower inputs: what the cache keeps.

    Args:
        model: the thinker, its towers frozen.
        media: of each clip, from `media_tensors`.

    Returns:
        Of each clip, where it has them: video (N, D), audio (N, D), video_grid_thw, video_second_per_grid, mel_frames.
    """
    entries = []
    for output, raw in zip(tower_features(model, media), media, strict=True):
        entry = {name: value.clone() for name, value in output.items()}
        entry |= {name: raw[name] for name in ("video_grid_thw", "video_second_per_grid") if name in raw}
        if "input_features" in raw:
            entry["mel_frames"] = torch.tensor(raw["input_features"].shape[-1])
        entries.append(entry)
    return entries


def embed(model: Any, input_ids: Tensor, media: Sequence[dict[str, Tensor]]) -> Tensor:
    """Token embeddings with the clips' vectors at their placeholders.

    Args:
        model: the thinker (unwrapped).
        input_ids: (B, L).
        media: one entry a row; rows without tower outputs are sent through the towers here.

    Returns:
        (B, L, D) embeddings.

    Raises:
        ValueError: if placeholders and vectors differ in number, or embeddings alone are not all (`families`).
    """
    if family_of(model).deepstack:
        raise ValueError("this model's deeper layers are told of the frames too: call it within `embedded`")
    return _placed(model.config, input_ids, model.get_input_embeddings()(input_ids), _encoded(model, media))


@contextmanager
def embedded(model: Any, media: Sequence[dict[str, Tensor]]) -> Iterator[None]:
    """Within, the model's own forward on `input_ids` puts the clips' vectors at their placeholders.

    Nothing but that forward touches a weight, so this works where weights are split over processes and gathered by the
    forward alone (ZeRO-3, FSDP2); `embed` does not.

    Args:
        model: the thinker (unwrapped); it may be called through whatever wraps it.
        media: of the clips, in the order of their placeholders; raw tower inputs are sent through the towers here.

    Raises:
        ValueError: in the forward, if placeholders and vectors differ in number.
    """
    features = _encoded(model, media)

    def place(_: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return _placed(model.config, args[0], output, features)

    handle = model.get_input_embeddings().register_forward_hook(place)
    try:
        with deepened(model, features):
            yield
    finally:
        handle.remove()


def placeholder_ids(model: Any) -> list[int]:
    """The tokens in whose places a clip's vectors go."""
    return [model.config.video_token_id, model.config.audio_token_id]


def _encoded(model: Any, media: Sequence[dict[str, Tensor]]) -> Sequence[dict[str, Tensor]]:
    raw = any("pixel_values_videos" in tensors or "input_features" in tensors for tensors in media)
    return tower_features(model, media) if raw else media


def _placed(config: Any, input_ids: Tensor, embeddings: Tensor, media: Sequence[dict[str, Tensor]]) -> Tensor:
    for channel, token_id in (("video", config.video_token_id), ("audio", config.audio_token_id)):
        vectors = [tensors[channel] for tensors in media if channel in tensors]
        mask = input_ids == token_id
        if not vectors and not mask.any():
            continue
        stacked = torch.cat(vectors).to(embeddings) if vectors else embeddings.new_zeros(0, embeddings.shape[-1])
        if int(mask.sum()) != len(stacked):
            raise ValueError(f"{int(mask.sum())} {channel} placeholders but {len(stacked)} {channel} vectors")
        embeddings = embeddings.masked_scatter(mask.unsqueeze(-1), stacked)
    return embeddings
