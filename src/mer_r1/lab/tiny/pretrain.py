"""Pretrain the tiny model's vision and audio towers and its language model, before it sees whole clips.

Towers trained from random weights through a language model's loss learn very slowly, because the text alone explains
most of the loss (after 300 steps, exchanging the video changed nothing). The 7B model's towers are pretrained; the tiny
ones get a short direct training. The vision tower learns the strength of each facial action from generated images, the
audio tower the words that describe the scene from generated speech, both of people outside the corpus and through the
tower's own output vectors, so that only a linear layer is discarded. Afterwards the towers are frozen. The language
model learns from captions of scenes that are never rendered.

Both towers also classify the pattern (expression, manner of speaking): with this loss the vision tower learns in 600
steps more than without it in 1,000 (docs/log.md).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mer_r1.data.media.read import Media
from mer_r1.lab.tiny.muon import MuonAdamW
from mer_r1.model.features import Progress
from mer_r1.model.omni import Omni
from mer_r1.model.prompts import encode_prompt, media_tensors
from mer_r1.model.shared_prefix.attention import packed_inputs
from mer_r1.model.shared_prefix.packing import Row, pack
from mer_r1.model.tower_outputs import tower_features

WEIGHT_DECAY = 0.05
WARM_UP_STEPS = 50
LEAST_SPREAD = 0.05
"""Minimum standard deviation by which targets are divided."""
NAMING = 0.3
"""Weight of the pattern's cross-entropy, relative to the main loss."""
RARE, COMMON = 0.01, 0.75
"""Words in a smaller or larger share of the descriptions are no targets."""
Task = tuple[nn.ModuleDict, Callable[[], Tensor]]
"""Heads on a tower's outputs, and the loss of the next batch."""


def train_vision_tower(omni: Omni, count: int, steps: int, learning_rate: float, seed: int, workers: int = 2) -> float:
    """Train the vision tower on generated images; returns the mean loss of the last 50 steps.

    The loss is the squared error of the actions in units of their variance (1: no better than the mean), plus `NAMING`
    times the cross-entropy of the expression (2.3 by chance), from the concatenated vectors and from their mean.

    Args:
        omni: the tiny policy.
        count: number of images.
        steps: number of steps of 64 images each.
        learning_rate: peak of the cosine schedule.
        seed: seed for images and batches.
        workers: number of rendering processes.
    """
    heads, loss = _vision_task(omni, count, seed, workers)
    return _fit([omni.model.model.visual, heads], loss, steps, learning_rate)


def train_audio_tower(omni: Omni, count: int, steps: int, learning_rate: float, seed: int, workers: int = 2) -> float:
    """Train the audio tower on generated speech like the vision tower, in steps of 32 audio clips.

    The loss is the mean binary cross-entropy of the words of the scene's description, most of which are not audible,
    plus `NAMING` times the cross-entropy of the manner of speaking (2.3 by chance).
    """
    heads, loss = _audio_task(omni, count, seed, workers)
    return _fit([omni.model.model.audio_tower, heads], loss, steps, learning_rate)


