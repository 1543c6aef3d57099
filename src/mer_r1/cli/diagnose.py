"""Commands that find out about a model: diagnose (can the calibration act on it?), threshold (when must it reason?)."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mer_r1.cli.app import AsJson, Wheels, app, console, print_json, progress, say
from mer_r1.cli.options import (
    RECIPE,
    BatchSize,
    Device,
    FeaturesDir,
    Labelled,
    Limits,
    MaxNewTokens,
    Overwrite,
    Temperature,
)
from mer_r1.data.jsonl import write_atomically
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.errors import UserError
from mer_r1.evaluation.diagnosis.gate import Diagnosis
from mer_r1.evaluation.intervals import interval_text, number_text
from mer_r1.evaluation.records import taxonomy_in, without_nan
from mer_r1.training.recipe_files import read_recipe, select_clips

if TYPE_CHECKING:
    from mer_r1.evaluation.answerers.thinking_gate import Both, Candidate

ANSWERS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "well_formed": "well formed",
    "words": "words",
    "repeated": "with a word repeated",
    "unplaced": "with a phrase no wheel places",
}
"""Measure of sampled answers -> its row."""


@app.command()
def diagnose(
    model: Annotated[str, typer.Option(help="Model folder or hub name.")],
    manifest: Annotated[Path, typer.Option(help="Manifest with gold labels (JSONL).")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Choices of the method as key=value, such as alpha=0.5 anchors=first.")
    ] = None,
    config: Annotated[str | None, RECIPE] = None,
    split: Annotated[str, typer.Option(help="Rows of this split only, or all.")] = "all",
    clips: Annotated[str | None, typer.Option(help='Slice of those rows, such as "0:5000".')] = None,
    num_clips: Annotated[int, typer.Option(min=1, help="Clips to draw at random from those rows.")] = 100,
    num_generations: Annotated[int, typer.Option(help="Slow rollouts, and fast answers, per clip: at least 2.")] = 8,
    num_answers: Annotated[int, typer.Option(help="Answers sampled after each reasoning: at least 2.")] = 8,
    temperature: Annotated[float, typer.Option(help="Sampling temperature, positive.")] = 1.0,
    max_new_tokens: MaxNewTokens = 512,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for clips and sampling.")] = 0,
    batch_size: BatchSize = 16,
    features_dir: FeaturesDir = None,
    device: Device = None,
    wheels: Wheels = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find out whether the calibration can act on a model: does its reasoning matter, and do the terms measure it?

    The method is that of the recipe, or MER-R1's defaults, with its choices overridden by key=value.
    """
    from mer_r1.evaluation.diagnosis.measure import check_settings
    from mer_r1.evaluation.diagnosis.measure import diagnose as run
    from mer_r1.model.features import FeatureCache
    from mer_r1.model.generation import Sampling
    from mer_r1.model.omni import choose_device, load, task_of
    from mer_r1.training.recipes import DataFields
    from mer_r1.training.stage import features_folder

    method, taxonomy = _method(config, settings or []), task_of(model).taxonomy(wheels)
    sampling = Sampling(max_new_tokens, temperature, seed=seed)
    check_settings(method, num_generations, num_answers, sampling)
    data = DataFields(
        manifest=str(manifest), split=split, clips=clips, features_dir=str(features_dir) if features_dir else None
    )
    chosen, left_out = _drawn(select_clips(data), num_clips, seed, taxonomy)
    omni = load(model, device=choose_device(device), towers=False)
    cache = FeatureCache(omni, features_folder(data))
    with progress("clips decoded and encoded", len(chosen), quiet=as_json) as advance:
        cache.build(chosen, progress=advance)
    with progress("completions sampled", None, quiet=as_json) as advance:
        found = run(
            omni, chosen, method, taxonomy, num_generations, num_answers, sampling, batch_size, cache.get, advance
        )
    row: dict[str, Any] = {"model": model, "manifest": str(manifest), "split": split, "wheels": taxonomy.title}
    row |= {**found.to_dict(), "left_out": left_out}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, json.dumps(without_nan(row), indent=2))
    if as_json:
        print_json(row)
        return
    _show(found, left_out)
    if out is not None:
        say(f"written: {out}")


