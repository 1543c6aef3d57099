"""Commands of the three stages: base (tiny model only), SFT, RL."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mer_r1.cli.app import app, progress, say
from mer_r1.errors import UserError

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
Config = Annotated[Path | None, typer.Option(help="Recipe (YAML); any field as key=value or --key value.")]


@app.command(context_settings=PASS_ON)
def build(
    context: typer.Context,
    tiny: Annotated[bool, typer.Option("--tiny", help="Build the tiny policy, of random weights.")] = False,
    text: Annotated[
        str | None, typer.Option(help="Build around a pretrained language model: smollm2 (from its package).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --text: save the untrained thinker here, and no more.")] = None,
    config: Config = None,
) -> None:
    """Make a small policy, tiny or around SmolLM2, and train its base stage."""
    if tiny == bool(text) or text not in (None, "smollm2"):
        raise UserError("say what to build: --tiny makes the tiny policy, --text smollm2 one around SmolLM2-135M")
    if out is not None:
        if not text or config or context.args:
            raise UserError("--out goes with --text alone: it only makes the thinker; a base stage has an output_dir")
        from mer_r1.lab.tiny.smollm2 import smollm2

        smollm2().save(out)
        say(f"model: {out}")
        return
    from mer_r1.lab.tiny.build import run_build
    from mer_r1.training.recipe_files import read_recipe
    from mer_r1.training.recipes import BuildRecipe

    chosen = [f"text={text}"] if text else []
    _stage(run_build, read_recipe(BuildRecipe, config, [*chosen, *context.args]))


@app.command(context_settings=PASS_ON)
def sft(
    context: typer.Context,
    config: Config = None,
) -> None:
    """Cold start: supervised training on slow-format reasoning."""
    from mer_r1.training.recipe_files import read_recipe
    from mer_r1.training.recipes import SFTRecipe
    from mer_r1.training.sft_stage import run_sft

    _stage(run_sft, read_recipe(SFTRecipe, config, context.args))


@app.command(context_settings=PASS_ON)
def rl(
    context: typer.Context,
    config: Config = None,
) -> None:
    """Reinforcement learning: method=f1, rd, ad or mer-r1, and the calibration choices."""
    from mer_r1.training.recipe_files import read_recipe
    from mer_r1.training.recipes import RLRecipe
    from mer_r1.training.rl_stage import run_rl

    _stage(run_rl, read_recipe(RLRecipe, config, context.args))


def _stage(run: Any, recipe: Any) -> None:
    with progress("clips decoded and encoded", None) as advance:
        folder = run(recipe, advance)
    if os.environ.get("RANK", "0") == "0":  # one of several processes speaks
        say(f"model: {folder}")
