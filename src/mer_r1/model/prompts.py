"""Prompts: a clip's tensors and a question as token ids, placeholders and positions for the language model.

The towers turn a clip into a few dozen to a few hundred vectors (`tower_outputs`); a prompt is token ids with
placeholders for those vectors, and a time-height-width position for each token. Everything after the towers (SFT on
cached features, sampling, the loss) starts from a `Prompt`, so a clip runs through the towers only once.

Here: tower inputs of a clip (`media_tensors`), its prompt (`encode_prompt`), batches (`collate`), and the prompt as
TRL's messages (`conversation`).

Shapes: P prompt tokens, T completion tokens, N vectors of a clip, D hidden size.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mer_r1.data.clip import Clip
from mer_r1.data.media.read import Media
from mer_r1.emotions.thinking import CHANNELS, question
from mer_r1.errors import UserError
from mer_r1.model.families import QWEN3, QWEN25, audio_tokens
from mer_r1.model.omni import Omni
from mer_r1.model.tiny import chat_template

IGNORE = -100
"""Label of a token that is not part of the loss."""
_TRIAL = """
import json, resource, sys, time
from transformers.utils.chat_template_utils import render_jinja_template
template, several, tokens = json.load(sys.stdin)
seconds = int(time.process_time()) + 4
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
for turns in several:
    try:
        text = render_jinja_template([turns], chat_template=template, add_generation_prompt=True, **tokens)
        if len(str(text)) > 10**7:
            sys.exit(9)
    except MemoryError:
        sys.exit(9)
    except Exception:
        pass  # an error that the template gives in `chat_text` too
"""
_ONE_CLIP = [
    [*video, *audio, {"type": "text", "text": "?"}]
    for video in ([], [{"type": "video"}])
    for audio in ([], [{"type": "audio"}])
]
"""Contents of a question about a clip, by the channels that it has."""
_template_ends: dict[tuple[str, str], bool] = {}


@dataclass(frozen=True)
class Prompt:
    """One prompt, ready for the language model.

    Attributes:
        input_ids: (P,) tokens, placeholders included.
        position_ids: (3, P) time, height, width; integers, or floats where the family has fractions.
        media: tensors for the placeholders: `video` and `audio` vectors (N, D) from frozen towers, or the raw tower
            inputs (see `media_tensors`) where the towers are trained.
    """

    input_ids: Tensor
    position_ids: Tensor
    media: dict[str, Tensor]

    @property
    def next_position(self) -> float:
        """Position of the first token after the prompt, the same on all three axes; an integer where positions are."""
        return self.position_ids.max().item() + 1

    def extended(self, token_ids: Sequence[int]) -> "Prompt":
        """The prompt with text tokens appended (a prefilled completion)."""
        more = torch.tensor(list(token_ids), dtype=torch.long)
        positions = torch.arange(len(more)).expand(3, -1) + self.next_position
        return Prompt(torch.cat([self.input_ids, more]), torch.cat([self.position_ids, positions], dim=1), self.media)


def absent_channels(media: Mapping[str, Tensor], subtitle: str | None) -> list[str]:
    """The channels (`emotions.thinking.CHANNELS`) that a clip lacks, from its tensors and its subtitle.

    >>> absent_channels({"audio": torch.zeros(3, 8)}, " ")
    ['video', 'subtitle']
    """
    has = {
        "video": not {"video", "pixel_values_videos"}.isdisjoint(media),
        "audio": not {"audio", "input_features"}.isdisjoint(media),
        "subtitle": bool((subtitle or "").strip()),
    }
    return [channel for channel in CHANNELS if not has[channel]]


def media_tensors(omni: Omni, media: Media) -> dict[str, Tensor]:
    """Tower inputs of a clip: patches of the frames, the trimmed mel spectrogram, and their grids.

    Returns:
        pixel_values_videos (patches, pixels), video_grid_thw (1, 3), video_second_per_grid (1,) in seconds and
        input_features (mel bins, mel frames); the keys of a channel that the clip lacks are absent. Also `notes`, if
        there are any, see `notes_of`.

    Raises:
        UserError: the checkpoint's preprocessing fails.
    """
    try:
        return _media_tensors(omni, media)
    except Exception as error:  # its sizes may be anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the model's preprocessing cannot be used: {said:.200}") from error


def _media_tensors(omni: Omni, media: Media) -> dict[str, Tensor]:
    tensors = notes_tensor(media.notes)
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
            [np.pad(sound, (0, extractor.n_fft))],  # the last frame reaches into silence, as in a padded batch
            sampling_rate=media.sampling_rate,
            padding="longest",
            truncation=False,  # `read_media` limits the length, with a note
            return_tensors="pt",
        )
        tensors["input_features"] = audio["input_features"][0][:, : len(sound) // extractor.hop_length]
    return tensors


def notes_tensor(notes: Sequence[str]) -> dict[str, Tensor]:
    """The entry `notes` of a clip's tensors: the bytes of a JSON list. Empty without notes."""
    return {"notes": torch.tensor(list(json.dumps(notes).encode()), dtype=torch.uint8)} if notes else {}


def notes_of(tensors: Mapping[str, Tensor]) -> list[str]:
    """What the media layer noted about a clip (`Media.notes`), from its tensors."""
    return list(json.loads(bytes(tensors["notes"].tolist()))) if "notes" in tensors else []


