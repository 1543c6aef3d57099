"""Recipes: the host's configurations (TRL's `SFTConfig` and `GRPOConfig`) with the fields that this project adds.

The `Attributes` below are the only description of these fields: `mer-r1 sft|rl|build --help` reads them from here.
Paths have no default. Defaults that differ from TRL's say why.
"""

import math
from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig, SFTConfig

from mer_r1.errors import UserError
from mer_r1.model.generation import Sampling
from mer_r1.rl.method import Method
from mer_r1.training.recipe_info import refuse_secrets

UNUSED: dict[str, tuple[Any, str]] = {
    "reward_weights": (None, "the weights follow from `method`; format_weight is the one to set"),
    "repetition_penalty": (1.0, "the loss scores the policy without it; strict_labels acts on repeated words"),
    "generation_kwargs": (None, "set temperature, top_p, top_k, min_p and max_completion_length themselves"),
    "chat_template_kwargs": (None, "prompts are encoded once, as `model.prompts` writes them"),
    "cache_implementation": (None, "sampling has a key-value cache of its own"),
    "use_transformers_continuous_batching": (False, "it takes no audio and video: use rollouts=vllm"),
    "use_transformers_paged": (False, "it takes no audio and video: use rollouts=vllm"),
    "transformers_continuous_batching_config": (None, "it takes no audio and video: use rollouts=vllm"),
    "use_vllm": (False, "it starts TRL's engine, which takes images only: use rollouts=vllm"),
    "vllm_model_impl": ("vllm", "the engine needs vLLM's own omni model"),
    "vllm_structured_outputs_regex": (None, "completions are not constrained"),
    "ds3_gather_for_generation": (True, "weights that GPUs share are sampled from with rollouts=vllm"),
    "num_generations_eval": (None, "RL takes no evaluation data: use mer-r1 evaluate"),
    "eval_strategy": ("no", "RL takes no evaluation data: use mer-r1 evaluate"),
    "max_tool_calling_iterations": (None, "a completion has one turn and no tools"),
    "trust_remote_code": (False, "checkpoints with code of their own are not loaded"),
    "remove_unused_columns": (False, "it would drop the clip index, by which media are found"),
}
"""TRL's fields that RL would ignore -> the only value, and the reason or what to set instead."""
POLICY_OPTIONS = ("dtype", "attn_implementation")
"""Keys of TRL's `model_init_kwargs` that loading the policy reads."""


@dataclass
class DataFields:
    """Model and data of every stage.

    Attributes:
        model: checkpoint to start from, a folder or a hub name.
        manifest: JSONL manifest of the clips.
        split: rows of the manifest to train on; "all" takes every row.
        clips: slice of those rows, such as "0:400".
        features_dir: folder of decoded inputs and tower features; features/ beside the manifest if not given.
        train_towers: train the vision and audio towers too; otherwise they are frozen and their outputs cached.
        workers: processes that decode clips.
        lora_rank: rank of LoRA on the language model; 0 trains the language model in full.
        num_frames: frames of a clip, evenly over its length; the model's own number if not given.
        max_seconds: seconds after which a clip is cut; the model's own if not given.
        max_pixels: pixels of a frame above which it is scaled down; the model's own if not given. Frames are most of a
            prompt: a model of 28 pixels per token sees width * height / 784 tokens for every two frames.
        audio_track: number of the audio track among a file's, from 1; the model's own if not given.
    """

    model: str | None = None
    manifest: str | None = None
    split: str = "train"
    clips: str | None = None
    features_dir: str | None = None
    train_towers: bool = False
    workers: int = 2
    lora_rank: int = 0
    num_frames: int | None = None
    max_seconds: float | None = None
    max_pixels: int | None = None
    audio_track: int | None = None


@dataclass
class HostFields:
    """Fields of the host's trainers with other defaults than TRL's.

    Attributes:
        report_to: where TRL sends its logs; log.jsonl is always written.
        logging_steps: steps between two log lines.
        gradient_checkpointing: recompute activations in the backward pass: less memory, a third more computation.
            Off because tiny batches gain nothing; the recipes of large models turn it on.
        remove_unused_columns: must stay false, since the clip index is no argument of the model's forward.
        router_aux_loss_coef: must stay 0: for a mixture of experts (Qwen3-Omni) TRL would add the balancing loss.
    """

    remove_unused_columns: bool = False
    report_to: str | list[str] | None = "tensorboard"
    logging_steps: float = 5
    gradient_checkpointing: bool = False
    router_aux_loss_coef: float | None = 0.0