def _method(config: str | None, settings: list[str]) -> Any:
    """The method of a recipe with overrides."""
    from dataclasses import fields

    from mer_r1.rl.method import Method
    from mer_r1.training.recipes import RLRecipe

    known = [item.name for item in fields(Method)]
    for word in settings:
        if word.partition("=")[0] not in known or "=" not in word:
            raise UserError(f"cannot use {word!r}: choices of the method are key=value with {', '.join(known)}")
    # This machine need not be the one of the recipe, and nothing is trained.
    recipe = read_recipe(RLRecipe, config, [*settings, "output_dir=none", "use_cpu=true", "bf16=false"])
    return Method(**{name: getattr(recipe, name) for name in known})


def _drawn(rows: list[Any], count: int, seed: int, taxonomy: Any) -> tuple[list[Any], int]:
    """Some of the labelled rows at random, in their order, and how many rows have no gold label to use."""
    from random import Random

    from mer_r1.evaluation.diagnosis.measure import labelled

    kept = labelled(rows, taxonomy)
    places = sorted(Random(seed).sample(range(len(kept)), min(count, len(kept))))
    return labelled([kept[place] for place in places], taxonomy), len(rows) - len(kept)


def _show(found: Diagnosis, left_out: int) -> None:
    """Print the tables and the verdict."""
    how = found.settings
    say(
        f"{how['clips']} clips, {how['num_generations']} slow rollouts and fast answers each, {how['num_answers']} "
        f"answers per reasoning; {found.seconds:.0f} s"
    )
    if left_out:
        say(f"{left_out} clips have no gold label that a wheel can place; they are left out")
    say("In brackets: 95 % bootstrap intervals over clips. ± is a standard error over groups.")
    table = Table("sampled answers", "slow", "fast", "slow - fast")
    for name, title in ANSWERS.items():
        table.add_row(title, *_three(found.answers[name], "slow", "fast"))
    console.print(table)
    table = Table("confidence at the first word", "slow", "fast", "slow - fast")
    for side in ("correct", "incorrect"):
        table.add_row(f"in {side} categories", *_three(found.confidence[side], "slow", "fast"))
    console.print(table)
    say(f"Slow is below fast in {interval_text(found.below, scale=100, digits=0)} % of the correct categories.")
    table = Table("does the reasoning matter?", "own", "another clip's", "own - other")
    table.add_row("F1 of answers after it", *_three(found.exchange, "own", "other"))
    console.print(table)
    shares = ", ".join(f"{ANSWERS[name]} {interval_text(part, 1, scale=100)}" for name, part in found.explained.items())
    say(f"Share of the variance within a prompt that the reasoning explains, in %: {shares}.")
    say(f"Slow rollouts with a reasoning and an answer: {found.reasoned:.0%}.")
    table = Table("term, correlated with", "recall", "precision", "words", "F1 | reasoning", "sharpness")
    for side, measures in found.terms.items():
        table.add_row(f"{side} side", *(_correlation(one) for one in measures.values()))
    console.print(table)
    say(f"With F1 | reasoning, which is sampled, at most {interval_text(found.ceiling, 2)} can be reached.")
    say(f"Share of the advantages' variance that the terms bring: {interval_text(found.weight, 1, scale=100)} %.")
    table = Table("the gate", "measured", "bound", "")
    for check in found.checks:
        entry = {"mean": check.value, "low": check.low, "high": check.high}
        result = ("PASS" if check.passed else "FAIL") + (" (close)" if check.close else "")
        style = "green" if check.passed else "red"
        table.add_row(check.name, interval_text(entry, signed=True), check.bound, result, style=style)
    console.print(table)
    say(found.verdict, style="green" if found.can_act else "red")


def _three(entry: Any, one: str, other: str) -> tuple[str, str, str]:
    return (interval_text(entry[one]), interval_text(entry[other]), interval_text(entry["difference"], signed=True))


