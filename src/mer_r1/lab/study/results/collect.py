"""From finished runs to one small JSON per study: every number that tables, figures and claims are made of.

Only means over clips are kept, one per variant, seed, split and mode; the records themselves stay in the runs' folders.
The threshold of thinking when it pays is chosen here, on the validation records of each run, and applied to its test
records. Reading a run's records takes a second or two, so what was read is kept beside them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mer_r1.errors import UserError
from mer_r1.evaluation.adaptive import at_threshold, choose_threshold, curve, oracle, pairs
from mer_r1.evaluation.records import RECORDS_FILE, Record, read_records
from mer_r1.evaluation.summary import summarise
from mer_r1.lab.study.runs.jobs import Job, content_hash
from mer_r1.lab.study.runs.schedule import DONE_FILE
from mer_r1.lab.study.runs.variants import STUDIES, VARIANTS

NUMBERS = (
    *("precision", "recall", "f1", "labels", "categories", "well_formed"),
    *("tokens", "seconds", "confidence_correct", "confidence_incorrect"),
)
"""What is kept of each split and mode, means over clips."""
KEPT = {"baselines": ("cost",), "theory": ("theory", "gradients"), "auto": ("auto",)}
"""What of a run a study's tables and figures show besides its scores."""
SCORES_FILE = "scores.json"
FORMAT = 1
"""Raised whenever the same records would give other numbers."""
LOGGED: tuple[str, ...] = ("sigma_recall", "sigma_precision", "rho")
LOGGED += ("predicted_recall", "predicted_precision", "measured_recall", "measured_precision")
SECONDS = ("sampling", "scoring", "training")


def collect(study: str, jobs: Sequence[Job], out: Path) -> dict[str, Any]:
    """The numbers of one study, as far as its runs are finished.

    Args:
        study: key of `STUDIES`.
        jobs: of the plan, at least those of this study.
        out: folder of the study.

    Returns:
        `study`, `question`, `split` (whose scores are kept: "test", or "val" where no test clips were asked about),
        `titles`, `numbers` (variant -> seed -> what `_run_numbers` gives), `missing` (how many of the study's runs are
        not finished) and `provenance`.

    Raises:
        UserError: no run of it is finished.
    """
    plan = STUDIES[study]
    runs = [job for job in jobs if job.facts.get("kind") in ("rl", "sft") and job.facts["variant"] in plan.variants]
    asked = {job.facts["split"] for job in jobs if job.facts.get("variant") in plan.variants and "split" in job.facts}
    split = "test" if "test" in asked & {*plan.splits} else "val"
    shown = (*([split] if plan.splits else []), *KEPT.get(study, ()))
    numbers: dict[str, dict[str, Any]] = {name: {} for name in plan.variants}
    done, missing = [], 0
    for job in runs:
        children = [child for child in jobs if child.facts.get("run") == job.name]
        if not all((out / child.name / DONE_FILE).is_file() for child in (job, *children)):
            missing += 1
            continue
        done += [_read_json(out / child.name / DONE_FILE) for child in (job, *children)]
        found = _run_numbers(out / job.name)
        kept_of_run = {key: found[key] for key in shown if key in found}
        numbers[job.facts["variant"]][str(job.facts["seed"])] = kept_of_run
    if not done:
        raise UserError(f"{out}: no run of the study {study!r} is finished")
    titles = {name: VARIANTS[name].title for name in plan.variants}
    kept = {name: seeds for name, seeds in numbers.items() if seeds}
    return {
        "study": study,
        "question": plan.question,
        "split": split,
        "titles": titles,
        "numbers": kept,
        "missing": missing,
        "provenance": {**_provenance(done, runs), "base": _base(jobs)},
    }


