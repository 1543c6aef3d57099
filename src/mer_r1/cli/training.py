"""Commands of the three stages: base (tiny model only), SFT, RL."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mer_r1.cli.base import app, progress, say
from mer_r1.errors import UserError

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
Config = Annotated[Path | None, typer.Option(help="Recipe (YAML); any field as key=value or --key value.")]


@app.command(context_settings=PASS_ON)
def build(
    context: typer.Context,
    tiny: Annotated[bool, typer.Option("--tiny", help="Build the tiny policy (the only kind so far).")] = False,
    config: Config = None,
) -> None:
    """Make the tiny policy and train its base stage."""
    if not tiny:
        raise UserError("say what to build: --tiny makes the tiny policy")
    from mer_r1.build import run_build
    from mer_r1.config import BuildRecipe, read_recipe

    _stage(run_build, read_recipe(BuildRecipe, config, context.args))


@app.command(context_settings=PASS_ON)
def sft(
    context: typer.Context,
    config: Config = None,
) -> None:
    """Cold start: supervised training on slow-format reasoning."""
    from mer_r1.config import SFTRecipe, read_recipe
    from mer_r1.train import run_sft

    _stage(run_sft, read_recipe(SFTRecipe, config, context.args))


@app.command(context_settings=PASS_ON)
def rl(
    context: typer.Context,
    config: Config = None,
) -> None:
    """Reinforcement learning: method=f1, rd, ad or mer-r1, and the calibration choices."""
    from mer_r1.config import RLRecipe, read_recipe
    from mer_r1.train import run_rl

    _stage(run_rl, read_recipe(RLRecipe, config, context.args))


def _stage(run: Any, recipe: Any) -> None:
    with progress("clips decoded and encoded", None) as advance:
        folder = run(recipe, advance)
    if os.environ.get("RANK", "0") == "0":  # one of several processes speaks
        say(f"model: {folder}")