def _correlation(one: Any) -> str:
    error = "" if one.error is None else f" ± {one.error:.2f}"
    return f"{number_text(one.mean, 2, signed=True)}{error}"


@app.command()
def threshold(
    model: Annotated[Path, typer.Option(help="Model folder; the gate is saved in it.")],
    manifest: Labelled,
    out: Annotated[Path, typer.Option(help="Output folder of the records; rerun to resume.")],
    limits: Limits,
    split: Annotated[str, typer.Option(help="Split to choose on; never the test split.")] = "val",
    token_price: Annotated[float, typer.Option(min=0, help="F1 that a token must gain to be worth it.")] = 0.0,
    temperature: Temperature = 0.0,
    wheels: Wheels = None,
    max_new_tokens: MaxNewTokens = 512,
    batch_size: BatchSize = 32,
    features_dir: FeaturesDir = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Choose the gate of --think auto on validation clips: a score of the fast answer, and its threshold."""
    from mer_r1.evaluation.answerers.thinking_gate import candidates, pairs, write_gate
    from mer_r1.evaluation.predict import evaluate_model
    from mer_r1.evaluation.summary import clips_of, saved_records, source_text
    from mer_r1.model.generation import Sampling

    if any(clip.split == "test" for clip in clips_of(manifest, split)):
        raise UserError(f"--split {split} has test clips: a threshold is never chosen on them")
    sampling = Sampling(max_new_tokens, temperature, seed=0)
    how: dict[str, Any] = {"batch_size": batch_size, "features_dir": features_dir, "device": device}
    how |= {"limits": limits.given, "overwrite": overwrite}
    with progress("answer", None, quiet=as_json) as advance:
        evaluate_model(str(model), manifest, out, list(ThinkingMode), sampling, split, wheels, progress=advance, **how)
    records, told = saved_records(out, manifest, split, taxonomy_in(out, wheels))
    told = {"model": str(model), **told}
    chosen_on = {"manifest": manifest.name, "split": split, "wheels": told["wheels"], "temperature": temperature}
    found = candidates(records, chosen_on, token_price)
    kept = write_gate(found[0].gate, model)
    if as_json:
        best = asdict(found[0].gate)
        scores = {one.gate.score: {"correlation": one.correlation, "auc": one.auc, "lift": one.lift} for one in found}
        print_json(
            {**asdict(found[0].gate.point), "score": best["score"], "scores": scores, "curve": best["curve"]} | told
        )
        return
    say(source_text(told))
    _show_gates(found, pairs(records))
    say(f"saved in {kept}")


def _show_gates(found: "Sequence[Candidate]", both: "Sequence[Both]") -> None:
    """Tables of the scores, and of the best one's curve: every tenth threshold, and the chosen one."""
    from mer_r1.evaluation.answerers.thinking_gate import alone, oracle

    table = Table("score of the fast answer", title="Does the score know where reasoning helps?", box=None)
    for name in ("correlation with the gain", "AUC", "F1 above a random choice"):
        table.add_column(name, justify="right")
    for one in found:
        numbers = number_text(one.correlation, 2, signed=True), number_text(one.auc, 2)
        table.add_row(one.gate.score, *numbers, interval_text(one.lift, signed=True))
    console.print(table)
    gate = found[0].gate
    table = Table("", title=f"F1 and tokens by the threshold of the score: {gate.score}", box=None)
    for name in ("threshold", "reasons", "F1", "tokens"):
        table.add_column(name, justify="right")
    rows = [("fast", alone(both, 0)), ("slow", alone(both, 1)), ("oracle", oracle(both))]
    shown = [point for place, point in enumerate(gate.curve) if place % 10 == 0 or point == gate.point]
    for name, point in [*rows, *(("chosen" if point == gate.point else "", point) for point in shown)]:
        f1 = interval_text({"mean": point.f1, "low": point.low, "high": point.high})
        where = number_text(point.threshold), f"{point.share:.0%}" if name not in ("fast", "slow") else ""
        table.add_row(name, *where, f1, f"{point.tokens:.1f}")
    console.print(table)
