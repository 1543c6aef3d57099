"""The plan of a run: whether it fits, what would make it fit, and what would make it faster."""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from mer_r1.training.costs.memory import MARGIN, engine_bytes, memory
from mer_r1.training.costs.shapes import Shape
from mer_r1.training.costs.work import (
    Gpu,
    Job,
    calibration_ways,
    feature_bytes,
    feature_seconds,
    scoring_passes,
    step_flops,
    step_seconds,
)


def engine_starts(shape: Shape, job: Job, gpu: Gpu) -> bool:
    """Whether vLLM's share of the GPU holds what it needs to start; True where none is colocated."""
    return not job.colocated or job.engine_share * gpu.memory >= engine_bytes(shape, job)


def fits(shape: Shape, job: Job, gpu: Gpu) -> bool:
    """Whether vLLM starts and the peak stays within `MARGIN` of the GPU's memory."""
    return engine_starts(shape, job, gpu) and memory(shape, job, gpu)["total"] <= MARGIN * gpu.memory


def levers(shape: Shape, job: Job, gpu: Gpu) -> list[dict[str, Any]]:
    """Settings that make a step faster: peak bytes with each alone, whether that fits, times that a step is faster."""
    reuse = 4 * job.accumulation
    changes = {
        "gradient_checkpointing=false": replace(job, checkpointing=False),
        "beta=0": replace(job, reference=False) if job.stage == "rl" else job,
        f"steps_per_generation={reuse}": replace(job, steps_per_generation=reuse) if job.stage == "rl" else job,
    }
    before = step_seconds(shape, job, gpu)["total"]
    return [
        {
            "setting": setting,
            "bytes": memory(shape, changed, gpu)["total"],
            "fits": fits(shape, changed, gpu),
            "times": before / step_seconds(shape, changed, gpu)["total"],
        }
        for setting, changed in changes.items()
        if changed != job
    ]


def remedies(shape: Shape, job: Job, gpu: Gpu) -> list[str]:
    """Changes that make the run fit, each sufficient as worded; the mildest first."""
    found = [text for text, changed in _changes(shape, job, gpu) if fits(shape, changed, gpu)]
    return found or ["no setting makes it fit: use a smaller model or GPUs with more memory"]


def _changes(shape: Shape, job: Job, gpu: Gpu) -> Iterator[tuple[str, Job]]:
    word = ""
    if not engine_starts(shape, job, gpu):
        share = math.ceil(20 * engine_bytes(shape, job) / gpu.memory) / 20
        job, word = replace(job, engine_share=share), f"vllm_gpu_memory_utilization={share:.2f}"
        yield word, job
        word += ", and "
    if job.colocated and not job.engine_sleeps:
        yield f"{word}vllm_enable_sleep_mode=true", replace(job, engine_sleeps=True)
    small = replace(job, checkpointing=True, features=True)
    if small != job:
        yield f"{word}gradient_checkpointing=true, and all features cached before (mer-r1 features)", small
    if job.micro > job.group:
        less = replace(small, micro=job.group, accumulation=job.accumulation * job.micro // job.group)
        yield f"the same with per_device_train_batch_size={less.micro} and more accumulation", less
    if job.sharding == "none" and not job.lora_rank:
        for gpus in (job.gpus, 2, 4, 8, 16):
            if gpus > 1 and gpus >= job.gpus:
                yield f"{word}ZeRO-3 or FSDP2 over {gpus} GPUs", replace(small, sharding="zero3", gpus=gpus)
    if job.sharding != "none":
        for gpus in (8, 16, 32):
            if gpus > job.gpus:
                yield f"{word}{gpus} GPUs", replace(small, gpus=gpus)
    if not job.lora_rank:
        yield f"{word}lora_rank=64 (without ZeRO or FSDP)", replace(small, lora_rank=64, sharding="none")


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
        "scoring_passes": scoring_passes(job),
        "calibration_share": calibration_ways(shape, job) if job.fast else {},
        "memory_bytes": memory(shape, job, gpu),
        "gpu_bytes": gpu.memory,
        "engine_bytes": engine_bytes(shape, job) if job.colocated else 0.0,
        "engine_starts": engine_starts(shape, job, gpu),
        "fits": fitting,
        "levers": levers(shape, job, gpu),
        "remedies": [] if fitting else remedies(shape, job, gpu),
        "step_seconds": seconds,
        "feature_seconds": feature_seconds(shape, job, gpu),
        "feature_bytes": feature_bytes(shape, job),
        "run_seconds": seconds["total"] * job.optimizer_steps,
    }
