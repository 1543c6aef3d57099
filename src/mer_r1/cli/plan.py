"""`mer-r1 plan`: what a run will cost, in FLOPs, memory per GPU and time."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Annotated, Any

import typer
from rich.table import Table

from mer_r1.cli.app import AsJson, app, console, print_json, say
from mer_r1.cli.options import PASS_ON, RECIPE
from mer_r1.data.media.container import ClipLimits
from mer_r1.errors import UserError
from mer_r1.training.costs.memory import MARGIN, PRECISIONS, answer_memory
from mer_r1.training.costs.plan import as_dict
from mer_r1.training.costs.shapes import SHAPES, Shape, shape_of
from mer_r1.training.costs.work import GB, GPUS, Job
from mer_r1.training.recipe_files import plain_recipe, select_clips

ANSWERED = 512
"""Longest answer of `predict`, its --max-new-tokens."""


@dataclass(frozen=True)
class Lengths:
    """Options of how long prompts and completions are; what is not given follows from the clips."""

    frame: Annotated[str, typer.Option(help="Size of the clips' frames in pixels, WIDTHxHEIGHT.")] = "640x360"
    seconds: Annotated[float, typer.Option(min=0, help="Mean length of a clip.")] = 5.0
    text_tokens: Annotated[int, typer.Option(min=0, help="Tokens of question and subtitle.")] = 175
    completion: Annotated[int, typer.Option(min=1, help="Mean tokens of a completion.")] = 300
    longest_completion: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest completion of a batch as a rule: sampling lasts as long. Twice the mean if not given, up to "
            "what the recipe allows.",
        ),
    ] = None
    video_tokens: Annotated[
        int | None, typer.Option(min=0, help="Mean tokens of a clip's frames; those of --frame if not given.")
    ] = None
    prompt: Annotated[
        int | None, typer.Option(min=1, help="Mean tokens of a prompt, media included; their sum if not given.")
    ] = None
    longest_prompt: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the longest prompt; with audio of the model's max_seconds if not given."),
    ] = None

    def of(self, shape: Shape, most: int | None) -> dict[str, float]:
        """The lengths as fields of `Job`.

        Args:
            shape: model, with the limits of clips.
            most: longest completion that is allowed; None for no such bound.

        Raises:
            UserError: the size of a frame is none.
        """
        frames = self.frame_tokens(shape) if self.video_tokens is None else self.video_tokens
        heard = shape.mel_frames(self.seconds)
        prompt = self.prompt or round(frames + heard / 4 + self.text_tokens)
        longest = round(frames + shape.mel_frames(shape.limits.max_seconds) / 4 + self.text_tokens)
        batch = self.longest_completion or min(2 * self.completion, most or 2 * self.completion)
        return {
            "prompt": prompt,
            "longest_prompt": self.longest_prompt or max(longest, prompt),
            "completion": self.completion,
            "longest_completion": batch,
            "max_completion": max(most or batch, self.completion),
            "patches": frames * shape.vision.merge**2,
            "steps": -(-shape.limits.num_frames // shape.vision.temporal),
            "mel_frames": heard,
        }

    def frame_tokens(self, shape: Shape) -> int:
        """Tokens of a clip's frames.

        Raises:
            UserError: the size of a frame is none.
        """
        width, _, height = self.frame.partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) * int(height)):
            raise UserError(f"--frame must be WIDTHxHEIGHT such as 640x360, got {self.frame!r}")
        return shape.video_tokens(int(height), int(width))


@app.command(context_settings=PASS_ON)
def plan(
    context: typer.Context,
    lengths: Lengths,
    config: Annotated[str | None, RECIPE] = None,
    stage: Annotated[
        str | None, typer.Option(help="sft or rl, for a recipe with both; taken from the recipe if not given.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs.")] = 1,
    gpu: Annotated[str, typer.Option(help="h100, h200, a100, a100-40, l40s or rtx4090.")] = "h100",
    sharding: Annotated[
        str, typer.Option(help="none, zero3, fsdp2, or auto: zero3 for full training on several GPUs.")
    ] = "auto",
    num_clips: Annotated[
        int | None, typer.Option(min=1, help="Number of clips; counted in the manifest if not given.")
    ] = None,
    cached: Annotated[bool, typer.Option(help="All features are cached and the towers not in memory.")] = True,
    shape: Annotated[str | None, typer.Option(help="Sizes of this model instead of the recipe's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compute FLOPs, memory per GPU and time of a run, and whether it fits. Loads no weights.

    Set fields of the recipe as key=value. `mer-r1 plan predict` shows the memory of answering instead, per model and
    precision.
    """
    if gpu not in GPUS:
        raise UserError(f"gpu must be one of {', '.join(GPUS)}, got {gpu!r}")
    if context.args == ["predict"] and config is None:
        models = [shape_of(shape)] if shape else [SHAPES[name] for name in sorted(SHAPES)]
        jobs = [(model, Job("predict", 1, **lengths.of(model, ANSWERED))) for model in models]  # type: ignore[arg-type]
        _show_answering(jobs, gpu, as_json)
        return
    if config is None:
        raise UserError("expected --config RECIPE, or: mer-r1 plan predict")
    recipe, kind = _recipe(config, stage, context.args)
    model = shape_of(shape or recipe.model or "")
    model = replace(model, limits=replace(model.limits, **ClipLimits.given(recipe)))
    most = recipe.max_completion_length if kind == "rl" else None
    job = _job(recipe, kind, gpus, sharding, num_clips, cached, lengths.of(model, most))
    costs = as_dict(model, job, GPUS[gpu])
    if as_json:
        print_json(costs)
        return
    if lengths.prompt is None:
        say(_clip_line(model, lengths, job))
    _show(costs, gpu)


