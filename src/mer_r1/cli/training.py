"""Commands of training: recipes, build (tiny model only), sft, rl, features, and parity of vLLM with the policy."""

import os
import shlex
from dataclasses import asdict
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from mer_r1.cli.app import AsJson, app, console, print_json, progress, say
from mer_r1.cli.options import PASS_ON, RECIPE, Limits
from mer_r1.data.manifest import read_manifest
from mer_r1.data.workers import uncollected
from mer_r1.errors import UserError
from mer_r1.training.recipe_files import read_recipe, recipe_class, select_clips
from mer_r1.training.recipe_info import host_fields, recipe_fields, recipe_stages, shipped_recipes

SHOWN = 20
"""Broken clips that are listed."""


class RecipeCommand(TyperCommand):
    """A command whose help lists the fields of its recipe."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        lines = ["Fields of the recipe:"]
        for group, fields in groupby(recipe_fields(str(self.name)), attrgetter("group")):
            lines += ["", f"**{group}**:", "", *(f"* `{one.name}` ({one.kind}): {one.help}" for one in fields)]
        self.epilog = "\n".join(lines)  # for docs/cli.md

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the options, then the recipe's fields by group; with --help-all TRL's too."""
        documented, self.epilog = self.epilog, None
        super().format_help(ctx, formatter)
        self.epilog = documented
        stage = str(self.name)
        fields = recipe_fields(stage)
        if ctx.meta.get("all fields"):
            fields += host_fields(recipe_class(stage), stage)
        for group, grouped in groupby(fields, attrgetter("group")):
            table = Table.grid(padding=(0, 2), expand=True)
            table.add_column(no_wrap=True, style="bold cyan")
            table.add_column(ratio=1)
            for field in grouped:
                table.add_row(Text(field.name), Text(field.help).append(f" [{field.kind}]", style="yellow"))
            console.print(Panel(table, title=group, title_align="left", border_style="dim"))


def _help_all(context: typer.Context, given: bool) -> None:
    if given:
        context.meta["all fields"] = True
        typer.echo(context.get_help())
        raise typer.Exit


Config = Annotated[str | None, RECIPE]
HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all",
        is_eager=True,
        callback=_help_all,
        help="Show TRL's fields too (output_dir, max_steps, seed ...), and exit.",
    ),
]


@app.command()
def recipes(as_json: AsJson = False) -> None:
    """List the recipes that come with the package, for --config NAME."""
    rows = [
        {
            "name": name,
            "stages": recipe_stages(file),
            "about": file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "),
        }
        for name, file in shipped_recipes().items()
    ]
    if as_json:
        print_json(rows)
        return
    table = Table("name", "stages", "about")
    for row in rows:
        table.add_row(Text(str(row["name"])), ", ".join(row["stages"]), Text(str(row["about"])))
    console.print(table)


@app.command(cls=RecipeCommand, context_settings=PASS_ON)
def build(
    context: typer.Context,
    tiny: Annotated[bool, typer.Option("--tiny", help="Build the tiny policy, freshly initialised.")] = False,
    text: Annotated[
        str | None, typer.Option(help="Build around a pretrained language model: smollm2 (from its package).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With --text: only save the untrained thinker in this folder.")
    ] = None,
    config: Config = None,
    help_all: HelpAll = False,
) -> None:
    """Initialise a small policy, tiny or around SmolLM2, and train its base stage.

    Set fields of the recipe as key=value or --key value. The model goes to output_dir=DIR.
    """
    if tiny == bool(text) or text not in (None, "smollm2"):
        raise UserError("choose what to build: --tiny for the tiny policy, --text smollm2 for one around SmolLM2-135M")
    if out is not None:
        if not text or config or context.args:
            raise UserError("--out goes with --text alone: it only saves the thinker; a base stage has an output_dir")
        from mer_r1.lab.tiny.smollm2 import smollm2

        smollm2().save(out)
        say(f"model: {out}")
        return
    _run_stage("build", config, [*([f"text={text}"] if text else []), *context.args])


