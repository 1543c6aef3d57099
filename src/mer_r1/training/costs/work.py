"""What the steps of a run cost in FLOPs and time.

Arithmetic over a model's shape (`shapes`), the lengths of prompts and completions, and a few settings. FLOPs are
counted, at mean lengths; time rests on the assumptions in `Gpu` and `Job`, which are orders of magnitude, not
measurements: a plan helps to choose settings, a short run measures them. Sampling lasts until the longest completion of
a batch. Left out: the transfer of weights to vLLM, decoding of clips, communication.

Sources: docs/paper_map.md, training; NVIDIA's data sheets for the GPUs (dense bf16). Units: FLOPs, bytes, seconds;
shapes are named as in `packing` (P prompt and T completion tokens, G rollouts).
"""

from dataclasses import dataclass, replace

from mer_r1.training.costs.shapes import Shape

GB = 1e9


@dataclass(frozen=True)
class Gpu:
    """A GPU: dense bf16 FLOP/s, memory in bytes, bytes per second to and from it."""

    flops: float
    memory: float
    bandwidth: float


GPUS = {
    "h100": Gpu(989e12, 80 * GB, 3.35e12),
    "h200": Gpu(989e12, 141 * GB, 4.8e12),
    "a100": Gpu(312e12, 80 * GB, 2.04e12),
    "a100-40": Gpu(312e12, 40 * GB, 1.56e12),
    "l40s": Gpu(362e12, 48 * GB, 0.86e12),
    "rtx4090": Gpu(165e12, 24 * GB, 1.01e12),
}


@dataclass(frozen=True)
class Job:
    """The settings that decide the cost.

    Attributes:
        stage: "sft" or "rl".
        rows: clips of the training data.
        epochs: passes over them; may be a fraction.
        max_steps: optimizer steps of the run, in place of `epochs`, if above 0.
        prompt: mean tokens of a prompt, media included.
        completion: mean tokens of a completion.
        longest_prompt: tokens of the longest prompt; memory must hold it.
        longest_completion: longest completion of a batch as a rule; sampling lasts as long.
        max_completion: longest completion that can occur; memory must hold it.
        patches: patches of a clip's frames.
        steps: time steps of a clip's frames.
        mel_frames: mel frames of a clip's audio.
        group: rollouts per prompt (1 in SFT).
        micro: rows in one forward and backward pass of one GPU (rollouts in RL).
        accumulation: such passes per optimizer step.
        steps_per_generation: such passes that rollouts are sampled for at once; 0 for those of an optimizer step.
        iterations: times that rollouts are trained on.
        gpus: number of GPUs.
        sharding: "none" (every GPU holds all weights), "zero3" or "fsdp2".
        lora_rank: rank of LoRA; 0 trains the language model in full.
        checkpointing: whether activations are recomputed in the backward pass.
        reference: whether a KL reference is scored.
        calibration: whether the confidences of slow thinking are read.
        fast: whether those of fast thinking are read too, for every rollout.
        answer: tokens of a rollout's answer that are scored for its fast confidence.
        shared: whether a prompt is computed once for its rollouts in training.
        features: whether all tower features are cached and the towers not in memory.
        copies: whether every rollout has its own copy of its prompt's keys (flash attention), or all share one.
        engine: engine that samples, "hf" or "vllm".
        engine_share: share of the GPU's memory that a colocated vLLM takes; 0 for a server.
        engine_sleeps: whether it gives the memory back while the policy trains.
        utilisation: share of the GPU's FLOP/s that training reaches (assumption).
        layer_seconds: least seconds per layer of a decoding step in plain PyTorch (assumption).
    """

    stage: str
    rows: int
    epochs: float = 1
    max_steps: int = -1
    prompt: float = 1500
    completion: float = 300
    longest_prompt: float = 2125
    longest_completion: float = 600
    max_completion: float = 1024
    patches: float = 4800
    steps: int = 4
    mel_frames: float = 500
    group: int = 4
    micro: int = 4
    accumulation: int = 1
    steps_per_generation: int = 0
    iterations: int = 1
    gpus: int = 1
    sharding: str = "none"
    lora_rank: int = 0
    checkpointing: bool = True
    reference: bool = True
    calibration: bool = True
    fast: bool = False
    answer: int = 22
    shared: bool = True
    features: bool = True
    copies: bool = False
    engine: str = "hf"
    engine_share: float = 0.3
    engine_sleeps: bool = False
    utilisation: float = 0.4
    layer_seconds: float = 1e-3

    @property
    def prompts_per_step(self) -> float:
        """Prompts that one optimizer step sees, over all GPUs."""
        return self.micro * self.accumulation * self.gpus / self.group

    @property
    def optimizer_steps(self) -> float:
        """Optimizer steps of the whole run."""
        epochs = self.epochs * self.iterations
        return self.max_steps if self.max_steps > 0 else self.rows * epochs / self.prompts_per_step

    @property
    def passes_per_generation(self) -> int:
        """Forward and backward passes of a GPU whose rollouts are sampled at once."""
        return self.steps_per_generation or self.accumulation

    @property
    def rollouts_per_gpu(self) -> int:
        """Rollouts that one GPU samples at once."""
        return self.micro * self.passes_per_generation

    @property
    def colocated(self) -> bool:
        """Whether vLLM shares the training's GPUs."""
        return self.stage == "rl" and self.engine == "vllm" and self.engine_share > 0


