"""Collect finished runs into one small JSON per study: every number in its tables, figures and claims.

Only means over clips are kept, per variant, seed and mode, of sampled answers (each clip's own mean) and of greedy
ones; the records stay in the runs' folders. The threshold of adaptive thinking is chosen here, on the greedy answers to
the validation clips of each run, and applied to those to its test clips. Reading a run's records takes seconds, so
the result is cached beside them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mer_r1.data.jsonl import object_of, read_lines, read_object, write_atomically
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers.thinking_gate import SINGLE, alone, at_gate, choose_gate, curve, oracle, pairs
from mer_r1.evaluation.records import RECORDS_FILE, Record, read_records
from mer_r1.evaluation.summary import summarise
from mer_r1.lab.study.runs.jobs import StudyJob
from mer_r1.lab.study.runs.schedule import DONE_FILE, is_done
from mer_r1.lab.study.runs.variants import STUDIES, VARIANTS, Study

NUMBERS = (
    *("precision", "recall", "f1", "labels", "categories", "well_formed"),
    *("tokens", "seconds", "confidence_correct", "confidence_incorrect"),
)
"""Numbers kept per mode, means over clips."""
KEPT = {"bed": ("diagnosis",), "costs": ("cost",), "theory": ("theory", "gradients"), "auto": ("auto",)}
"""`Study.shows` -> what its tables and figures show of a run besides scores."""
SCORES_FILE = "scores.json"
FORMAT = 3
"""Version of the cached scores; raise it when the same records give other numbers."""
LOGGED: tuple[str, ...] = ("sigma_recall", "sigma_precision", "rho")
LOGGED += ("predicted_recall", "predicted_precision", "measured_recall", "measured_precision")


def collect(study: str, jobs: Sequence[StudyJob], out: Path) -> dict[str, Any]:
    """The numbers of one study's finished runs.

    Returns:
        `study`, `question`, `split` (of the scores: "test", or "val" of a trial), `titles`, `numbers` (variant -> seed
        -> result of `_run_numbers`), `missing` (number of unfinished runs) and `provenance`.

    Raises:
        UserError: if no run of the study is finished.
    """
    plan = STUDIES[study]
    trial = any(job.facts.get("measure") == "val-sampled" for job in jobs)
    runs = _runs_of(plan, jobs, trial)
    # A diagnosis fails where a policy has no reasoning left; its scores count all the same.
    done = [run for run in runs if all(is_done(out, job) for job in run if job.facts.get("measure") != "diagnosis")]
    if not done:
        raise UserError(f"{out}: no run of the study {study!r} is finished")
    split = "val" if trial else "test"
    base = next(job.facts["start"] for job in jobs if job.facts["kind"] == "sft")
    return {
        "study": study,
        "question": plan.question,
        "split": split,
        "titles": {name: VARIANTS[name].title for name in plan.variants},
        "numbers": _numbers(plan, [run for run, *_ in done], split, out),
        "missing": len(runs) - len(done),
        "provenance": {**_provenance(done, out), "base": base},
    }


def _runs_of(plan: Study, jobs: Sequence[StudyJob], trial: bool) -> list[list[StudyJob]]:
    """Each run of the study with what the study measures of it, for the seeds that all of its variants have.

    Other seeds belong to another study only, which runs some of the variants, or measures less.
    """
    found = []
    for run in [job for job in jobs if {*plan.variants} & {*job.facts.get("variants", ())}]:
        wanted = plan.measures(run.facts["seed"], trial)
        measures = [job for job in jobs if job.facts.get("run") == run.name and job.facts["measure"] in wanted]
        if wanted - {"diagnosis"} <= {job.facts["measure"] for job in measures}:  # only some variants are diagnosed
            found.append([run, *measures])
    seeds = [{run.facts["seed"] for run, *_ in found if name in run.facts["variants"]} for name in plan.variants]
    return [entry for entry in found if entry[0].facts["seed"] in set.intersection(*seeds)]


def _numbers(plan: Study, runs: Sequence[StudyJob], split: str, out: Path) -> dict[str, dict[str, Any]]:
    kept = (*(() if plan.shows == "theory" else ("sampled", "greedy")), *KEPT.get(plan.shows, ()))
    numbers: dict[str, dict[str, Any]] = {}
    for name in plan.variants:
        for run in [run for run in runs if name in run.facts["variants"]]:
            found = _run_numbers(out / run.name, split)
            numbers.setdefault(name, {})[str(run.facts["seed"])] = {key: found[key] for key in kept if key in found}
    return numbers


def _run_numbers(folder: Path, split: str) -> dict[str, Any]:
    """`sampled` and `greedy` (mode -> numbers), `auto`, `cost`, `theory`, `gradients`, `diagnosis` of one run."""
    log = list(read_lines(folder / "log.jsonl", object_of))
    found: dict[str, Any] = {**_scores(folder, split), "cost": cost(log), "theory": theory(log)}
    gradients = folder / "gradients" / "gradients.json"
    if gradients.is_file():
        found["gradients"] = _rounded(read_object(gradients))
    judged = {
        path.parent.name.partition("-")[2]: read_object(path) for path in folder.glob("diagnosis-*/diagnosis.json")
    }
    return {**found, "diagnosis": {name: diagnosis(judged[name]) for name in sorted(judged)}}


def diagnosis(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a diagnosis: F1 behind the own and another clip's reasoning, and the gate."""
    met = {check["name"]: [check["value"], check["passed"]] for check in found["checks"]}
    kept = {
        "own": found["exchange"]["own"]["mean"],
        "other": found["exchange"]["other"]["mean"],
        "exchange": found["exchange"]["difference"]["mean"],
        "explained": found["explained"]["f1"]["mean"],
        "below": found["below"]["mean"],
        "cosine": found["cosine"]["mean"],
        "met": sum(passed for _, passed in met.values()),
        "conditions": len(met),
        "passed": float(found["can_act"]),
        "gate": met,
    }
    return dict(_rounded(kept))


