"""Recipes of the stages: TRL's configurations with the few fields that this project adds."""

from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig, SFTConfig

from mer_r1.rl.method import Method


@dataclass
class DataFields:
    """What every stage needs to know about its model and data.

    Attributes:
        model: checkpoint to start from, a folder or a hub name.
        manifest: the JSONL manifest of the clips.
        split: the rows of the manifest with this split; "all" takes every row.
        clips: of those, a slice such as "0:400".
        features_dir: where decoded inputs and tower features are kept; beside the manifest if not given.
        train_towers: train the vision and audio towers too (else they are frozen and their outputs cached).
        decode_workers: processes that decode clips.
        lora_rank: 0 trains the language model in full, above it LoRA of that rank on the language model only.
    """

    model: str | None = None
    manifest: str | None = None
    split: str = "train"
    clips: str | None = None
    features_dir: str | None = None
    train_towers: bool = False
    decode_workers: int = 2
    lora_rank: int = 0


@dataclass
class _Host:
    """Settings of the host trainers that this project changes."""

    # Our columns (clip index, kind, target) are no arguments of the model's forward.
    remove_unused_columns: bool = False
    report_to: str | list[str] | None = "tensorboard"
    logging_steps: float = 5
    # Tiny batches of short sequences gain nothing from it; the recipes of large models turn it on.
    gradient_checkpointing: bool = False
    # Of a mixture of experts (Qwen3-Omni) the loss is the method's alone; TRL would add the balancing loss by itself.
    router_aux_loss_coef: float | None = 0.0


@dataclass
class SFTRecipe(_Host, DataFields, SFTConfig):
    """`mer-r1 sft`: the cold start on slow-format reasoning (METHOD.md: 2 epochs, 2e-5).

    Attributes:
        targets: what is learned. "slow": reasoning and careful answer; "twice": answer, reasoning, answer
            (`two_answers`); "base": the tiny model's base stage, a description and a broad direct answer in turn.
        shared_prefixes: rows of one clip become one, which computes what their prompts have in common once
            (`packing`): the same gradients, sooner. The batch size then counts clips, not rows.
        towers_first_steps: steps in which the towers and their projections learn alone, the language model frozen,
            before the stage itself begins; for towers made new around a language model that is pretrained.
    """

    targets: str = "slow"
    shared_prefixes: bool = False
    towers_first_steps: int = 0
    learning_rate: float = 2e-5
    num_train_epochs: float = 2


@dataclass
class BuildRecipe(SFTRecipe):
    """`mer-r1 build --tiny`: make the tiny policy and take it through its base stage.

    Attributes:
        text: the language model: "tiny", made new, or "smollm2", pretrained (`smollm2`).
        tiny: sizes, fields of `tiny.TinyConfig`; with "smollm2" those of the towers count.
        eyes_stills: generated stills that the vision tower learns to see from (`pretrain`); 0 skips it.
        eyes_steps: steps of 64 stills.
        ears_sounds: generated sounds that the audio tower learns to hear from; 0 skips it.
        ears_steps: steps of 32 sounds.
        towers_learning_rate: peak learning rate of both.
        remarks: scenes that are told instead of shown, to read of (`scenes.remarks`).
        muon_learning_rate: of the language model's matrices in the base stage (`muon`); 0 leaves all to `optim`.
        reading_steps: steps of 32 remarks in which the language model reads before it meets clips; 0 skips it.
    """

    targets: str = "base"
    text: str = "tiny"
    eyes_stills: int = 16000
    eyes_steps: int = 1000
    ears_sounds: int = 4000
    ears_steps: int = 600
    towers_learning_rate: float = 1e-3
    remarks: int = 12000
    reading_steps: int = 500
    muon_learning_rate: float = 0.02
    tiny: dict[str, Any] | None = None


@dataclass
class RLRecipe(_Host, DataFields, Method, GRPOConfig):
    """`mer-r1 rl`: MER-R1 and the methods it is compared with (METHOD.md: 1 epoch, 2e-6, G = 4, beta 0.04).

    The choices of the method are those of `method.Method`, which it inherits.

    Attributes:
        wheels: folder of the official emotion wheels; the built-in wheels if not given.
        shared_prefixes: in training a prompt is computed once for the rollouts that a batch has of it (`packing`).
        rollouts: what samples, "hf" (this policy) or "vllm" (`vllm.rollouts`; TRL's fields `vllm_*` say how).
        vllm_confidences: what scores vLLM's answers: "engine", "policy", or "auto" for the cheaper.
    """

    shared_prefixes: bool = True
    rollouts: str = "hf"
    vllm_confidences: str = "auto"
    # Truncated, not masked: one token that the engine's kernels round away must not cost the whole rollout.
    vllm_importance_sampling_mode: str = "token_truncate"
    wheels: str | None = None
    learning_rate: float = 2e-6
    num_train_epochs: float = 1
    num_generations: int | None = 4
    beta: float = 0.04
    epsilon: float = 0.2
    max_completion_length: int | None = 1024
    # Per-sequence means as in GRPO; TRL's default (dapo) weighs every token of the batch the same.
    loss_type: str = "grpo"

    def __post_init__(self) -> None:
        """Check the method's choices, then TRL's."""
        Method.__post_init__(self)
        GRPOConfig.__post_init__(self)