def scoring_passes(job: Job) -> dict[str, float]:
    """Forward passes over prompts and completions that rollouts take beside training's own, by what they are for.

    With PyTorch the slow confidences are read where the policy samples. With vLLM they, and the old log-probabilities
    of its correction, come from training's own pass, but for the confidences of all batches of a generation except the
    first, which are read ahead. Where rollouts serve more than one optimizer step, a pass of the old log-probabilities
    gives them (docs/vllm.md, "Passes of a step").
    """
    if job.stage != "rl":
        return {}
    batches = job.passes_per_generation
    reused = job.accumulation % (batches * job.iterations) != 0
    ahead = job.engine == "vllm" and job.calibration and not reused
    made = {
        "slow confidences": (batches - 1) / batches * ahead,
        "old log-probabilities": float(reused),
        "reference": float(job.reference),
    }
    return {name: passes for name, passes in made.items() if passes}


def step_flops(shape: Shape, job: Job) -> dict[str, float]:
    """FLOPs of one optimizer step by part, over all GPUs; "total" is their sum.

    "towers" is 0 with cached features, unless vLLM samples: it runs its own towers on every prompt.
    """
    text, prompts, rl = shape.text, job.prompts_per_step, job.stage == "rl"
    scored = scored_once(shape, job) * prompts
    # Backward is two forwards, one where only an adapter learns; checkpointing runs the forward again.
    times = (2 if job.lora_rank else 3) + job.checkpointing
    parts = {"towers": 0.0, "prefill": 0.0, "sampling": 0.0, "fast confidences": 0.0}
    clips = (1.0 if job.shared else float(job.group)) * (0 if job.features else 1)
    encoded = clips * (1 + sum(scoring_passes(job).values()) / job.iterations)
    if rl:
        sampled = prompts / job.iterations
        parts["prefill"] = sampled * text.forward(job.prompt)
        parts["sampling"] = sampled * job.group * text.forward(job.completion, job.prompt, job.completion)
        parts["fast confidences"] = sampled * job.group * text.forward(job.answer, job.prompt) * job.fast
        encoded += (job.engine == "vllm" or not job.features) / job.iterations
    parts["towers"] = clip_flops(shape, job) * prompts * encoded
    parts |= {name: passes * scored / job.iterations for name, passes in scoring_passes(job).items()}
    parts["training"] = times * scored
    return {**parts, "total": sum(parts.values())}


def clip_flops(shape: Shape, job: Job) -> float:
    """FLOPs of one clip in the towers."""
    return shape.vision.forward(job.patches, job.steps) + shape.audio.forward(job.mel_frames)


def scored_once(shape: Shape, job: Job) -> float:
    """FLOPs of one forward over a prompt and all its completions; logits are made for completions only."""
    text = shape.text
    if job.shared:
        branches = text.forward(job.completion, job.prompt, job.completion)
        return text.forward(job.prompt) + job.group * branches
    return job.group * text.forward(job.prompt + job.completion, 0, job.completion)


def calibration_ways(shape: Shape, job: Job) -> dict[str, float]:
    """The fast confidences' share of a step without calibration, for four ways of computing them.

    The first two are shares of a step that computes every rollout's prompt on its own, the others of this one.
    """
    own = replace(job, calibration=False, fast=False)
    alone, shared = (
        step_flops(shape, way)["total"] / job.prompts_per_step for way in (replace(own, shared=False), own)
    )
    again, clip = shape.text.forward(job.prompt + job.answer), clip_flops(shape, job)
    return {
        "a forward per rollout, towers too": job.group * (again + clip) / alone,
        "a forward per prompt, towers too": (again + clip) / alone,
        "a forward per prompt": again / shared,
        "on the prompt's KV cache": job.group * shape.text.forward(job.answer, job.prompt) / shared,
    }


def kv_bytes(shape: Shape, tokens: float) -> float:
    """Bytes of the keys and values of that many tokens, in bf16."""
    return 2.0 * 2 * shape.text.layers * shape.text.kv_heads * shape.text.head_size * tokens


def step_seconds(shape: Shape, job: Job, gpu: Gpu) -> dict[str, float]:
    """Seconds of one optimizer step by part, with the work split evenly over the GPUs and without communication.

    Decoding is bound by memory bandwidth and, in plain PyTorch, by kernel launches: a step takes the larger of reading
    weights and caches at 60 % of the bandwidth and `layer_seconds` per layer (a quarter of that in vLLM). There are as
    many such steps as the longest completion has tokens.
    """
    flops = step_flops(shape, job)
    rate = job.gpus * gpu.flops * job.utilisation
    seconds = {name: part / rate for name, part in flops.items() if name != "total"}
    if job.stage == "rl":
        prompts = job.rollouts_per_gpu / (1 if job.copies else job.group)
        seen = prompts * job.prompt + job.rollouts_per_gpu * job.completion
        read = (2.0 * shape.text.parameters + kv_bytes(shape, seen)) / (0.6 * gpu.bandwidth)
        least = shape.text.layers * job.layer_seconds * (1.0 if job.engine == "hf" else 0.25)
        served = job.passes_per_generation * job.iterations / job.accumulation
        seconds["sampling"] = max(job.longest_completion * max(read, least) / served, seconds["sampling"])
    return {**seconds, "total": sum(seconds.values())}


def feature_seconds(shape: Shape, job: Job, gpu: Gpu) -> float:
    """Seconds to fill the feature cache once, if decoding is not the bottleneck."""
    return job.rows * clip_flops(shape, job) / (job.gpus * gpu.flops * job.utilisation)


def feature_bytes(shape: Shape, job: Job) -> float:
    """Bytes of the feature cache: one bf16 vector per merged patch and per four mel frames."""
    vectors = job.patches / shape.vision.merge**2 + job.mel_frames / 4
    return job.rows * vectors * shape.text.hidden * 2