def _run_numbers(folder: Path) -> dict[str, Any]:
    """`val` and `test` (mode -> number), `auto`, `cost`, `theory` and `gradients` of one run."""
    found: dict[str, Any] = {}
    paths = {split: folder / split / RECORDS_FILE for split in ("val", "test")}
    paths = {split: path for split, path in paths.items() if path.is_file()}
    if paths:
        found |= _scores(folder, paths)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    found["cost"] = cost(log)
    found["theory"] = theory(log)
    gradients = folder / "gradients" / "gradients.json"
    if gradients.is_file():
        found["gradients"] = _rounded(_read_json(gradients))
    return found


def _scores(folder: Path, paths: Mapping[str, Path]) -> dict[str, Any]:
    stamp = [FORMAT, {split: [path.stat().st_size, path.stat().st_mtime_ns] for split, path in paths.items()}]
    kept = folder / SCORES_FILE
    if kept.is_file() and (found := _read_json(kept)).get("stamp") == stamp:
        return dict(found["scores"])
    scores = score_splits({split: read_records(path) for split, path in paths.items()})
    kept.write_text(json.dumps({"stamp": stamp, "scores": scores}) + "\n", encoding="utf-8")
    return scores


def score_splits(records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Means over clips of each split and mode, and thinking when it pays, its threshold from `val`.

    Args:
        records: of "val" and, where test clips were asked about, of "test".
    """
    found: dict[str, Any] = {}
    for split, rows in records.items():
        modes = summarise(rows, resamples=1)["modes"]
        found[split] = {mode: {name: row[name]["mean"] for name in NUMBERS} for mode, row in modes.items()}  # type: ignore[literal-required]
        for mode, row in modes.items():
            found[split][mode]["clips"] = row["n"]
            found[split][mode]["errors"] = row["n_errors"]
    if {"val", "test"} <= records.keys():
        found["auto"] = think_when_it_pays(records["val"], records["test"])
    return dict(_rounded(found))


def think_when_it_pays(validation: Sequence[Record], test: Sequence[Record]) -> dict[str, Any]:
    """What the threshold that is best on validation clips brings on test clips, beside fast, slow and the oracle.

    Args:
        validation: records of both modes.
        test: records of both modes.
    """
    gate = choose_threshold(validation, {"split": "val"})
    both = pairs(test)
    points = {"auto": at_threshold(both, gate.threshold), "oracle": oracle(both)}
    points |= {"fast": at_threshold([(fast, fast) for fast, _ in both], 0.0), "slow": _always_slow(both)}
    found = {name: asdict(point) for name, point in points.items()}
    return {**found, "curve": [[p.share, p.tokens, p.f1] for p in curve(both)], "threshold": gate.threshold}


def _always_slow(both: Sequence[tuple[Record, Record]]) -> Any:
    # Who always thinks does not answer fast first.
    return at_threshold([(slow, slow) for _, slow in both], 0.0)


def cost(log: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What a run took: steps, generated tokens, and seconds in total and in each part.

    Args:
        log: lines of `log.jsonl`; times and lengths are means over the steps since the line before.
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
    """The statistics of `interference` along training: name -> a value for each logged "step"; empty without any."""
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


def _provenance(done: Iterable[Mapping[str, Any]], runs: Sequence[Job]) -> dict[str, Any]:
    entries = list(done)
    settings = {json.dumps(entry["settings"], sort_keys=True) for entry in entries if "settings" in entry}
    return {
        "commits": sorted({str(entry["commit"]) for entry in entries}),
        "changed": any(entry["changed"] for entry in entries),
        "versions": [json.loads(v) for v in sorted({json.dumps(entry["versions"]) for entry in entries})],
        "seeds": sorted({job.facts["seed"] for job in runs}),
        "settings": [json.loads(text) for text in sorted(settings)],
        "process_hours": round(math.fsum(entry["seconds"] for entry in entries) / 3600, 3),
    }


def _base(jobs: Sequence[Job]) -> str | None:
    # Fingerprint of the base that every cold start begins with: processors round differently, so that the same commands
    # make another base on another kind of machine, and other numbers.
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


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
