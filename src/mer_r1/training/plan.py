"""What a run will cost: FLOPs, memory per GPU, time, and whether it fits.

Arithmetic over a model's shape (`shapes`), the lengths of prompts and completions, and a few settings. FLOPs are
counted; memory is counted where tensors are known (weights, gradients, optimizer, KV cache, saved activations) and
estimated where kernels decide (working memory of a layer); time rests on the assumptions in `Gpu` and `Job`, which are
orders of magnitude, not measurements: a plan helps to choose settings, a short run measures them.

Sources: docs/paper_map.md, training; NVIDIA's data sheets for the GPUs (dense bf16). Units: FLOPs, bytes, seconds;
shapes are named as in `packing` (P prompt and T completion tokens, G rollouts).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from mer_r1.training.shapes import Shape

GB = 1e9
ADAM_BYTES = 8
"""Two moments in float32, per trained weight."""
CUDA_BYTES = 2.5 * GB
"""Memory of a process beside its tensors: context, kernels, communication buffers (estimate)."""
ANSWER_CUDA_BYTES = 1.0 * GB
"""The same of a process that only answers (estimate)."""
PRECISIONS = ("fp32", "bf16", "4bit")
FOUR_BIT_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4: half a byte, a byte per 64 weights, and a float32 per 256 of these."""
MARGIN = 0.92
"""Share of a GPU's memory that is usable despite fragmentation (estimate)."""


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
        prompt: mean tokens of a prompt, media included.
        completion: mean tokens of a completion.
        patches: patches of a clip's frames.
        steps: time steps of a clip's frames.
        mel_frames: mel frames of a clip's audio.
        group: rollouts per prompt (1 in SFT).
        micro: rows in one forward and backward pass of one GPU (rollouts in RL).
        accumulation: such passes per optimizer step.
        sharding: "none" (every GPU holds all weights), "zero3" or "fsdp2".
        lora_rank: rank of LoRA; 0 trains the language model in full.
        checkpointing: whether activations are recomputed in the backward pass.
        reference: whether a KL reference is scored.
        calibration: whether fast confidences are computed.
        shared: whether a prompt is computed once for its rollouts in training.
        features: whether all tower features are cached and the towers not in memory.
        fast: tokens of a rollout's answer that are scored for its fast confidence.
        engine: engine that samples, "hf" or "vllm".
        engine_share: share of the GPU's memory that a colocated vLLM takes.
        utilisation: share of the GPU's FLOP/s that training reaches (assumption).
        layer_seconds: least seconds per layer of a decoding step in plain PyTorch (assumption).
    """

    stage: str
    rows: int
    epochs: float = 1
    prompt: float = 1500
    completion: float = 300
    patches: float = 4800
    steps: int = 4
    mel_frames: float = 500
    group: int = 4
    micro: int = 4
    accumulation: int = 1
    gpus: int = 1
    sharding: str = "none"
    lora_rank: int = 0
    checkpointing: bool = True
    reference: bool = True
    calibration: bool = True
    shared: bool = True
    features: bool = True
    fast: int = 22
    engine: str = "hf"
    engine_share: float = 0.3
    utilisation: float = 0.4
    layer_seconds: float = 1e-3

    @property
    def prompts_per_step(self) -> float:
        """Prompts that one optimizer step sees, over all GPUs."""
        return self.micro * self.accumulation * self.gpus / self.group

    @property
    def optimizer_steps(self) -> float:
        """Optimizer steps of the whole run."""
        return self.rows * self.epochs / self.prompts_per_step


def step_flops(shape: Shape, job: Job) -> dict[str, float]:
    """FLOPs of one optimizer step by part, over all GPUs; "total" is their sum.

    "towers" counts passes within training only: 0 with cached features.
    """
    text, prompts = shape.text, job.prompts_per_step
    rollouts = prompts * job.group
    once = clip_flops(shape, job)
    training = scored_once(shape, job) * prompts
    # Backward is two forwards, one where only an adapter learns; checkpointing runs the forward again.
    times = (2 if job.lora_rank else 3) + job.checkpointing
    passes = 1.0 if job.shared else float(job.group)
    parts = {"towers": 0.0, "prefill": 0.0, "sampling": 0.0, "fast confidence": 0.0, "reference": 0.0}
    parts["training"] = times * training
    if not job.features:
        parts["towers"] = once * prompts * (passes + (1 + passes * job.reference if job.stage == "rl" else 0))
    if job.stage == "rl":
        parts["prefill"] = prompts * text.forward(job.prompt)
        parts["sampling"] = rollouts * text.forward(job.completion, job.prompt, job.completion)
        parts["fast confidence"] = rollouts * text.forward(job.fast, job.prompt) * job.calibration
        parts["reference"] = training * job.reference
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
    """The fast confidence's share of a step without it, for four ways of computing it."""
    base = step_flops(shape, replace(job, calibration=False))["total"] / job.prompts_per_step
    again, clip = shape.text.forward(job.prompt + job.fast), clip_flops(shape, job)
    extra = {
        "a forward per rollout, towers too": job.group * (again + clip),
        "a forward per prompt, towers too": again + clip,
        "a forward per prompt": again,
        "on the prompt's KV cache": shape.text.forward(job.fast, job.prompt),
    }
    return {name: flops / base for name, flops in extra.items()}