@app.command(cls=RecipeCommand, context_settings=PASS_ON)
def sft(context: typer.Context, config: Config = None, help_all: HelpAll = False) -> None:
    """Cold start: supervised training on slow-format reasoning.

    Set fields of the recipe as key=value or --key value. The model goes to output_dir=DIR.
    """
    _run_stage("sft", config, context.args)


@app.command(cls=RecipeCommand, context_settings=PASS_ON)
def rl(context: typer.Context, config: Config = None, help_all: HelpAll = False) -> None:
    """Reinforcement learning with MER-R1 or a baseline, from labels only.

    Set fields of the recipe as key=value or --key value. The model goes to output_dir=DIR.
    """
    _run_stage("rl", config, context.args)


def _run_stage(stage: str, config: str | None, settings: list[str]) -> None:
    run: Any
    with uncollected():
        recipe = read_recipe(recipe_class(stage), config, settings)
        if stage == "build":
            from mer_r1.lab.tiny.build import run_build as run
        elif stage == "sft":
            from mer_r1.training.sft_stage import run_sft as run
        else:
            from mer_r1.training.rl_stage import run_rl as run
    with progress("clips decoded and encoded", None) as advance:
        folder = run(recipe, advance)
    if os.environ.get("RANK", "0") == "0":  # one of several processes prints
        say(f"model: {folder}")
        for command in _next(stage, folder, recipe, config):
            say(f"next:  {command}")


def _next(stage: str, folder: Path, recipe: Any, config: str | None) -> list[str]:
    """Commands that follow a stage, ready to be copied."""
    out, manifest = Path(str(recipe.output_dir)), str(recipe.manifest)
    asked = ["evaluate", "--model", str(folder), "--manifest", manifest, "--split", "test", "--out", f"{out}-eval"]
    follows = {"build": "sft", "sft": "rl"}.get(stage)
    if follows is None:
        chain = [asked, ["app", "--model", str(folder)]]
    else:
        named = ["--config", config] if config else []
        settings = [f"manifest={manifest}", f"model={folder}", f"output_dir={out.with_name(follows)}"]
        chain = [[follows, *named, *settings], asked]
    return [shlex.join(["mer-r1", *words]) for words in chain]