def whole_frames(waveform: np.ndarray, extractor: Any) -> np.ndarray:
    """Cut audio to whole mel frames, so that every kind of padding gives the same number.

    Args:
        waveform: (S,) samples.
        extractor: the checkpoint's feature extractor.

    Returns:
        (S',) samples, at least one token's worth (4 mel frames): shorter audio is padded with silence.
    """
    hop = extractor.hop_length
    least = -(-max(4 * hop, extractor.n_fft) // hop) * hop
    return np.pad(waveform, (0, max(least - len(waveform), 0)))[: max(least, len(waveform) // hop * hop)]


def num_tokens(omni: Omni, tensors: dict[str, Tensor]) -> dict[str, int]:
    """Number of placeholders of each channel."""
    counts = {"video": 0, "audio": 0}
    if "video_grid_thw" in tensors:
        counts["video"] = int(tensors["video_grid_thw"].prod()) // omni.model.spatial_merge_size**2
    if "mel_frames" in tensors or "input_features" in tensors:
        counts["audio"] = int(audio_tokens(omni.model, _mel_frames(tensors)))
    return counts


def _mel_frames(tensors: dict[str, Tensor]) -> Tensor:
    return tensors["mel_frames"] if "mel_frames" in tensors else torch.tensor(tensors["input_features"].shape[-1])


def encode_prompt(omni: Omni, question: str, tensors: dict[str, Tensor]) -> Prompt:
    """Encode a question about a clip: chat format, one block of placeholders per channel, positions.

    Args:
        omni: the model and its processor.
        question: the user's text.
        tensors: tensors of the clip, from `media_tensors` or the feature cache; a missing channel has no block.

    Raises:
        UserError: the checkpoint's template or configuration does not fit its tokens.
    """
    counts = num_tokens(omni, tensors)
    parts: list[dict[str, str]] = [{"type": channel} for channel in ("video", "audio") if counts[channel]]
    conversation = [{"role": "user", "content": [*parts, {"type": "text", "text": plain_text(omni, question)}]}]
    text = chat_text(omni.processor, conversation)
    for channel, token in (("video", omni.processor.video_token), ("audio", omni.processor.audio_token)):
        if (found := text.count(token)) != (counts[channel] > 0):
            raise UserError(f"the model's chat template cannot be used: {found} places for {channel}")
        text = text.replace(token, token * counts[channel])
    ids = torch.tensor([omni.tokenizer(text)["input_ids"]])
    try:
        positions, _ = omni.model.get_rope_index(
            ids,
            video_grid_thw=tensors.get("video_grid_thw"),
            attention_mask=torch.ones_like(ids),
            audio_seqlens=_mel_frames(tensors).view(1) if counts["audio"] else None,
            second_per_grids=tensors.get("video_second_per_grid"),
        )
    except Exception as error:  # its numbers of special tokens may be anything
        raise UserError(f"the model's configuration gives no positions: {str(error) or error!r:.200}") from error
    return Prompt(ids[0], positions[:, 0], tensors)


def chat_text(owner: Any, turns: list[dict[str, Any]]) -> str:
    """Turns as text, by the chat template of a processor or tokenizer, up to the model's turn.

    A template is a program from the checkpoint. The library's sandbox bounds neither its time nor its memory: so it is
    tried in a process of its own, once for these turns and questions about clips, and again for turns of another shape.

    Raises:
        UserError: the template fails, or does not end within the bounds.
    """
    template = owner.chat_template
    template = str(template.get("default") if isinstance(template, dict) else template)
    if (template, _shape(turns)) not in _template_ends and template not in map(chat_template, (QWEN25, QWEN3)):
        tokens = getattr(owner, "tokenizer", owner).special_tokens_map
        tried = [turns, *([{"role": "user", "content": parts}] for parts in _ONE_CLIP)]
        ends = _ends(json.dumps([template, tried, tokens]))
        _template_ends.update({(template, _shape(one)): ends for one in tried})
    if not _template_ends.get((template, _shape(turns)), True):
        raise UserError("the model's chat template takes more than 3 s or 1 GB: it is broken or hostile")
    try:
        return str(owner.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template can raise anything
        raise UserError(f"the model's chat template cannot be used: {error or type(error).__name__}") from error


def _shape(turns: list[dict[str, Any]]) -> str:
    contents = ((turn["role"], turn["content"]) for turn in turns)
    return repr([(role, isinstance(said, str) or [part["type"] for part in said]) for role, said in contents])


def _ends(task: str) -> bool:
    tried = subprocess.run([sys.executable, "-c", _TRIAL], input=task, text=True, capture_output=True, check=False)
    return tried.returncode == 0


def plain_text(omni: Omni, text: str) -> str:
    """The text without special tokens: a subtitle that spells one must not be tokenized as one."""
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


def conversation(
    clip: Clip,
    style: str = "full",
    *,
    has_picture: bool | None = None,
    has_sound: bool | None = None,
) -> list[dict[str, Any]]:
    """The prompt of a clip in TRL's conversational form: video, audio, then the question.

    Video and audio are separate parts (not audio-in-video), each only if the clip has it.

    Args:
        clip: the clip.
        style: wording of the question, see `thinking.question`.
        has_picture: whether there are frames (`Media.frames is not None`); None assumes so if the clip names a video.
        has_sound: whether there is a waveform; None assumes so if the clip names an audio or a video file.
    """
    parts: list[dict[str, Any]] = []
    if clip.video is not None if has_picture is None else has_picture:
        parts.append({"type": "video"})
    if (clip.audio is not None or clip.video is not None) if has_sound is None else has_sound:
        parts.append({"type": "audio"})
    parts.append({"type": "text", "text": question(clip.subtitle, style)})
    return [{"role": "user", "content": parts}]
