"""From a clip's tensors and a question to what the language model reads.

The towers turn a clip into a few dozen to a few hundred vectors; a prompt is token ids with placeholders where those
vectors go, and a time-height-width position for each token. Everything after the towers (SFT on cached features,
sampling, the loss) starts from a `Prompt`, so a clip passes the towers once however often it is used.

Shapes: P prompt tokens, T completion tokens, N vectors of a clip, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mer_r1.media import Media
from mer_r1.model import Omni

IGNORE = -100
"""Label of a token that is read but not learned."""


@dataclass(frozen=True)
class Prompt:
    """One prompt, ready for the language model.

    Attributes:
        input_ids: (P,) tokens, placeholders included.
        position_ids: (3, P) time, height, width.
        media: what goes where the placeholders stand: `video` and `audio` vectors (N, D) from frozen towers, or the raw
            tower inputs (see `media_tensors`) where the towers are trained.
    """

    input_ids: Tensor
    position_ids: Tensor
    media: dict[str, Tensor]

    @property
    def next_position(self) -> int:
        """Position of the first token after the prompt, the same in all three axes."""
        return int(self.position_ids.max()) + 1

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
        # A sound shorter than one token (4 mel frames) would have none, or crash: it is filled up with silence.
        missing = max(4 * extractor.hop_length, extractor.n_fft) - len(media.waveform)
        audio = extractor(
            [np.pad(media.waveform, (0, max(missing, 0)))],
            sampling_rate=media.sampling_rate,
            return_attention_mask=True,
            padding="longest",
            truncation=False,  # the length is limited where it is read, and said there
            return_tensors="pt",
        )
        tensors["input_features"] = audio["input_features"][0][:, audio["attention_mask"][0].bool()]
    return tensors


def num_tokens(omni: Omni, tensors: dict[str, Tensor]) -> dict[str, int]:
    """How many placeholders each channel takes."""
    counts = {"video": 0, "audio": 0}
    if "video_grid_thw" in tensors:
        counts["video"] = int(tensors["video_grid_thw"].prod()) // omni.model.spatial_merge_size**2
    if "mel_frames" in tensors or "input_features" in tensors:
        length = _mel_frames(tensors)
        counts["audio"] = int(omni.model.model.audio_tower._get_feat_extract_output_lengths(length)[1])
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
    conversation = [{"role": "user", "content": [*parts, {"type": "text", "text": _plain(omni, question)}]}]
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


def _plain(omni: Omni, text: str) -> str:
    # A subtitle that spells a special token must not become one.
    for token in omni.tokenizer.added_tokens_decoder.values():
        text = text.replace(token.content, " ")
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
    position_ids = torch.zeros(3, *size, dtype=torch.long)
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
        model: the thinker.
        media: of each clip, from `media_tensors`.

    Returns:
        Of each clip `video` (N, D) and `audio` (N, D), where it has them.
    """
    features: list[dict[str, Tensor]] = [{} for _ in media]
    device = model.device
    seen = [row for row, tensors in enumerate(media) if "pixel_values_videos" in tensors]
    if seen:
        pixels = torch.cat([media[row]["pixel_values_videos"] for row in seen]).to(device)
        grids = torch.cat([media[row]["video_grid_thw"] for row in seen]).to(device)
        vectors = model.get_video_features(pixels, grids, return_dict=True).pooler_output
        for row, vector in zip(seen, vectors, strict=True):
            features[row]["video"] = vector
    heard = [row for row, tensors in enumerate(media) if "input_features" in tensors]
    if heard:
        mels = [media[row]["input_features"] for row in heard]
        lengths = torch.tensor([mel.shape[-1] for mel in mels])
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        padded = torch.zeros(len(mels), mels[0].shape[0], mask.shape[1])
        for row, mel in enumerate(mels):
            padded[row, :, : mel.shape[-1]] = mel
        output = model.get_audio_features(padded.to(device), mask.to(device), return_dict=True).last_hidden_state
        sizes = model.model.audio_tower._get_feat_extract_output_lengths(lengths)[1].tolist()
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
        ValueError: if placeholders and vectors differ in number.
    """
    if any("pixel_values_videos" in tensors or "input_features" in tensors for tensors in media):
        media = tower_features(model, media)
    embeddings = model.get_input_embeddings()(input_ids)
    for channel, token_id in (("video", model.config.video_token_id), ("audio", model.config.audio_token_id)):
        vectors = [tensors[channel] for tensors in media if channel in tensors]
        mask = input_ids == token_id
        if not vectors and not mask.any():
            continue
        stacked = torch.cat(vectors).to(embeddings) if vectors else embeddings.new_zeros(0, embeddings.shape[-1])
        if int(mask.sum()) != len(stacked):
            raise ValueError(f"{int(mask.sum())} {channel} placeholders but {len(stacked)} {channel} vectors")
        embeddings = embeddings.masked_scatter(mask.unsqueeze(-1), stacked)
    return embeddings
