"""Outputs of the vision and audio towers for a clip, and their insertion at the placeholders of a prompt.

Shapes: B rows of L tokens, N vectors of a clip's channel, D hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mer_r1.model.families import audio_tokens, deepstack_added, family_of
from mer_r1.model.omni import thinker


def tower_features(model: Any, media: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Run the towers on the clips of a batch, all frames in one pass and all audio in another.

    Args:
        model: the thinker, with or without an adapter around it.
        media: tower inputs of each clip, from `prompts.media_tensors`.

    Returns:
        For each clip `video` (N, D) and `audio` (N, D), where it has them, and `video_deep` (layers, N, D) for models
        with deepstack (`families`).
    """
    model = thinker(model)
    features: list[dict[str, Tensor]] = [{} for _ in media]
    with_video = [row for row, tensors in enumerate(media) if "pixel_values_videos" in tensors]
    if with_video:
        for row, outputs in zip(with_video, _video_features(model, [media[row] for row in with_video]), strict=True):
            features[row] |= outputs
    with_audio = [row for row, tensors in enumerate(media) if "input_features" in tensors]
    if with_audio:
        mels = [media[row]["input_features"] for row in with_audio]
        for row, vectors in zip(with_audio, _audio_features(model, mels), strict=True):
            features[row]["audio"] = vectors
    return features


def _video_features(model: Any, media: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    pixels = torch.cat([tensors["pixel_values_videos"] for tensors in media]).to(model.device)
    grids = torch.cat([tensors["video_grid_thw"] for tensors in media]).to(model.device)
    output = model.get_video_features(pixels, grids, return_dict=True)
    features = [{"video": output.pooler_output[row]} for row in range(len(media))]
    if family_of(model).deepstack:
        for row, tensors in enumerate(features):
            tensors["video_deep"] = torch.stack([layer[row] for layer in output.deepstack_features])
    return features


def _audio_features(model: Any, mels: Sequence[Tensor]) -> Sequence[Tensor]:
    """Vectors (N, D) of each mel spectrogram (bins, frames); the spectrograms are padded to one length."""
    lengths = torch.tensor([mel.shape[-1] for mel in mels])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    padded = pad_sequence([mel.T.float() for mel in mels], batch_first=True).mT
    output = model.get_audio_features(padded.to(model.device), mask.to(model.device), return_dict=True)
    vectors: Sequence[Tensor] = output.last_hidden_state.split(audio_tokens(model, lengths).tolist())
    return vectors


@torch.no_grad()
def encode_media(model: Any, media: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Entries of the feature cache: tower outputs, and the grids that positions need.

    Args:
        model: the thinker, its towers frozen.
        media: tower inputs of each clip, from `prompts.media_tensors`.

    Returns:
        For each clip, where it has them: video (N, D), audio (N, D), video_grid_thw, video_second_per_grid, mel_frames,
        and its notes (`prompts.notes_of`).
    """
    entries = []
    for output, raw in zip(tower_features(model, media), media, strict=True):
        entry = {name: value.clone() for name, value in output.items()}
        entry |= {name: raw[name] for name in ("video_grid_thw", "video_second_per_grid", "notes") if name in raw}
        if "input_features" in raw:
            entry["mel_frames"] = torch.tensor(raw["input_features"].shape[-1])
        entries.append(entry)
    return entries


def embed(model: Any, input_ids: Tensor, media: Sequence[dict[str, Tensor]]) -> Tensor:
    """Token embeddings with the clips' vectors at their placeholders.

    Args:
        model: the thinker (unwrapped).
        input_ids: (B, L) tokens.
        media: media of each row; raw tower inputs are run through the towers here.

    Returns:
        (B, L, D) embeddings.

    Raises:
        ValueError: placeholders and vectors differ in number, or the model has deepstack (`families`), for which
            embeddings are not enough.
    """
    if family_of(model).deepstack:
        raise ValueError("this model's first layers take the frames too: call it within `media_embedded`")
    return _placed(model.config, input_ids, model.get_input_embeddings()(input_ids), _encoded(model, media))


@contextmanager
def media_embedded(model: Any, media: Sequence[dict[str, Tensor]]) -> Iterator[None]:
    """Context in which the model's own forward on `input_ids` puts the clips' vectors at their placeholders.

    Only that forward touches weights, so this works where weights are sharded over processes and gathered by the
    forward alone (ZeRO-3, FSDP2); `embed` does not.

    Args:
        model: the thinker (unwrapped); it may be called through its wrappers.
        media: media of the clips, in the order of their placeholders; raw tower inputs are run through the towers here.

    Raises:
        ValueError: in the forward, if placeholders and vectors differ in number.
    """
    features = _encoded(model, media)

    def place(_: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return _placed(model.config, args[0], output, features)

    handle = model.get_input_embeddings().register_forward_hook(place)
    try:
        with deepstack_added(model, features):
            yield
    finally:
        handle.remove()


def placeholder_ids(model: Any) -> list[int]:
    """Tokens that a clip's vectors replace: video and audio placeholder."""
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