def memory(shape: Shape, job: Job, gpu: Gpu) -> dict[str, float]:
    """Peak bytes on one GPU by part; "total" is what must fit.

    Sampling and training do not peak together: the larger of the KV cache and of the activations with logits counts.
    """
    text = shape.text
    shards = 1 if job.sharding == "none" else job.gpus
    trained = text.lora_parameters(job.lora_rank) if job.lora_rank else text.parameters
    parts = {"weights": 4.0 * trained / shards + (2.0 * text.parameters if job.lora_rank else 0.0)}
    if not job.lora_rank:  # bf16 copies for the forward pass: of all weights, or of the gathered layers
        live = text.parameters if shards == 1 else 3 * text.layer_parameters + text.vocabulary * text.hidden
        parts["bf16 copies"] = 2.0 * live
    parts["gradients"] = 4.0 * trained / shards
    parts["optimizer"] = ADAM_BYTES * trained / shards
    keeps_reference = job.stage == "rl" and job.reference and not job.lora_rank
    parts["reference"] = 2.0 * text.parameters / shards if keeps_reference else 0.0
    parts["towers"] = 0.0 if job.features else 2.0 * shape.tower_parameters
    parts["vLLM"] = job.engine_share * gpu.memory if job.stage == "rl" and job.engine == "vllm" else 0.0
    cache = kv_cache(shape, job) if job.stage == "rl" and job.engine == "hf" else 0.0
    # TRL's fused head computes the logits in chunks of 256 tokens (estimate).
    busy = {"activations": activations(shape, job), "logits": 3 * 4.0 * 256 * text.vocabulary}
    parts |= busy if sum(busy.values()) > cache else {"KV cache": cache}
    parts["CUDA"] = CUDA_BYTES
    return {**parts, "total": sum(parts.values())}


def answer_memory(shape: Shape, precision: str, batch: int, job: Job) -> dict[str, float]:
    """Peak bytes of answering `batch` clips at a time by part; "total" is what must fit.

    Args:
        shape: the model.
        precision: of `PRECISIONS`.
        batch: clips whose completions are sampled together; the towers see one clip at a time.
        job: lengths of prompt and completion, patches; the rest is not looked at.
    """
    text, size = shape.text, 4.0 if precision == "fp32" else 2.0
    matrices = float(text.layers * text.layer_matrices)
    held = matrices * (FOUR_BIT_BYTES if precision == "4bit" else size)
    parts = {"language model": held + size * (text.parameters - matrices), "towers": size * shape.tower_parameters}
    asked = replace(job, micro=batch, accumulation=1, group=1)
    parts["KV cache"] = kv_cache(shape, asked) * size / 2
    keys, tokens = text.kv_heads * text.head_size, batch * job.prompt
    prefill = size * tokens * (10 * text.hidden + 2 * keys + 4 * text.intermediate)
    frames = size * job.patches * (10 * shape.vision.hidden + 4 * shape.vision.intermediate)
    logits = 5 * 4.0 * batch * text.vocabulary  # raw, scaled, log-probabilities, allowed ones, and one more to sort
    parts["activations"] = max(prefill, frames, logits)
    parts["CUDA"] = ANSWER_CUDA_BYTES
    return {**parts, "total": sum(parts.values())}


def kv_cache(shape: Shape, job: Job) -> float:
    """Bytes of keys and values while a GPU samples all rollouts of a step, each with its copy of the prompt."""
    rollouts = job.micro * job.accumulation
    numbers = 2 * shape.text.layers * shape.text.kv_heads * shape.text.head_size
    return 2.0 * numbers * rollouts * (job.prompt + job.completion)


def activations(shape: Shape, job: Job) -> float:
    """Bytes kept for the backward pass: with checkpointing each layer's input and the inside of one layer (estimate).

    Inside a layer, in bf16: the input, two norms' outputs and their float32 inner values, queries, keys, values, the
    outputs of attention and of its projection, and four times the feed-forward's width. Attention keeps no scores
    (sdpa, flash).
    """
    text = shape.text
    prompts = max(job.micro / job.group, 1.0) if job.shared else job.micro
    tokens = prompts * job.prompt + job.micro * job.completion
    keys = text.kv_heads * text.head_size
    inside = 2.0 * tokens * (10 * text.hidden + 2 * keys + 4 * text.intermediate)
    saved = 2.0 * tokens * text.hidden * text.layers
    return saved + inside if job.checkpointing else saved + text.layers * inside