@dataclass
class SFTRecipe(HostFields, DataFields, SFTConfig):
    """`mer-r1 sft`: cold start on slow-format reasoning (docs/paper_map.md, training: 2 epochs, 2e-5).

    Attributes:
        task: JSON file of another task than the model's: its question and categories (`SetTask`); later stages and
            commands find it in the model.
        targets: what is learned: "slow" (reasoning, then the careful answer), "twice" (answer, reasoning, answer) or
            "base" (the tiny model's base stage: a description, a remark and a broad direct answer).
        labels: answer that slow and twice targets hold: "careful" (`meta.careful_labels` where the clip has them, its
            gold labels otherwise) or "gold" (as many words as the gold labels).
        counterfactual_rows: additional rows per clip, each with another clip's reasoning as context and that clip's
            answer as the target, so that the answer follows the reasoning; for targets=slow. The other clips are drawn
            by the recipe's seed among those of the stage.
        replay: additional rows per clip, 0 or 1, that keep fast thinking alive: the broad direct answer
            (`meta.broad_labels`) after an empty think block; for targets=slow.
        must_reason: whether slow thinking is kept from leaving its think block empty wherever the model samples, in
            later stages too; if not given, true with replay=1. For targets=slow.
        shared_prefixes: compute what the prompts of a clip's rows have in common once: the same gradients, faster.
            The batch size then counts clips, not rows.
        unlikelihood: weight, beside a token's loss, of -log(1 - p) at each further word of an answer, where p is the
            probability of beginning a word that the answer has already named; 0 for none (our option).
        towers_first_steps: steps in which the towers and their projections train alone, with the language model frozen,
            before the stage itself; for freshly initialised towers around a pretrained language model.
        learning_rate: peak learning rate.
        num_train_epochs: passes over the clips.
    """

    task: str | None = None
    targets: str = "slow"
    labels: str = "careful"
    counterfactual_rows: int = 0
    replay: int = 0
    must_reason: bool | None = None
    shared_prefixes: bool = False
    unlikelihood: float = 0.0
    towers_first_steps: int = 0
    learning_rate: float = 2e-5
    num_train_epochs: float = 2

    def __post_init__(self) -> None:
        """Check the choices of rows, and keep TRL from tokenising the rows: they hold clips."""
        if self.labels not in ("careful", "gold"):
            raise ValueError(f"labels must be careful or gold, got {self.labels!r}")
        if self.counterfactual_rows < 0 or self.replay not in (0, 1):
            raise ValueError("counterfactual_rows must not be negative, and replay must be 0 or 1")
        if not 0 <= self.unlikelihood < math.inf:
            raise ValueError(f"unlikelihood must not be negative, got {self.unlikelihood}")
        chosen = {"counterfactual_rows": self.counterfactual_rows, "replay": self.replay}
        chosen["must_reason"] = self.must_reason is not None
        if self.targets != "slow" and (given := [name for name, value in chosen.items() if value]):
            raise ValueError(f"{given[0]} is for targets=slow, got targets={self.targets}")
        if self.targets == "base" and self.labels != "careful":
            raise ValueError("targets=base has answers of its own (meta.broad_labels): labels has no effect")
        refuse_secrets(vars(self))
        super().__post_init__()
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}  # type: ignore[has-type]


@dataclass
class BuildRecipe(SFTRecipe):
    """`mer-r1 build`: initialise the tiny policy and train its base stage.

    Attributes:
        text: language model: "tiny" (freshly initialised) or "smollm2" (pretrained).
        tiny: sizes as a mapping, fields of `model.tiny.TinyConfig`; with "smollm2" only those of the towers count.
        vision_images: generated images that pretrain the vision tower; 0 skips it.
        vision_steps: steps of 64 images.
        audio_clips: generated audio clips that pretrain the audio tower; 0 skips it.
        audio_steps: steps of 32 audio clips.
        towers_learning_rate: peak learning rate of the vision tower; the audio tower's is three times that.
        caption_examples: scenes described in words that pretrain the language model.
        text_steps: steps of 32 captions, before the language model sees clips; 0 skips them.
        muon_learning_rate: learning rate of Muon for the language model's matrices; 0 leaves them to `optim`.
    """

    targets: str = "base"
    text: str = "tiny"
    vision_images: int = 16000
    vision_steps: int = 1000
    audio_clips: int = 4000
    audio_steps: int = 600
    towers_learning_rate: float = 1e-3
    caption_examples: int = 12000
    text_steps: int = 500
    muon_learning_rate: float = 0.02
    tiny: dict[str, Any] | None = None