@app.command()
def features(
    manifest: Annotated[Path, typer.Option(help="JSONL manifest.")],
    model: Annotated[str, typer.Option(help="Model whose towers are used: a folder or a hub name.")],
    limits: Limits,
    features_dir: Annotated[
        Path | None, typer.Option(help="Folder of the features; features/ beside the manifest if not given.")
    ] = None,
    split: Annotated[str, typer.Option(help="Rows of this split only, or all.")] = "all",
    clips: Annotated[str | None, typer.Option(help='Slice of those rows, such as "0:5000".')] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes; one per GPU if not given.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Decoding processes of each.")] = 2,
    estimate_only: Annotated[bool, typer.Option("--estimate", help="Only estimate the size.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compute and cache the tower outputs of all clips, ahead of training. Resumable: only missing entries are made.

    The options of how much of each clip is read must be those of the recipe: entries of others are not found.
    """
    from torch import cuda

    from mer_r1.model.features import FeatureCache
    from mer_r1.model.omni import load
    from mer_r1.training import fill_features as fill
    from mer_r1.training.recipes import DataFields
    from mer_r1.training.stage import features_folder

    chosen = DataFields(
        manifest=str(manifest), split=split, clips=clips, features_dir=str(features_dir) if features_dir else None
    )
    rows, folder, given = select_clips(chosen), features_folder(chosen), limits.given
    if (share := fill.torchrun_rank()) is not None:
        if processes is not None:
            raise UserError("--processes does not go with torchrun, which has started the processes already")
        rank, world = share
        made, broken = fill.fill_share(model, folder, rows, rank, world, workers, limits=given)
        say(f"process {rank} of {world}: {made} entries made, {len(broken)} clips cannot be read")
        _list_broken(broken, as_json=False)
    expected = fill.estimate(FeatureCache(load(model, towers=False, limits=given), folder), rows)
    _announce(expected, as_json)
    fill.require_room(expected)
    if estimate_only:
        raise typer.Exit
    broken = list(expected.broken)
    if expected.missing:
        with progress("clips", expected.clips, quiet=as_json) as advance:
            broken = fill.fill(model, folder, rows, processes or max(1, cuda.device_count()), workers, advance, given)
    if as_json:
        print_json({"clips": expected.clips, "missing": expected.missing, "bytes": expected.size, "broken": broken})
    else:
        say(f"{expected.clips - len(broken)} of {expected.clips} clips have their features in {folder}")
    _list_broken(broken, as_json)


def _announce(expected: Any, as_json: bool) -> None:
    if as_json:
        return
    size = f"{expected.size / 1e9:.2f} GB" if expected.size >= 1e8 else f"{expected.size / 1e6:.2f} MB"
    say(
        f"{expected.missing} of {expected.clips} clips have no features yet; about {size} "
        f"({expected.tokens:.0f} vectors per clip, from a sample of {expected.sampled}); "
        f"{expected.free / 1e9:.1f} GB are free"
    )


def _list_broken(broken: list[str], as_json: bool) -> None:
    # Ends the command: status 1 if a clip is broken.
    if not as_json:
        for message in broken[:SHOWN]:
            say(message, style="red")
        if len(broken) > SHOWN:
            say(f"and {len(broken) - SHOWN} more", style="red")
    raise typer.Exit(1 if broken else 0)


@app.command()
def parity(
    model: Annotated[str, typer.Option(help="Checkpoint: folder or hub name.")],
    manifest: Annotated[Path, typer.Option(help="JSONL manifest of the clips.")],
    num_clips: Annotated[int, typer.Option(min=1, help="Clips to compare, from the first.")] = 8,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest mean difference of log-probabilities, in nats per token.")
    ] = 0.05,
    device: Annotated[str | None, typer.Option(help="Device of the policy; the GPU if there is one.")] = None,
    gpu_memory: Annotated[float, typer.Option(min=0.05, max=0.95, help="Share of the GPU's memory for vLLM.")] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Compare vLLM with the policy on clips: tokens, positions, log-probabilities. Exit status 1 if they differ."""
    from mer_r1.rl.vllm.parity import compare

    asked = read_manifest(manifest)[:num_clips]
    if not asked:
        raise UserError(f"{manifest} has no clips")
    with progress("clips compared", len(asked), quiet=as_json) as advance:
        found = []
        for one in compare(model, asked, device, gpu_memory):
            found.append(one)
            advance(1)
    agree = all(one.agrees(tolerance) for one in found)
    if as_json:
        rows = [asdict(one) | {"agrees": one.agrees(tolerance)} for one in found]
        print_json({"model": model, "tolerance": tolerance, "agree": agree, "clips": rows})
    else:
        console.print(_parity_table(found, tolerance))
        say(f"Gap: difference of log-probabilities, in nats per token; up to {tolerance:g} on average counts as equal.")
        say("vLLM and training agree." if agree else "vLLM and training differ.", style=None if agree else "red")
    if not agree:
        raise typer.Exit(1)


def _parity_table(found: list[Any], tolerance: float) -> Table:
    table = Table("clip", "tokens (video, audio)", "ids", "positions", "mean gap", "largest", "")
    for one in found:
        compared = one.ids is None
        same = "same" if one.positions_seen else "not seen"
        table.add_row(
            Text(one.clip),
            f"{one.tokens} ({one.video}, {one.audio})",
            one.ids or "same",
            (one.positions or same) if compared else "-",
            f"{one.mean:.2g}" if compared else "-",
            f"{one.largest:.2g}" if compared else "-",
            "ok" if one.agrees(tolerance) else "differs",
        )
    return table
