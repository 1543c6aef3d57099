"""`mer-r1 features`: every clip through the towers once, ahead of training."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mer_r1.cli.app import AsJson, app, print_json, progress, say
from mer_r1.errors import UserError

SHOWN = 20
"""Broken clips that are listed."""


@app.command()
def features(
    manifest: Annotated[Path, typer.Option(help="JSONL manifest.")],
    model: Annotated[str, typer.Option(help="Model whose towers are used: a folder or a hub name.")],
    features_dir: Annotated[Path | None, typer.Option(help="Where they go; features/ beside the manifest.")] = None,
    split: Annotated[str, typer.Option(help="Rows of this split only, or all.")] = "all",
    clips: Annotated[str | None, typer.Option(help='A slice of them, such as "0:5000".')] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="One for each GPU if not given.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Decoding processes of each.")] = 2,
    estimate_only: Annotated[bool, typer.Option("--estimate", help="Say how much it will be, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compute the towers' outputs of all clips and keep them. Started again, it does what is missing."""
    from mer_r1.model.features import FeatureCache
    from mer_r1.model.omni import load
    from mer_r1.training import fill_features as fill
    from mer_r1.training.recipes import DataFields
    from mer_r1.training.stage import features_folder, select_clips

    chosen = DataFields(
        manifest=str(manifest), split=split, clips=clips, features_dir=str(features_dir) if features_dir else None
    )
    rows, folder = select_clips(chosen), features_folder(chosen)
    if (told := fill.torchrun_rank()) is not None:
        if processes is not None:
            raise UserError("--processes is for one start; torchrun has started the processes already")
        rank, world = told
        made, broken = fill.fill_share(model, folder, rows, rank, world, workers)
        say(f"process {rank} of {world}: {made} entries made, {len(broken)} clips cannot be read")
        _end(broken, as_json=False)
    expected = fill.estimate(FeatureCache(load(model, towers=False), folder), rows)
    _announce(expected, as_json)
    fill.require_room(expected)
    if estimate_only:
        raise typer.Exit
    broken = list(expected.broken)
    if expected.missing:
        with progress("clips", expected.clips, quiet=as_json) as advance:
            broken = fill.fill(model, folder, rows, processes or _gpus(), workers, advance)
    if as_json:
        print_json({"clips": expected.clips, "missing": expected.missing, "bytes": expected.size, "broken": broken})
    else:
        say(f"{expected.clips - len(broken)} of {expected.clips} clips have their features in {folder}")
    _end(broken, as_json)


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _announce(expected: Any, as_json: bool) -> None:
    if as_json:
        return
    size = f"{expected.size / 1e9:.2f} GB" if expected.size >= 1e8 else f"{expected.size / 1e6:.2f} MB"
    say(
        f"{expected.missing} of {expected.clips} clips have no features yet; about {size} "
        f"({expected.tokens:.0f} vectors a clip, from a sample of {expected.sampled}); "
        f"{expected.free / 1e9:.1f} GB are free"
    )


def _end(broken: list[str], as_json: bool) -> None:
    if not as_json:
        for message in broken[:SHOWN]:
            say(message, style="red")
        if len(broken) > SHOWN:
            say(f"and {len(broken) - SHOWN} more", style="red")
    raise typer.Exit(1 if broken else 0)
