"""Collect finished runs into one small JSON per study: every number in its tables, figures and claims.

Only means over clips are kept, per variant, seed, split and mode; the records stay in the runs' folders. The threshold
of adaptive thinking is chosen here, on the validation records of each run, and applied to its test records. Reading a
run's records takes a second or two, so the result is cached beside them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from mer_r1.data.jsonl import object_of, read_json, read_lines, write_atomically
from mer_r1.errors import UserError
from mer_r1.evaluation.adaptive import at_threshold, choose_threshold, curve, oracle, pairs
from mer_r1.evaluation.records import RECORDS_FILE, Record, read_records
from mer_r1.evaluation.summary import summarise
from mer_r1.lab.study.runs.jobs import StudyJob, content_hash
from mer_r1.lab.study.runs.schedule import DONE_FILE
from mer_r1.lab.study.runs.variants import STUDIES, VARIANTS, Study

NUMBERS = (
    *("precision", "recall", "f1", "labels", "categories", "well_formed"),
    *("tokens", "seconds", "confidence_correct", "confidence_incorrect"),
)
"""Numbers kept per split and mode, means over clips."""
KEPT = {"baselines": ("cost",), "theory": ("theory", "gradients"), "auto": ("auto",)}
"""Study -> what its tables and figures show of a run besides scores."""
SCORES_FILE = "scores.json"
FORMAT = 1
"""Version of the cached scores; raise it when the same records give other numbers."""
LOGGED: tuple[str, ...] = ("sigma_recall", "sigma_precision", "rho")
LOGGED += ("predicted_recall", "predicted_precision", "measured_recall", "measured_precision")
SECONDS = ("sampling", "scoring", "training")


def collect(study: str, jobs: Sequence[StudyJob], out: Path) -> dict[str, Any]:
    """The numbers of one study's finished runs.

    Returns:
        `study`, `question`, `split` (of the scores: "test", or "val" without evaluations on test clips), `titles`,
        `numbers` (variant -> seed -> result of `_run_numbers`), `missing` (number of unfinished runs) and `provenance`.

    Raises:
        UserError: if no run of the study is finished.
    """
    plan = STUDIES[study]
    own = [job for job in jobs if job.facts.get("variant") in plan.variants]
    runs = [job for job in own if job.facts["kind"] in ("rl", "sft")]
    done = {run.name: entries for run in runs if (entries := _done_entries(run, jobs, out))}
    if not done:
        raise UserError(f"{out}: no run of the study {study!r} is finished")
    split = _split_of(plan, own)
    shown = (*((split,) if plan.splits else ()), *KEPT.get(study, ()))
    numbers: dict[str, dict[str, Any]] = {name: {} for name in plan.variants}
    for run in runs:
        if run.name in done:
            numbers[run.facts["variant"]][str(run.facts["seed"])] = _run_numbers(out / run.name, shown)
    return {
        "study": study,
        "question": plan.question,
        "split": split,
        "titles": {name: VARIANTS[name].title for name in plan.variants},
        "numbers": {name: seeds for name, seeds in numbers.items() if seeds},
        "missing": len(runs) - len(done),
        "provenance": {**_provenance([*chain(*done.values())], runs), "base": _base(jobs)},
    }


def _split_of(plan: Study, jobs: Sequence[StudyJob]) -> str:
    """The split of the scores: "test" if the study is judged on test clips, unless this is a trial."""
    return "test" if "test" in {job.facts.get("split") for job in jobs} & {*plan.splits} else "val"


def _done_entries(run: StudyJob, jobs: Sequence[StudyJob], out: Path) -> list[Any]:
    """`done.json` of a run, its evaluations and gradients; empty while one of them is unfinished."""
    paths = [out / job.name / DONE_FILE for job in (run, *(job for job in jobs if job.facts.get("run") == run.name))]
    return [read_json(path) for path in paths] if all(path.is_file() for path in paths) else []


def _run_numbers(folder: Path, shown: Sequence[str]) -> dict[str, Any]:
    """The `shown` ones of `val` and `test` (mode -> numbers), `auto`, `cost`, `theory` and `gradients` of one run."""
    found: dict[str, Any] = {}
    paths = {split: folder / split / RECORDS_FILE for split in ("val", "test")}
    paths = {split: path for split, path in paths.items() if path.is_file()}
    if paths:
        found |= _scores(folder, paths)
    log = list(read_lines(folder / "log.jsonl", object_of))
    found |= {"cost": cost(log), "theory": theory(log)}
    gradients = folder / "gradients" / "gradients.json"
    if gradients.is_file():
        found["gradients"] = _rounded(read_json(gradients))
    return {key: found[key] for key in shown if key in found}


def _scores(folder: Path, paths: Mapping[str, Path]) -> dict[str, Any]:
    stamp = [FORMAT, {split: [path.stat().st_size, path.stat().st_mtime_ns] for split, path in paths.items()}]
    kept = folder / SCORES_FILE
    if kept.is_file() and (found := read_json(kept)).get("stamp") == stamp:
        return dict(found["scores"])
    scores = score_splits({split: read_records(path) for split, path in paths.items()})
    write_atomically(kept, json.dumps({"stamp": stamp, "scores": scores}) + "\n")
    return scores


def score_splits(records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Means over clips per split and mode; with both splits, adaptive thinking with the threshold chosen on "val"."""
    found: dict[str, Any] = {}
    for split, rows in records.items():
        modes = summarise(rows, resamples=1)["modes"]
        found[split] = {
            mode: {
                **{name: row[name]["mean"] for name in NUMBERS},  # type: ignore[literal-required]
                "clips": row["n"],
                "errors": row["n_errors"],
            }
            for mode, row in modes.items()
        }
    if {"val", "test"} <= records.keys():
        found["auto"] = _adaptive(records["val"], records["test"])
    return dict(_rounded(found))


