"""The command that holds vLLM against the policy: parity."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from mer_r1.cli.app import AsJson, app, console, print_json, progress, say
from mer_r1.errors import UserError

SHARE = 0.5
"""Of the GPU's memory, vLLM's part."""


@app.command()
def parity(
    model: Annotated[str, typer.Option(help="Checkpoint: folder or hub name.")],
    manifest: Annotated[Path, typer.Option(help="JSONL manifest of the clips.")],
    clips: Annotated[int, typer.Option(min=1, help="How many of them, from the first.")] = 8,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Mean difference of log-probabilities, in nats a token, that is still equal.")
    ] = 0.05,
    device: Annotated[str | None, typer.Option(help="Of the policy; the GPU if there is one.")] = None,
    gpu_memory: Annotated[float, typer.Option(min=0.05, max=0.95, help="Share of the GPU's memory for vLLM.")] = SHARE,
    as_json: AsJson = False,
) -> None:
    """Compare vLLM with the policy on clips: tokens, positions, log-probabilities. Exit status 1 if they differ."""
    from mer_r1.data.manifest import read_manifest
    from mer_r1.rl.vllm.parity import compare

    asked = read_manifest(manifest)[:clips]
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
        console.print(table)
        say(f"Gap: of log-probabilities, in nats a token; up to {tolerance:g} on average counts as equal.")
        say("vLLM sees what training sees." if agree else "vLLM and training differ.", style=None if agree else "red")
    if not agree:
        raise typer.Exit(1)