def step_seconds(shape: Shape, job: Job, gpu: Gpu) -> dict[str, float]:
    """Seconds of one optimizer step by part, with the work split evenly over the GPUs and without communication.

    Decoding is bound by memory bandwidth and, in plain PyTorch, by kernel launches: a step takes the larger of reading
    weights and caches at 60 % of the bandwidth and `layer_seconds` per layer (a quarter of that in vLLM).
    """
    flops = step_flops(shape, job)
    rate = job.gpus * gpu.flops * job.utilisation
    seconds = {name: flops[name] / rate for name in ("towers", "prefill", "fast confidence", "reference", "training")}
    decoding = 0.0
    if job.stage == "rl":
        read = (2.0 * shape.text.parameters + kv_cache(shape, job)) / (0.6 * gpu.bandwidth)
        least = shape.text.layers * job.layer_seconds * (1.0 if job.engine == "hf" else 0.25)
        decoding = max(job.completion * max(read, least), flops["sampling"] / rate)
    seconds["sampling"] = decoding
    return {**seconds, "total": sum(seconds.values())}


def feature_seconds(shape: Shape, job: Job, gpu: Gpu) -> float:
    """Seconds to fill the feature cache once, if decoding is not the bottleneck."""
    return job.rows * clip_flops(shape, job) / (job.gpus * gpu.flops * job.utilisation)


def feature_bytes(shape: Shape, job: Job) -> float:
    """Bytes of the feature cache: one bf16 vector per merged patch and per four mel frames."""
    vectors = job.patches / shape.vision.merge**2 + job.mel_frames / 4
    return job.rows * vectors * shape.text.hidden * 2


def fits(shape: Shape, job: Job, gpu: Gpu) -> bool:
    """Whether the peak stays within `MARGIN` of the GPU's memory."""
    return memory(shape, job, gpu)["total"] <= MARGIN * gpu.memory


def remedies(shape: Shape, job: Job, gpu: Gpu) -> list[str]:
    """Changes that make the run fit, each sufficient as worded; the mildest first."""
    found = [text for text, changed in _changes(job) if fits(shape, changed, gpu)]
    return found or ["no setting makes it fit: use a smaller model or GPUs with more memory"]


def _changes(job: Job) -> Iterator[tuple[str, Job]]:
    small = replace(job, checkpointing=True, features=True)
    if small != job:
        yield "gradient_checkpointing=true, and all features cached before (mer-r1 features)", small
    if job.micro > job.group:
        less = replace(small, micro=job.group, accumulation=job.accumulation * job.micro // job.group)
        yield f"the same with per_device_train_batch_size={less.micro} and more accumulation", less
    if job.sharding == "none" and not job.lora_rank:
        for gpus in (job.gpus, 2, 4, 8, 16):
            if gpus > 1 and gpus >= job.gpus:
                yield f"ZeRO-3 or FSDP2 over {gpus} GPUs", replace(small, sharding="zero3", gpus=gpus)
    if job.sharding != "none":
        for gpus in (8, 16, 32):
            if gpus > job.gpus:
                yield f"{gpus} GPUs", replace(small, gpus=gpus)
    if not job.lora_rank:
        yield "lora_rank=64 (without ZeRO or FSDP)", replace(small, lora_rank=64, sharding="none")


def as_dict(shape: Shape, job: Job, gpu: Gpu) -> dict[str, object]:
    """The whole plan as plain values: FLOPs, bytes, seconds."""
    seconds, fitting = step_seconds(shape, job, gpu), fits(shape, job, gpu)
    return {
        "model": shape.name,
        "parameters": {"language model": shape.text.parameters, "towers": shape.tower_parameters},
        "job": asdict(job),
        "optimizer_steps": job.optimizer_steps,
        "step_flops": step_flops(shape, job),
        "step_flops_unshared": step_flops(shape, replace(job, shared=False))["total"],
        "step_flops_without_features": step_flops(shape, replace(job, features=False))["total"],
        "calibration_share": calibration_ways(shape, job) if job.stage == "rl" else {},
        "memory_bytes": memory(shape, job, gpu),
        "gpu_bytes": gpu.memory,
        "fits": fitting,
        "remedies": [] if fitting else remedies(shape, job, gpu),
        "step_seconds": seconds,
        "feature_seconds": feature_seconds(shape, job, gpu),
        "feature_bytes": feature_bytes(shape, job),
        "run_seconds": seconds["total"] * job.optimizer_steps,
    }
