"""What one RL step has to compute: multiply-adds counted from lengths, for each way of doing it.

Counted are tokens through the language model's matrices, attention over what a token sees, the head where logits are
made, and the towers. A backward pass is twice a forward, once where only an adapter learns; checkpointing adds a
forward. What a mask computes in vain is not counted: that is the implementation's own loss.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """How a step is done.

    Attributes:
        packing: training and reference run each prompt once for its rollouts.
        features: the towers have run before; else they run in every pass.
        calibration: the fast confidence is computed.
        straight: sampling prefills every rollout for itself, and the fast confidence is one more forward per rollout.
    """

    packing: bool = True
    features: bool = True
    calibration: bool = True
    straight: bool = False


@dataclass(frozen=True)
class Lengths:
    """Of a step: counts of prompts and rollouts of each, and of tokens; patches and mel frames of a clip."""

    prompts: int
    group: int
    prompt: int
    completion: int
    fast: int
    patches: int
    mel_frames: int


@dataclass(frozen=True)
class Model:
    """Multiply-adds a token: in the layers, per seen token in attention, in the head; of a clip in the towers."""

    layers: int
    attention: int
    head: int
    towers: float
    head_everywhere: bool  # on a CPU the loss scores every position, on a GPU those of the completions
    adapter: bool = False
    checkpointing: bool = False


def of_model(omni, lengths: Lengths, on_cpu: bool, adapter: bool = False, checkpointing: bool = False) -> Model:
    """The figures of a thinker."""
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