def _clip_line(model: Shape, lengths: Lengths, job: Job) -> str:
    limits = model.limits
    pixels = min(limits.max_pixels or model.most_pixels, model.most_pixels, limits.limits().max_side ** 2)
    sized = replace(lengths, frame="1280x720").frame_tokens(model)
    return (
        f"of each clip {limits.num_frames} frames of at most {pixels} pixels and {limits.max_seconds:g} s: frames of "
        f"{lengths.frame} make {job.patches / model.vision.merge**2:.0f} tokens (1280x720: {sized}), "
        f"{lengths.seconds:g} s of audio {job.mel_frames / 4:.0f}, text {lengths.text_tokens}"
    )


def _show_answering(jobs: list[tuple[Shape, Job]], gpu: str, as_json: bool) -> None:
    """The memory that answers take, one clip at a time and eight (the default of predict)."""
    rows = [
        (model.name, precision, answer_memory(model, precision, 1, job), answer_memory(model, precision, 8, job))
        for model, job in jobs
        for precision in PRECISIONS
    ]
    if as_json:
        print_json([dict(zip(("model", "precision", "clips_1", "clips_8"), row, strict=True)) for row in rows])
        return
    size, job = GPUS[gpu].memory, jobs[0][1]
    say(
        f"prompts of up to {job.longest_prompt:.0f} tokens, completions of up to {job.max_completion:.0f}: "
        "computed, not measured"
    )
    table = Table("model", "precision", "weights", "1 clip", "8 clips", f"fits {gpu} ({size / GB:.0f} GB)", box=None)
    for name, precision, one, eight in rows:
        most = 8 if eight["total"] <= MARGIN * size else 1 if one["total"] <= MARGIN * size else 0
        weights = one["language model"] + one["towers"]
        told = {8: "yes", 1: "with --batch-size 1", 0: "no"}[most]
        numbers = (f"{value / GB:.1f} GB" for value in (weights, one["total"], eight["total"]))
        table.add_row(name, precision, *numbers, told)
    console.print(table)


def _recipe(config: str, stage: str | None, overrides: list[str]) -> tuple[SimpleNamespace, str]:
    if stage not in (None, "sft", "rl"):
        raise UserError(f"stage must be sft or rl, got {stage!r}")
    if stage != "rl":
        try:
            return plain_recipe("sft", config, overrides), "sft"
        except UserError:
            if stage == "sft":
                raise
    return plain_recipe("rl", config, overrides), "rl"