def _scores(folder: Path, split: str) -> dict[str, Any]:
    paths = {"sampled": folder / f"{split}-sampled", "greedy": folder / split}
    paths |= {"val": folder / "val"} if split == "test" else {}
    paths = {name: path / RECORDS_FILE for name, path in paths.items() if (path / RECORDS_FILE).is_file()}
    stamp = [FORMAT, {name: [path.stat().st_size, path.stat().st_mtime_ns] for name, path in paths.items()}]
    kept = folder / SCORES_FILE
    if kept.is_file() and (found := read_object(kept)).get("stamp") == stamp:
        return dict(found["scores"])
    scores = score({name: read_records(path) for name, path in paths.items()})
    write_atomically(kept, json.dumps({"stamp": stamp, "scores": scores}) + "\n")
    return scores


def score(records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Means over clips of "sampled" and "greedy" answers per mode; with greedy ones to clips of "val" also "auto"."""
    found: dict[str, Any] = {}
    for name in [name for name in ("sampled", "greedy") if name in records]:
        modes = summarise(records[name], resamples=1)["modes"]
        found[name] = {
            mode: {
                **{number: row[number]["mean"] for number in NUMBERS},  # type: ignore[literal-required]
                "clips": row["n"],
                "errors": row["n_errors"],
            }
            for mode, row in modes.items()
        }
    if {"val", "greedy"} <= records.keys():
        found["auto"] = _adaptive(records["val"], records["greedy"])
    return dict(_rounded(found))


def _adaptive(validation: Sequence[Record], test: Sequence[Record]) -> dict[str, Any]:
    """Adaptive thinking on test clips with the best threshold on validation clips, beside fast, slow and oracle.

    The gate's score is the answer confidence.
    """
    gate = choose_gate(validation, {"split": "val"}, scores=SINGLE[:1])
    both = pairs(test)
    points = {"auto": at_gate(both, gate), "oracle": oracle(both)}
    points |= {"fast": alone(both, 0), "slow": alone(both, 1)}
    found = {name: {n: x for n, x in asdict(p).items() if n not in ("low", "high")} for name, p in points.items()}
    points_of = curve(both, [gate.score_of(fast) for fast, _ in both])
    return {**found, "curve": [[p.share, p.tokens, p.f1] for p in points_of], "threshold": gate.threshold}


def cost(log: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Cost of a run: steps, seconds, tokens per rollout and tokens read.

    Lengths in the lines of `log.jsonl` are means over the steps since the previous line.
    """
    lines = [line for line in log if "completions/mean_length" in line]
    steps = [line["step"] for line in lines]
    spans = [step - before for step, before in zip(steps, [0, *steps], strict=False)]
    tokens = sum(line["completions/mean_length"] * span for line, span in zip(lines, spans, strict=True))
    last = {key: value for line in log for key, value in line.items()}
    found = {"steps": last.get("step"), "seconds": last.get("train_runtime"), "tokens_read": last.get("num_tokens")}
    return dict(_rounded({**found, "completion_tokens": tokens / steps[-1] if steps else None}, 2))


def theory(log: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The statistics of `interference` during training: name -> value per logged "step"; empty if not logged."""
    lines = [line for line in log if "interference/rho" in line]
    if not lines:
        return {}
    found = {name: [round(line[f"interference/{name}"], 4) for line in lines] for name in LOGGED}
    return {"step": [line["step"] for line in lines], **found}


def _provenance(runs: Sequence[Sequence[StudyJob]], out: Path) -> dict[str, Any]:
    entries = [read_object(out / job.name / DONE_FILE) for run in runs for job in run if is_done(out, job)]
    settings = {json.dumps(entry["settings"], sort_keys=True) for entry in entries if "settings" in entry}
    return {
        "commits": sorted({str(entry["commit"]) for entry in entries}),
        "changed": any(entry["changed"] for entry in entries),
        "versions": [json.loads(v) for v in sorted({json.dumps(entry["versions"]) for entry in entries})],
        "seeds": sorted({run.facts["seed"] for run, *_ in runs}),
        "settings": [json.loads(text) for text in sorted(settings)],
        "process_hours": round(math.fsum(entry["seconds"] for entry in entries) / 3600, 3),
    }


def _rounded(value: Any, digits: int = 4) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item, digits) for item in value]
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    return value
