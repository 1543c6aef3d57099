"""A tiny untrained policy and a few synthetic clips, for tests that need a model."""

import numpy as np
import torch

from mer_r1.data.media.read import Media
from mer_r1.emotions.thinking import format_completion, question
from mer_r1.emotions.wheels import builtin
from mer_r1.model.omni import Omni
from mer_r1.model.prompts import Prompt, collate, encode_prompt, media_tensors
from mer_r1.model.tiny import TinyConfig, tiny
from mer_r1.model.tower_outputs import encode_media, media_embedded

WORDS = ("happy", "sad", "angry", "afraid", "surprised", "proud", "bored", "ashamed")
SMALL = TinyConfig(
    vocab_size=700, hidden_size=64, num_layers=2, intermediate_size=128, frame_size=56, patch_size=14, merge_size=2,
    vision_size=32, vision_layers=1, audio_size=32, audio_layers=1,
)  # fmt: skip


def tiny_omni(seed: int = 0) -> Omni:
    forms = sorted(builtin().forms)
    texts = [format_completion("The smile is wide and the voice is bright, so perhaps", [word]) for word in forms]
    texts += [question("I am so glad to see you again.", "short")] * 50
    return tiny(texts, SMALL, seed)


def media(seconds: float, seed: int, video: bool = True, audio: bool = True) -> Media:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (4, 3, 64, 64), dtype=np.uint8) if video else None
    waveform = (rng.standard_normal(int(seconds * 16000)) * 0.1).astype(np.float32) if audio else None
    return Media(
        frames=frames,
        frame_seconds=np.linspace(0, seconds, 4) if video else np.zeros(0),
        fps=3 / seconds if video else None,
        waveform=waveform,
        sampling_rate=16000,
        seconds=seconds,
        notes=(),
    )


def entry(omni: Omni, clip: Media) -> dict[str, torch.Tensor]:
    return encode_media(omni.model, [media_tensors(omni, clip)])[0]


def some_prompts(omni: Omni, lengths: tuple[float, ...] = (2.0, 2.7, 3.4, 2.0)) -> list[Prompt]:
    subtitles = ("Hello.", "I am so glad to see you again, my friend.", "", "No!")
    return [
        encode_prompt(omni, question(subtitles[i % 4], "short"), entry(omni, media(seconds, i)))
        for i, seconds in enumerate(lengths)
    ]


def teach(omni: Omni, prompts: list[Prompt], steps: int = 60) -> None:
    """Train a few steps on slow-format answers, so that rewards differ between rollouts."""
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(omni.model.parameters(), lr=3e-3)
    end = [omni.tokenizer.eos_token_id]
    for _ in range(steps):
        chosen = [prompts[i] for i in rng.integers(len(prompts), size=8)]
        words = [list(rng.choice(WORDS, size=rng.integers(1, 3), replace=False)) for _ in chosen]
        targets = [omni.tokenizer(format_completion("A smile", labels))["input_ids"] + end for labels in words]
        batch = collate(chosen, targets, omni.tokenizer.pad_token_id)
        with media_embedded(omni.model, batch.pop("media")):
            loss = omni.model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
