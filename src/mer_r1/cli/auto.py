"""Command that chooses when a model should think: threshold."""

from pathlib import Path
from typing import Annotated

import typer

from mer_r1.cli.app import AsJson, Wheels, app, print_json, progress, say


@app.command()
def threshold(
    model: Annotated[Path, typer.Option(help="Model folder; the threshold is kept in it.")],
    manifest: Annotated[Path, typer.Option(help="JSONL manifest with gold labels.")],
    out: Annotated[Path, typer.Option(help="Folder for the records; an interrupted run goes on.")],
    split: Annotated[str, typer.Option(help="Rows to choose on; never those of the test.")] = "val",
    wheels: Wheels = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at a time.")] = 32,
    features_dir: Annotated[Path | None, typer.Option(help="Feature cache; beside the manifest if not given.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, ...")] = None,
    as_json: AsJson = False,
) -> None:
    """Choose, on validation clips, how unsure a fast answer must be to be thought over (--think auto)."""
    from mer_r1.emotions.thinking import ThinkingMode
    from mer_r1.evaluation.adaptive import choose_threshold, curve, pairs, write_gate
    from mer_r1.evaluation.predict import evaluate_model
    from mer_r1.evaluation.records import read_records
    from mer_r1.model.generation import Sampling

    with progress("answer", None, quiet=as_json) as advance:
        file = evaluate_model(
            str(model),
            manifest,
            out,
            list(ThinkingMode),
            Sampling(max_new_tokens, 0.0, seed=0),
            split,
            wheels,
            batch_size=batch_size,
            features_dir=features_dir,
            device=device,
            progress=advance,
        )
    records = read_records(file)
    gate = choose_threshold(records, {"manifest": manifest.name, "split": split})
    kept = write_gate(gate, model)
    if as_json:
        print_json({"threshold": gate.threshold, "share": gate.share, "f1": gate.f1, "tokens": gate.tokens})
        return
    for point in curve(pairs(records)):
        mark = "  <- chosen" if point.threshold == gate.threshold else ""
        reached = f"thinks in {point.share:4.0%}, F1 {point.f1:.3f}, {point.tokens:.1f} tokens"
        say(f"threshold {point.threshold:.3f}: {reached}{mark}")
    say(f"kept in {kept}")