def _vision_task(omni: Omni, count: int, seed: int, workers: int) -> Task:
    from mer_r1.lab.tiny.stills import PATTERNS, TARGETS, draw_stills, mirrored

    config = omni.model.config.vision_config
    side = round(omni.processor.video_processor.size["shortest_edge"] ** 0.5)
    grid = side // config.patch_size
    images, *known = draw_stills(count, seed, side, workers)
    targets, patterns = map(torch.from_numpy, known)
    spread = targets.std(dim=0).clamp(min=LEAST_SPREAD)
    mean = targets.mean(dim=0)
    places = (grid // config.spatial_merge_size) ** 2
    width = omni.model.config.text_config.hidden_size
    heads = nn.ModuleDict({"look": _linear(places * width, len(TARGETS) + len(PATTERNS))})
    heads["glance"] = _linear(width, len(PATTERNS))
    grids = torch.tensor([[1, grid, grid]])
    columns, signs = mirrored()[0], torch.from_numpy(mirrored()[1])
    rng = np.random.default_rng([seed, 1])

    def loss() -> Tensor:
        chosen = rng.integers(len(images), size=64)
        batch, wanted = torch.from_numpy(images[chosen]).float(), targets[chosen]
        if rng.random() < 0.5:  # a mirrored image has mirrored actions
            batch, wanted = batch.flip(2), wanted[:, columns] * signs
        batch = batch.roll(tuple(int(shift) for shift in rng.integers(-3, 4, size=2)), dims=(1, 2))
        patches = _patches(omni, batch, config)
        output = omni.model.get_video_features(patches, grids.expand(len(batch), -1), return_dict=True).pooler_output
        vectors, named = torch.stack(list(output)), patterns[chosen]
        actions, names = heads["look"](vectors.flatten(1)).split([len(TARGETS), len(PATTERNS)], dim=1)
        squared = nn.functional.mse_loss(actions, (wanted - mean) / spread)
        # Also from the mean of all places, which is what untrained attention sees.
        both = [nn.functional.cross_entropy(part, named) for part in (names, heads["glance"](vectors.mean(dim=1)))]
        return squared + NAMING * (both[0] + both[1])

    return nn.ModuleDict({"heads": heads}), loss


def _audio_task(omni: Omni, count: int, seed: int, workers: int) -> Task:
    from mer_r1.lab.tiny.sounds import MANNERS, draw_sounds

    heard, descriptions, acted = [], [], []
    for one in draw_sounds(count, seed, workers):
        heard.append({"input_features": media_tensors(omni, Media(waveform=one.waveform))["input_features"]})
        descriptions.append(one.description)
        acted.append(one.manner)
    words, manners = _bags(descriptions), torch.tensor(acted)
    share = words.mean(dim=0).clamp(0.01, 0.99)
    head = _linear(omni.model.config.text_config.hidden_size, words.shape[1] + len(MANNERS))
    head.bias.data[: words.shape[1]] = (share / (1 - share)).log()
    rng = np.random.default_rng([seed, 2])

    def loss() -> Tensor:
        chosen = rng.integers(len(heard), size=32)
        output = tower_features(omni.model, [heard[index] for index in chosen])
        pooled = head(torch.stack([entry["audio"].mean(dim=0) for entry in output]))
        word, manner = pooled.split([words.shape[1], len(MANNERS)], dim=1)
        described = nn.functional.binary_cross_entropy_with_logits(word, words[chosen])
        return described + NAMING * nn.functional.cross_entropy(manner, manners[chosen])

    return nn.ModuleDict({"head": head}), loss


def train_language_model(
    omni: Omni,
    texts: Sequence[Sequence[tuple[str, str]]],
    steps: int,
    learning_rate: float,
    seed: int,
    progress: Progress | None = None,
) -> float:
    """Train the language model on questions and answers without media; returns the last mean loss per token.

    A step takes 16 scenes of `texts`, each with its questions and answers, which share their beginning.
    """
    rng = np.random.default_rng([seed, 3])
    end, pad = omni.tokenizer.eos_token_id, omni.tokenizer.pad_token_id

    @cache
    def rows(index: int) -> list[Row]:
        return [
            (encode_prompt(omni, asked, {}), [*omni.tokenizer(answer)["input_ids"], end])
            for asked, answer in texts[index]
        ]

    def loss() -> Tensor:
        batch = pack([rows(int(index)) for index in rng.integers(len(texts), size=16)], pad, [])
        return omni.model(**packed_inputs(omni.model, batch)).loss

    return _fit([omni.model.model.language_model], loss, steps, learning_rate, progress)  # its embeddings are its head


def _fit(
    modules: list[nn.Module],
    loss: Callable[[], Tensor],
    steps: int,
    learning_rate: float,
    progress: Progress | None = None,
) -> float:
    named = [item for module in modules for item in module.named_parameters()]
    parameters = [parameter for _, parameter in named]
    optimizer = MuonAdamW(named, learning_rate, WEIGHT_DECAY)

    def scale(step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + float(np.cos(np.pi * step / max(steps, 1))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    recent: list[float] = []
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        recent = [*recent[-49:], float(value.detach())]
        if progress:
            progress(1)
    return sum(recent) / max(len(recent), 1)


def _patches(omni: Omni, images: Tensor, config: Any) -> Tensor:
    """(B, S, S, 3) pixels 0..255 -> the patches that the video processor makes from two equal frames."""
    processor = omni.processor.video_processor
    mean, deviation = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    normal = ((images / 255 - mean) / deviation).permute(0, 3, 1, 2)
    size, merge = config.patch_size, config.spatial_merge_size
    count = normal.shape[-1] // size // merge
    cut = normal.reshape(len(images), 3, count, merge, size, count, merge, size).permute(0, 2, 5, 3, 6, 1, 4, 7)
    twice = cut.unsqueeze(6).expand(*cut.shape[:6], config.temporal_patch_size, size, size)
    return twice.reshape(-1, 3 * config.temporal_patch_size * size * size)


def _bags(texts: Sequence[str]) -> Tensor:
    """(N, words) 1 where a text contains a word; only words that are neither rare nor common (`RARE`, `COMMON`)."""
    bags = [set(re.findall(r"[a-z]+", text.lower())) for text in texts]
    counts = Counter(word for bag in bags for word in bag)
    words = sorted(word for word, count in counts.items() if RARE * len(texts) <= count <= COMMON * len(texts))
    return torch.tensor([[float(word in bag) for word in words] for bag in bags])


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