def _adaptive(validation: Sequence[Record], test: Sequence[Record]) -> dict[str, Any]:
    """Adaptive thinking on test clips with the best threshold on validation clips, beside fast, slow and oracle."""
    gate = choose_threshold(validation, {"split": "val"})
    both = pairs(test)
    points = {"auto": at_threshold(both, gate.threshold), "oracle": oracle(both)}
    points["fast"] = at_threshold([(fast, fast) for fast, _ in both], 0.0)
    points["slow"] = at_threshold([(slow, slow) for _, slow in both], 0.0)  # without the tokens of a fast answer
    found = {name: asdict(point) for name, point in points.items()}
    return {**found, "curve": [[p.share, p.tokens, p.f1] for p in curve(both)], "threshold": gate.threshold}


def cost(log: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Cost of a run: steps, generated tokens, and seconds in total and per part.

    Times and lengths of the lines of `log.jsonl` are means over the steps since the previous line.
    """
    lines = [line for line in log if "step" in line and "loss" in line]
    steps = [line["step"] for line in lines]
    spans = [step - before for step, before in zip(steps, [0, *steps], strict=False)]
    found: dict[str, float | None] = {"steps": steps[-1] if steps else 0}
    for name in SECONDS:
        found[f"seconds_{name}"] = _total(lines, spans, f"seconds/{name}")
    found["seconds"] = next((line["train_runtime"] for line in reversed(log) if "train_runtime" in line), None)
    found["completion_tokens"] = _weighted_mean(lines, spans, "completions/mean_length")
    found["tokens_read"] = next((line["num_tokens"] for line in reversed(lines) if "num_tokens" in line), None)
    return dict(_rounded(found, 2))


def theory(log: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The statistics of `interference` during training: name -> value per logged "step"; empty if not logged."""
    lines = [line for line in log if "interference/rho" in line]
    if not lines:
        return {}
    found = {name: [round(line[f"interference/{name}"], 4) for line in lines] for name in LOGGED}
    return {"step": [line["step"] for line in lines], **found}


def _total(lines: Sequence[Mapping[str, Any]], spans: Sequence[int], key: str) -> float | None:
    known = [line[key] * span for line, span in zip(lines, spans, strict=True) if key in line]
    return math.fsum(known) if known else None


def _weighted_mean(lines: Sequence[Mapping[str, Any]], spans: Sequence[int], key: str) -> float | None:
    total = _total(lines, spans, key)
    return None if total is None else total / sum(s for line, s in zip(lines, spans, strict=True) if key in line)


def _provenance(entries: Sequence[Mapping[str, Any]], runs: Sequence[StudyJob]) -> dict[str, Any]:
    settings = {json.dumps(entry["settings"], sort_keys=True) for entry in entries if "settings" in entry}
    return {
        "commits": sorted({str(entry["commit"]) for entry in entries}),
        "changed": any(entry["changed"] for entry in entries),
        "versions": [json.loads(v) for v in sorted({json.dumps(entry["versions"]) for entry in entries})],
        "seeds": sorted({job.facts["seed"] for job in runs}),
        "settings": [json.loads(text) for text in sorted(settings)],
        "process_hours": round(math.fsum(entry["seconds"] for entry in entries) / 3600, 3),
    }


def _base(jobs: Sequence[StudyJob]) -> str | None:
    # Fingerprint of the base model: processors round differently, so the same commands give another base, and other
    # numbers, on another kind of machine.
    folder = next(Path(job.facts["start"]) for job in jobs if job.facts.get("kind") == "sft")
    return content_hash(folder) if (folder / "model.safetensors").is_file() else None


def _rounded(value: Any, digits: int = 4) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item, digits) for item in value]
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    return value
