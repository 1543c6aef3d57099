"""What the towers make of a clip, and how it takes the placeholders' places in the prompt."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from mer_r1.model.families import audio_tokens, deepened, family_of


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
        raise ValueError("this model's deeper layers are told of the frames too: call it within `media_embedded`")
    return _placed(model.config, input_ids, model.get_input_embeddings()(input_ids), _encoded(model, media))


@contextmanager
def media_embedded(model: Any, media: Sequence[dict[str, Tensor]]) -> Iterator[None]:
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
