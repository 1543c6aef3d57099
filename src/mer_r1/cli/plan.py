"""`mer-r1 plan`: what a run will cost, in FLOPs, memory per GPU and time."""

from typing import Annotated, Any

import typer
from rich.table import Table

from mer_r1.cli.app import AsJson, app, console, print_json, say
from mer_r1.cli.options import PASS_ON, RECIPE
from mer_r1.errors import UserError
from mer_r1.training.plan import GB, GPUS, MARGIN, PRECISIONS, Job, answer_memory, as_dict
from mer_r1.training.shapes import SHAPES, Shape, shape_of


@app.command(context_settings=PASS_ON)
def plan(
    context: typer.Context,
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
    prompt: Annotated[int, typer.Option(min=1, help="Mean tokens of a prompt, media included.")] = 1500,
    completion: Annotated[int, typer.Option(min=1, help="Mean tokens of a completion.")] = 300,
    seconds: Annotated[float, typer.Option(min=0, help="Mean length of a clip.")] = 5.0,
    video_tokens: Annotated[int, typer.Option(min=0, help="Mean tokens of a clip's frames.")] = 1200,
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
        job = Job("predict", 1, prompt=prompt, completion=completion, patches=4.0 * video_tokens)
        _show_answering(models, job, gpu, as_json)
        return
    if config is None:
        raise UserError("expected --config RECIPE, or: mer-r1 plan predict")
    recipe, kind = _recipe(config, stage, context.args)
    model = shape_of(shape or recipe.model or "")
    sizes = {"prompt": prompt, "completion": completion, "mel_frames": seconds * model.mels_per_second}
    patches = {"patches": video_tokens * model.vision.merge**2}
    job = _job(recipe, kind, gpus, sharding, num_clips, cached, sizes | patches)
    costs = as_dict(model, job, GPUS[gpu])
    if as_json:
        print_json(costs)
    else:
        _show(costs, gpu)


def _show_answering(models: list[Shape], job: Job, gpu: str, as_json: bool) -> None:
    """The memory that answers take, one clip at a time and eight (the default of predict)."""
    rows = [
        (model.name, precision, answer_memory(model, precision, 1, job), answer_memory(model, precision, 8, job))
        for model in models
        for precision in PRECISIONS
    ]
    if as_json:
        print_json([dict(zip(("model", "precision", "clips_1", "clips_8"), row, strict=True)) for row in rows])
        return
    size = GPUS[gpu].memory
    say(f"prompts of {job.prompt:.0f} tokens, completions of {job.completion:.0f}: computed, not measured")
    table = Table("model", "precision", "weights", "1 clip", "8 clips", f"fits {gpu} ({size / GB:.0f} GB)", box=None)
    for name, precision, one, eight in rows:
        most = 8 if eight["total"] <= MARGIN * size else 1 if one["total"] <= MARGIN * size else 0
        weights = one["language model"] + one["towers"]
        told = {8: "yes", 1: "with --batch-size 1", 0: "no"}[most]
        numbers = (f"{value / GB:.1f} GB" for value in (weights, one["total"], eight["total"]))
        table.add_row(name, precision, *numbers, told)
    console.print(table)


def _recipe(config: str, stage: str | None, overrides: list[str]) -> tuple[Any, str]:
    from mer_r1.training.recipe_files import read_recipe
    from mer_r1.training.recipes import RLRecipe, SFTRecipe

    settings = [*overrides, "use_cpu=true", "bf16=false"]  # this machine need not be the planned one
    if not any(word.lstrip("-").startswith("output_dir") for word in overrides):
        settings.append("output_dir=planned")
    if stage not in (None, "sft", "rl"):
        raise UserError(f"stage must be sft or rl, got {stage!r}")
    if stage != "rl":
        try:
            return read_recipe(SFTRecipe, config, settings), "sft"
        except UserError:
            if stage == "sft":
                raise
    return read_recipe(RLRecipe, config, settings), "rl"


def _job(
    recipe: Any, kind: str, gpus: int, sharding: str, rows: int | None, cached: bool, sizes: dict[str, float]
) -> Job:
    from mer_r1.training.stage import select_clips

    if sharding not in ("auto", "none", "zero3", "fsdp2"):
        raise UserError(f"sharding must be none, zero3, fsdp2 or auto, got {sharding!r}")
    if sharding == "auto":
        sharding = "none" if gpus == 1 or recipe.lora_rank else "zero3"
    rl = kind == "rl"
    return Job(
        stage=kind,
        rows=rows or len(select_clips(recipe)),
        epochs=recipe.num_train_epochs,
        group=recipe.num_generations if rl else 1,
        micro=recipe.per_device_train_batch_size,
        accumulation=recipe.gradient_accumulation_steps,
        gpus=gpus,
        sharding=sharding,
        lora_rank=recipe.lora_rank,
        checkpointing=recipe.gradient_checkpointing,
        reference=rl and recipe.beta > 0,
        calibration=rl and recipe.calibrates,
        shared=recipe.shared_prefixes,
        features=cached and not recipe.train_towers,
        engine=recipe.rollouts if rl else "hf",
        engine_share=recipe.vllm_gpu_memory_utilization if rl and recipe.vllm_mode == "colocate" else 0.0,
        **sizes,  # type: ignore[arg-type]
    )


def _show(costs: dict[str, Any], gpu: str) -> None:
    job = costs["job"]
    split = "" if job["gpus"] == 1 else f", {'the model on each' if job['sharding'] == 'none' else job['sharding']}"
    say(f"{costs['model']}, {job['stage']}, {job['gpus']} x {gpu}{split}: computed, not measured")
    say(
        f"{job['rows']} clips, {costs['optimizer_steps']:.0f} steps of "
        f"{job['micro'] * job['accumulation'] * job['gpus']} rows; prompts of {job['prompt']:.0f} tokens, "
        f"completions of {job['completion']:.0f}"
    )
    table = Table("part", "TFLOP a step", "seconds a step", box=None)
    for part, flops in costs["step_flops"].items():
        if flops:
            table.add_row(part, f"{flops / 1e12:.1f}", f"{costs['step_seconds'][part]:.1f}")
    console.print(table)
    say(
        f"without shared prefixes {costs['step_flops_unshared'] / 1e12:.0f} TFLOP a step, without cached features "
        f"{costs['step_flops_without_features'] / 1e12:.0f}"
    )
    for way, share in costs["calibration_share"].items():
        say(f"  fast confidence {way}: +{100 * share:.2f} %")
    table = Table("memory of a GPU", "GB", box=None)
    for part, size in costs["memory_bytes"].items():
        if size:
            table.add_row(part, f"{size / 1e9:.1f}")
    console.print(table)
    say(
        f"features once: {_time(costs['feature_seconds'])}, {costs['feature_bytes'] / 1e9:.1f} GB on disk; "
        f"training: {_time(costs['run_seconds'])}"
    )
    if costs["fits"]:
        say(f"fits into {costs['gpu_bytes'] / 1e9:.0f} GB", style="green")
    else:
        say(f"does NOT fit into {costs['gpu_bytes'] / 1e9:.0f} GB; what would:", style="red")
        for remedy in costs["remedies"]:
            say(f"  {remedy}")


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
