"""Peak memory of a GPU while a policy trains, samples or answers.

Counted where tensors are known (weights, gradients, optimizer, key-value cache, saved activations), estimated where
kernels decide (working memory of a layer). Source for the logits: TRL 1.16, `kernels/chunked_logprob.py`. Units: bytes.
"""

from mer_r1.training.costs.shapes import Shape
from mer_r1.training.costs.work import GB, Gpu, Job, kv_bytes

ADAM_BYTES = 8
"""Two moments in float32, per trained weight."""
CUDA_BYTES = 2.5 * GB
"""Memory of a process beside its tensors: context, kernels, communication buffers (estimate)."""
ANSWER_CUDA_BYTES = 1.0 * GB
"""The same of a process that only answers (estimate)."""
PRECISIONS = ("fp32", "bf16", "4bit")
FOUR_BIT_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4: half a byte, a byte per 64 weights, and a float32 per 256 of these."""
LOGITS_TILE = (4096, 32768)
"""Tokens and words whose logits exist at a time in the loss (TRL's fused head)."""
ENGINE_TOKENS = 8192
"""Tokens of one step of vLLM (`vllm.colocated.MOST_BATCHED_TOKENS`)."""
GRAPH_BYTES = 1.0 * GB
"""Memory of vLLM beside weights, working memory and cache: CUDA graphs (estimate)."""
MARGIN = 0.92
"""Share of a GPU's memory that is usable despite fragmentation (estimate)."""


def memory(shape: Shape, job: Job, gpu: Gpu) -> dict[str, float]:
    """Peak bytes on one GPU by part, at the longest lengths; "total" is what must fit.

    Sampling and training do not peak together: the larger of the two counts.
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
    share = {"vLLM": job.engine_share * gpu.memory if job.colocated else 0.0}
    sampling = sampling_memory(shape, job) if job.stage == "rl" and job.engine == "hf" else {}
    if job.engine_sleeps:
        sampling |= share
    else:
        parts |= share
    training = training_memory(shape, job)
    parts |= training if sum(training.values()) >= sum(sampling.values()) else sampling
    parts["CUDA"] = CUDA_BYTES
    return {**parts, "total": sum(parts.values())}


def training_memory(shape: Shape, job: Job) -> dict[str, float]:
    """Bytes of a forward and backward pass beside weights and their gradients, by part.

    The loss makes logits in tiles of `LOGITS_TILE`, and float32 gradients of the states that it reads. If the head
    learns, its gradient is a float32 tensor of its own before it is added to that of the weights.
    """
    text, scored = shape.text, job.micro * job.max_completion
    tile = 2.0 * min(scored, LOGITS_TILE[0]) * min(text.vocabulary, LOGITS_TILE[1])
    found = {"activations": activations(shape, job), "logits": tile + 4.0 * scored * text.hidden}
    return found | ({} if job.lora_rank else {"head's gradient": 4.0 * text.vocabulary * text.hidden})


def sampling_memory(shape: Shape, job: Job) -> dict[str, float]:
    """Bytes of sampling in PyTorch by part: when all prompts of a step are computed, or when all rollouts are long."""
    prompts = max(job.rollouts_per_gpu / job.group, 1.0)
    begun = kv_bytes(shape, prompts * job.longest_prompt)
    working = _working_bytes(shape, prompts * job.longest_prompt)
    full = kv_cache(shape, job)
    return {"KV cache": begun, "prefill": working} if begun + working > full else {"KV cache": full}


def engine_bytes(shape: Shape, job: Job) -> float:
    """Bytes that vLLM needs to start: the whole thinker in bf16, one step's working memory, room for one sequence."""
    sequence = kv_bytes(shape, job.longest_prompt + job.max_completion)
    return 2.0 * shape.parameters + _working_bytes(shape, ENGINE_TOKENS) + sequence + GRAPH_BYTES


def _working_bytes(shape: Shape, tokens: float, size: float = 2.0) -> float:
    # Inside one layer of a forward pass that keeps nothing (estimate): its input, the norm's output, and four times
    # the feed-forward's width.
    return size * tokens * (2 * shape.text.hidden + 4 * shape.text.intermediate)


def answer_memory(shape: Shape, precision: str, batch: int, job: Job) -> dict[str, float]:
    """Peak bytes of answering `batch` clips at a time by part; "total" is what must fit.

    Args:
        shape: the model.
        precision: of `PRECISIONS`.
        batch: clips whose completions are sampled together; the towers see one clip at a time.
        job: longest prompt and completion, patches; the rest is not looked at.
    """
    text, size = shape.text, 4.0 if precision == "fp32" else 2.0
    matrices = float(text.layers * text.layer_matrices)
    held = matrices * (FOUR_BIT_BYTES if precision == "4bit" else size)
    parts = {"language model": held + size * (text.parameters - matrices), "towers": size * shape.tower_parameters}
    parts["KV cache"] = kv_bytes(shape, batch * (job.longest_prompt + job.max_completion)) * size / 2
    prefill = _working_bytes(shape, batch * job.longest_prompt, size)
    frames = size * job.patches * (10 * shape.vision.hidden + 4 * shape.vision.intermediate)
    logits = 5 * 4.0 * batch * text.vocabulary  # raw, scaled, log-probabilities, allowed ones, and one more to sort
    parts["activations"] = max(prefill, frames, logits)
    parts["CUDA"] = ANSWER_CUDA_BYTES
    return {**parts, "total": sum(parts.values())}


def kv_cache(shape: Shape, job: Job) -> float:
    """Bytes of keys and values while a GPU samples: room for the longest prompt and completions is taken at once."""
    prompts = max(job.rollouts_per_gpu / job.group, 1.0) if not job.copies else job.rollouts_per_gpu
    return kv_bytes(shape, prompts * job.longest_prompt + job.rollouts_per_gpu * job.max_completion)


def activations(shape: Shape, job: Job) -> float:
    """Bytes kept for the backward pass: with checkpointing each layer's input and the inside of one layer (estimate).

    Inside a layer, in bf16: the input, two norms' outputs and their float32 inner values, queries, keys, values, the
    outputs of attention and of its projection, and four times the feed-forward's width. Attention keeps no scores
    (sdpa, flash).
    """
    text = shape.text
    prompts = max(job.micro / job.group, 1.0) if job.shared else job.micro
    tokens = prompts * job.longest_prompt + job.micro * job.max_completion
    keys = text.kv_heads * text.head_size
    inside = 2.0 * tokens * (10 * text.hidden + 2 * keys + 4 * text.intermediate)
    saved = 2.0 * tokens * text.hidden * text.layers
    return saved + inside if job.checkpointing else saved + text.layers * inside