def _job(
    recipe: Any, kind: str, gpus: int, sharding: str, rows: int | None, cached: bool, lengths: dict[str, float]
) -> Job:
    if sharding not in ("auto", "none", "zero3", "fsdp2"):
        raise UserError(f"sharding must be none, zero3, fsdp2 or auto, got {sharding!r}")
    if sharding == "auto":
        sharding = "none" if gpus == 1 or recipe.lora_rank else "zero3"
    job = Job(
        stage=kind,
        rows=rows or len(select_clips(recipe)),
        epochs=recipe.num_train_epochs,
        max_steps=recipe.max_steps,
        micro=recipe.per_device_train_batch_size,
        accumulation=recipe.gradient_accumulation_steps,
        gpus=gpus,
        sharding=sharding,
        group=1,
        lora_rank=recipe.lora_rank,
        checkpointing=recipe.gradient_checkpointing,
        reference=False,
        calibration=False,
        shared=recipe.shared_prefixes,
        features=cached and not recipe.train_towers,
        copies="flash" in str((recipe.model_init_kwargs or {}).get("attn_implementation")),
        **lengths,  # type: ignore[arg-type]
    )
    return job if kind == "sft" else _rl_job(job, recipe)


def _rl_job(job: Job, recipe: Any) -> Job:
    together = recipe.steps_per_generation or 0
    if recipe.generation_batch_size:
        together = recipe.generation_batch_size // (job.micro * job.gpus)
    calibrates = recipe.method == "mer-r1"
    job = replace(
        job,
        group=recipe.num_generations,
        steps_per_generation=together,
        iterations=recipe.num_iterations,
        reference=recipe.beta > 0,
        calibration=calibrates,
        fast=calibrates and recipe.calibration in ("reasoning", "difference"),
        engine=recipe.rollouts,
        engine_share=recipe.vllm_gpu_memory_utilization if recipe.vllm_mode == "colocate" else 0.0,
        engine_sleeps=recipe.vllm_enable_sleep_mode,
    )
    if (rollouts := job.rollouts_per_gpu * job.gpus) % job.group:
        raise UserError(f"{rollouts} rollouts are sampled at once, expected a multiple of num_generations={job.group}")
    return job


def _show(costs: dict[str, Any], gpu: str) -> None:
    job = costs["job"]
    split = "" if job["gpus"] == 1 else f", {'the model on each' if job['sharding'] == 'none' else job['sharding']}"
    say(f"{costs['model']}, {job['stage']}, {job['gpus']} x {gpu}{split}: computed, not measured")
    say(
        f"{job['rows']} clips, {costs['optimizer_steps']:.0f} steps of "
        f"{job['micro'] * job['accumulation'] * job['gpus']} rows; prompts of {job['prompt']:.0f} tokens "
        f"(longest {job['longest_prompt']:.0f}), completions of {job['completion']:.0f} (longest of a batch "
        f"{job['longest_completion']:.0f}, at most {job['max_completion']:.0f})"
    )
    table = Table("part", "TFLOP a step", "seconds a step", box=None)
    for part, flops in costs["step_flops"].items():
        if flops:
            table.add_row(part, f"{flops / 1e12:.1f}", f"{costs['step_seconds'][part]:.2f}")
    console.print(table)
    say(
        f"without shared prefixes {costs['step_flops_unshared'] / 1e12:.0f} TFLOP a step, without cached features "
        f"{costs['step_flops_without_features'] / 1e12:.0f}"
    )
    for way, share in costs["calibration_share"].items():
        say(f"  fast confidences {way}: +{100 * share:.2f} %")
    table = Table("memory of a GPU", "GB", box=None)
    for part, size in costs["memory_bytes"].items():
        if size:
            table.add_row(part, f"{size / 1e9:.1f}")
    console.print(table)
    say(
        f"features once: {_time(costs['feature_seconds'])}, {costs['feature_bytes'] / 1e9:.1f} GB on disk; "
        f"training: {_time(costs['run_seconds'])}"
    )
    for lever in costs["levers"]:
        told = "fits" if lever["fits"] else "does not fit"
        say(f"  {lever['setting']}: {lever['bytes'] / GB:.1f} GB, {told}; a step {lever['times']:.2f}x as fast")
    if not costs["engine_starts"]:
        share = job["engine_share"] * costs["gpu_bytes"]
        say(
            f"vLLM cannot start: its share is {share / GB:.1f} GB (vllm_gpu_memory_utilization="
            f"{job['engine_share']:g}), and weights, working memory and one sequence take "
            f"{costs['engine_bytes'] / GB:.1f} GB",
            style="red",
        )
    if costs["fits"]:
        say(f"fits into {costs['gpu_bytes'] / 1e9:.0f} GB", style="green")
    else:
        say(f"does NOT fit into {costs['gpu_bytes'] / 1e9:.0f} GB; what would:", style="red")
        for remedy in costs["remedies"]:
            say(f"  {remedy}")


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