@dataclass
class SamplingFields:
    """Sampling of rollouts in RL.

    Attributes:
        num_generations: rollouts per prompt, the group size G.
        max_completion_length: longest completion in tokens.
        fast_share: share of the groups of every generation batch, from 0 to below 1, that answer fast: the empty think
            block is prefilled, and rewards and advantages are the group's own, without calibration terms. Keeps the
            form of fast answers through RL; a fast group costs a few tokens per rollout.
        fast_rewards: what groups that answer fast are rewarded for: "all" objectives of the method, or "format" only,
            so that what RL teaches about emotions is taught through reasoning.
        fast_beta: weight of the KL term on rollouts of these groups, which holds fast thinking at the starting policy;
            that of all rollouts (`beta`) if not given.
        rollouts: engine that samples: "hf" (this policy, in PyTorch) or "vllm" (TRL's fields `vllm_*` configure it).
        vllm_confidences: model that scores vLLM's answers: "engine", "policy" or "auto" (the cheaper).
        vllm_importance_sampling_mode: correction of the engine's rounding; truncated, not masked, so that one token
            does not cost the whole rollout.
    """

    num_generations: int | None = 4
    max_completion_length: int | None = 1024
    fast_share: float = 0.0
    fast_rewards: str = "all"
    fast_beta: float | None = None
    rollouts: str = "hf"
    vllm_confidences: str = "auto"
    vllm_importance_sampling_mode: str = "token_truncate"


@dataclass
class RLRecipe(HostFields, DataFields, Method, SamplingFields, GRPOConfig):
    """`mer-r1 rl`: MER-R1 and its baselines (docs/paper_map.md, training: 1 epoch, 2e-6, G = 4, beta 0.04).

    Attributes:
        wheels: folder of the official emotion wheels; the built-in wheels if not given.
        meaning_model: folder of the embedding model of `matching`; the packaged one if not given.
        meaning_floor: similarity, from 0 to 1, below which two words have nothing in common for `matching`; 0.5 if not
            given.
        shared_prefixes: compute a prompt once for its rollouts in a batch: the same gradients, faster.
        learning_rate: peak learning rate.
        num_train_epochs: passes over the clips.
        beta: weight of the KL divergence from the starting policy.
        beta_final: weight to which beta falls linearly over the first half of training, and stays; constant if not
            given (a quarter of beta in the authors' fork).
        multi_objective_aggregation: order of summing and normalising the rewards in TRL's words; `method` decides it,
            and anything else is refused.
        epsilon: clipping range of the importance ratio.
        loss_type: average of the loss; "grpo" takes per-sequence means, TRL's "dapo" weighs every token the same.
    """

    wheels: str | None = None
    meaning_model: str | None = None
    meaning_floor: float | None = None
    shared_prefixes: bool = True
    learning_rate: float = 2e-6
    num_train_epochs: float = 1
    beta: float = 0.04
    beta_final: float | None = None
    multi_objective_aggregation: str | None = None
    epsilon: float = 0.2
    loss_type: str = "grpo"

    def __post_init__(self) -> None:
        """Check the method's choices, what RL would ignore, then TRL's own choices."""
        Method.__post_init__(self)
        refuse_secrets(vars(self))
        self._refuse_unused()
        if not self.temperature > 0:
            raise UserError(f"temperature must be above 0 in RL, got {self.temperature}")
        Sampling.of(self)
        if self.beta_final is not None and not 0 <= self.beta_final <= self.beta:
            raise UserError(f"beta_final must be from 0 to beta={self.beta}, got {self.beta_final}")
        if not 0 <= self.fast_share < 1:
            raise ValueError(f"fast_share must be at least 0 and below 1, got {self.fast_share}")
        if self.fast_rewards not in ("all", "format"):
            raise ValueError(f"fast_rewards must be one of all, format; got {self.fast_rewards!r}")
        if self.fast_beta is not None and not (self.fast_share and self.beta and self.loss_type == "grpo"):
            raise ValueError(
                "fast_beta weighs the KL term of groups that answer fast: it needs fast_share and beta above 0 and "
                f"loss_type=grpo, got fast_share={self.fast_share}, beta={self.beta}, loss_type={self.loss_type}"
            )
        if self.fast_share and self.answers_twice:
            raise ValueError(f"fast_share must be 0 for method={self.method}, whose answers have no empty think block")
        GRPOConfig.__post_init__(self)

    def _refuse_unused(self) -> None:
        for name, (only, instead) in UNUSED.items():
            if (given := getattr(self, name)) != only:
                raise UserError(f"{name}={given}: RL would ignore it; {instead}")
        chosen = self.model_init_kwargs if isinstance(self.model_init_kwargs, dict) else {}
        if unknown := sorted(chosen.keys() - set(POLICY_OPTIONS)):
            told = f"expected {' or '.join(POLICY_OPTIONS)}"
            raise UserError(f"model_init_kwargs: {unknown[0]!r} would be ignored, {told}")
        order = "normalize_then_sum" if self.method in ("ad", "mer-r1") else "sum_then_normalize"
        if self.multi_objective_aggregation not in (None, order):
            given = self.multi_objective_aggregation
            raise UserError(f"multi_objective_aggregation={given}: method={self.method} is {order}; leave it out")
