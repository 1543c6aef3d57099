"""Multiply-adds of one RL step, computed from lengths, for each implementation.

Counts tokens through the language model's matrices, attention over visible tokens, the head where logits are computed,
and the towers. A backward pass costs two forward passes, or one if only an adapter is trained; checkpointing adds one
forward pass. Masked computation is not counted: it is the implementation's overhead.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """An implementation of a step.

    Attributes:
        packing: whether training and reference compute each prompt once for its rollouts.
        features: whether tower features are cached; otherwise the towers run in every pass.
        calibration: whether the fast confidence is computed.
        straight: whether sampling prefills every rollout separately, with one more forward pass per rollout for the
            fast confidence.
        masked: whether packed rows attend under a mask over all pairs of tokens; it is not counted.
    """

    packing: bool = True
    features: bool = True
    calibration: bool = True
    straight: bool = False
    masked: bool = False


@dataclass(frozen=True)
class Lengths:
    """Numbers of prompts, rollouts per prompt, tokens, and of patches and mel frames per clip."""

    prompts: int
    group: int
    prompt: int
    completion: int
    fast: int
    patches: int
    mel_frames: int


@dataclass(frozen=True)
class Model:
    """Multiply-adds per token in the layers, per visible token in attention, in the head; per clip in the towers."""

    layers: int
    attention: int
    head: int
    towers: float
    head_everywhere: bool  # on a CPU the loss scores every position, on a GPU those of the completions
    adapter: bool = False
    checkpointing: bool = False


def of_model(omni, lengths: Lengths, on_cpu: bool, adapter: bool = False, checkpointing: bool = False) -> Model:
    """The multiply-adds of a thinker."""
    text, parts = omni.model.config.text_config, omni.model.model

    def size(module) -> int:
        return sum(weight.numel() for name, weight in module.named_parameters() if "lora" not in name)

    patch = parts.visual.patch_embed.proj.weight.numel() + size(parts.visual.blocks) + size(parts.visual.merger) / 4
    towers = lengths.patches * patch + lengths.mel_frames / 2 * size(parts.audio_tower)
    return Model(
        layers=size(parts.language_model.layers),
        attention=2 * text.num_hidden_layers * text.hidden_size,
        head=text.vocab_size * text.hidden_size,
        towers=towers,
        head_everywhere=on_cpu,
        adapter=adapter,
        checkpointing=checkpointing,
    )


def count(model: Model, size: Lengths, way: Way) -> dict[str, float]:
    """Multiply-adds of "sampling" (fast confidence included), "reference", "training" and the whole "step"."""
    rollouts = size.prompts * size.group

    def forward(new: float, past: float = 0, scored: float = 0) -> float:
        return new * (model.layers + model.attention * (past + new / 2)) + scored * model.head

    prefilled = rollouts if way.straight else size.prompts
    sampling = prefilled * forward(size.prompt) + rollouts * forward(size.completion, size.prompt, size.completion)
    if way.calibration:
        sampling += rollouts * (forward(size.prompt + size.fast) if way.straight else forward(size.fast, size.prompt))
    everywhere = model.head_everywhere
    if way.packing:
        own = forward(size.completion + 1, size.prompt, size.completion + everywhere)
        one = size.prompts * (forward(size.prompt, 0, size.prompt * everywhere) + size.group * own)
    else:
        scored = size.completion + size.prompt * everywhere
        one = rollouts * forward(size.prompt + size.completion, 0, scored)
    towers = 0.0 if way.features else model.towers
    sampling += towers * (2 * rollouts if way.straight and way.calibration else prefilled)
    encoding = towers * (size.prompts if way.packing else rollouts)
    times = 3 - model.adapter + model.checkpointing
    parts = {"sampling": sampling, "reference": one + encoding, "training": times * one + encoding}
    return parts | {"step": sum(parts.values())}
