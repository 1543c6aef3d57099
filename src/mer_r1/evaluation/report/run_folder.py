"""Read a run folder part by part; a missing or broken part gives a sentence instead."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mer_r1.data.claim import read_signed
from mer_r1.data.clip import Clip, path_problem
from mer_r1.data.jsonl import read_object
from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.wheels import Taxonomy, load
from mer_r1.errors import UserError, printable
from mer_r1.evaluation.records import Record, read_records
from mer_r1.evaluation.report import curves
from mer_r1.evaluation.summary import Summary, summarise, with_gold

RUN_FILE, RECIPE_FILE = "run.json", "training.json"


@dataclass
class Stage:
    """One stage of the run: its records and log as far as they are readable, and the problems with them."""

    title: str
    records: list[Record] = field(default_factory=list)
    summary: Summary | None = None
    problem: str = ""
    panels: list[curves.Panel] = field(default_factory=list)
    other_panels: list[curves.Panel] = field(default_factory=list)
    log_problem: str = ""
    seconds: float | None = None
    recipe: dict[str, Any] = field(default_factory=dict)


def read_run(run_dir: Path) -> tuple[dict[str, Any], str]:
    """The content of `run.json`, and the problem with it ("" for none)."""
    path = run_dir / RUN_FILE
    try:
        return read_object(path), ""
    except UserError as error:
        told = _relative(error, run_dir) if path.exists() else f"{path.name} is missing"
        return {}, f"{told}, so nothing is known about this run."


def wheels_of(run: Mapping[str, Any]) -> tuple[Taxonomy, str]:
    """The wheels for words and confidences: those in the folder "wheels", else the built-in ones and why."""
    wheels = run.get("wheels")
    if not isinstance(wheels, str):
        return load(None), ""
    try:
        return load(wheels), ""
    except UserError as error:
        return load(None), f"Words are judged by the built-in wheels instead of the official ones: {error}."


def seed_of(run: Mapping[str, Any]) -> int:
    """Seed of the bootstrap, so that the page and the terminal show the same intervals."""
    seed = run.get("seed")
    return seed if isinstance(seed, int) and seed >= 0 else 0


def read_stages(run_dir: Path, run: Mapping[str, Any], taxonomy: Taxonomy, clips: Mapping[str, Clip]) -> list[Stage]:
    """The stages of `run.json`, in order."""
    entries = run.get("stages")
    found = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [_read_stage(run_dir, entry, run, taxonomy, clips) for entry in found]


def _read_stage(
    run_dir: Path, entry: Mapping[str, Any], run: Mapping[str, Any], taxonomy: Taxonomy, clips: Mapping[str, Clip]
) -> Stage:
    name = str(entry.get("name") or entry.get("title") or "?")
    stage = Stage(str(entry.get("title") or name))
    stage.records, stage.problem = read_part(run_dir, entry.get("records"), "records", taxonomy, clips)
    if stage.records:
        stage.summary = summarise(stage.records, taxonomy=taxonomy, seed=seed_of(run))
    try:
        if not entry.get("logs"):
            raise UserError("none is named in run.json")
        log = _inside(run_dir, str(entry["logs"]))
        stage.recipe = read_signed(log.parent / RECIPE_FILE).get("run", {})
        stage.panels, stage.other_panels = curves.panels(curves.read_log(log))
    except UserError as error:
        stage.log_problem = f"No training log: {_relative(error, run_dir)}."
    seconds = run.get("seconds")
    spent = entry.get("seconds", seconds.get(name) if isinstance(seconds, dict) else None)
    stage.seconds = float(spent) if isinstance(spent, int | float) else None
    return stage


def read_part(
    run_dir: Path, name: object, what: str, taxonomy: Taxonomy, clips: Mapping[str, Clip]
) -> tuple[list[Record], str]:
    """Records named in run.json, of the manifest's clips with its gold if it has any, or why there are none."""
    if not isinstance(name, str) or not name:
        return [], f"No {what}: none are named in run.json."
    try:
        records = read_records(_inside(run_dir, name))
    except UserError as error:
        return [], f"No {what}: {_relative(error, run_dir)}."
    labelled = any(clip.labels for clip in clips.values())
    found = with_gold(records, clips.values(), taxonomy) if labelled else records
    return found, "" if records else f"No {what}: {name} is empty."


def _inside(run_dir: Path, name: str) -> Path:
    """A file named in run.json, which may come from elsewhere as the page may go elsewhere: no other file is shown."""
    if problem := path_problem(name, run_dir):
        raise UserError(f"{printable(name):.80}: {problem}")
    return run_dir / name


def _relative(error: UserError, run_dir: Path) -> str:
    """An error without the path of the run folder, since the page may be shared."""
    return str(error).replace(f"{run_dir}/", "").rstrip(".")


def read_clips(run_dir: Path, run: Mapping[str, Any]) -> tuple[dict[str, Clip], str]:
    """Clips of the manifest by id, or why there are none."""
    name = run.get("manifest")
    if not isinstance(name, str) or not name:
        return {}, "No manifest is named in run.json: the clips are shown without video, audio and subtitle."
    try:
        return {clip.id: clip for clip in read_manifest(_inside(run_dir, name))}, ""
    except UserError as error:
        return {}, f"The clips are shown without video, audio and subtitle: {_relative(error, run_dir)}."
