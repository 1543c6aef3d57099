"""The whole evaluation in one folder: predict, extract steps, judge, score; each stage can be resumed.

    predictions/records.jsonl   predictions of the model, slow and fast
    steps.jsonl                 steps of each answer
    judged.jsonl                ratings of each item, by judge and repetition
    replies.sqlite              cache of the extractor's and judge's raw replies
    reference/MODE/TASK.json    the judged items in the reference's own form
    scores.json                 the report

Every stage reads the files of the one before, so it can be run on its own. Answers of other systems, in the reference's
own JSON, can take the place of predictions.
"""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mer_r1.benchmarks.mme_emotion.judged import GIVEN, JUDGED_FILE, read_judged, task_files, task_of
from mer_r1.benchmarks.mme_emotion.judging.prompts import model_question
from mer_r1.benchmarks.mme_emotion.judging.stages import (
    Item,
    Judging,
    extraction_jobs,
    judge_jobs,
    judged_ledger,
    steps_ledger,
)
from mer_r1.benchmarks.mme_emotion.scores.compare import score_report
from mer_r1.benchmarks.mme_emotion.scores.label_match import LabelItem, gold_labels, label_report
from mer_r1.benchmarks.mme_emotion.scores.official import ALPHA
from mer_r1.benchmarks.mme_emotion.tasks import TASKS, grouped, task_named
from mer_r1.data.claim import item_keys, read_claim
from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import write_atomically
from mer_r1.data.manifest import read_manifest
from mer_r1.data.media.notes import count_notes
from mer_r1.emotions.thinking import FAST_PREFILL, ThinkingMode
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.client import Client
from mer_r1.evaluation.llm.jobs import estimated, remaining
from mer_r1.evaluation.llm.ledger import Ledger, Row, read_rows, write_array
from mer_r1.evaluation.records import RECORDS_FILE, Record, check_clips, read_records

if TYPE_CHECKING:
    from mer_r1.model.generation import Sampling

DATASET = "mme-emotion"
PREDICTIONS = "predictions"
STEPS_FILE, REPLIES_FILE, SCORES_FILE, LABELS_FILE = "steps.jsonl", "replies.sqlite", "scores.json", "labels.json"
REFERENCE_FOLDER = "reference"
RESULTS: tuple[str, ...] = (
    f"{PREDICTIONS}/{RECORDS_FILE}",
    STEPS_FILE,
    JUDGED_FILE,
    f"{REPLIES_FILE}*",
    SCORES_FILE,
    LABELS_FILE,
)
RESULTS += (REFERENCE_FOLDER,)
_ANSWER_CHARACTERS = 600  # about 150 tokens, as the published models answer on average
_EXPORTED: Row = {
    "video_id": None,
    "ground_truth": None,
    "model_response": None,
    "step": None,
    "score": None,
    "input_tokens": 0,
    "output_tokens": 0,
}
"""Fields of the reference's judged files, with their values where nothing was asked."""


def benchmark_clips(manifest: Path, allow_absolute: bool = False) -> list[Clip]:
    """The clips of a manifest that `mer-r1 prepare mme-emotion` wrote.

    Raises:
        UserError: it cannot be read, or a row lacks the task, the question or the gold label in its `meta`.
    """
    clips = read_manifest(manifest, allow_absolute=allow_absolute)
    for clip in clips:
        if clip.meta.get("dataset") != DATASET:
            raise UserError(
                f"{manifest}: clip {clip.id}: meta.dataset: got {clip.meta.get('dataset')!r:.40}, expected "
                f"{DATASET!r}; write the manifest with: mer-r1 prepare {DATASET}"
            )
        task_named(clip.meta.get("task"))
        if not gold_text(clip):
            raise UserError(f"{manifest}: clip {clip.id}: meta.gold: got nothing, expected the gold label")
    return clips


def gold_text(clip: Clip) -> str:
    """The gold label(s) of a clip as the reference writes them: one text, several with commas."""
    gold = clip.meta.get("gold")
    parts = gold if isinstance(gold, list) else [gold]
    return ",".join(str(part).strip() for part in parts if part not in (None, ""))


def clip_name(clip: Clip) -> str:
    """The benchmark's name of a clip (`video_id`)."""
    return str(clip.meta.get("video_id", clip.id))


def question_of(clip: Clip) -> str:
    """The question to the evaluated model about a clip."""
    task = task_named(clip.meta.get("task"))
    return model_question(task, clip.subtitle, clip.meta.get("question"), _candidates(clip))


def _candidates(clip: Clip) -> tuple[str, ...] | None:
    return tuple(map(str, clip.meta.get("candidates") or ())) or None


def expected_ids(clips: Iterable[Clip]) -> dict[str, list[str]]:
    """Task -> ids of the clips that a complete evaluation has judged."""
    groups = grouped(clips, _task_name)
    return {task: [clip_name(clip) for clip in rows] for task, rows in groups.items()}


def _task_name(clip: Clip) -> str:
    return task_named(clip.meta.get("task")).name


def predict_answers(
    model: str, manifest: Path, out: Path, modes: Sequence[ThinkingMode], sampling: "Sampling", **options: Any
) -> Path:
    """First stage: predict every clip without a record; returns the records' file; see `predict.evaluate_model`."""
    from mer_r1.evaluation.predict import evaluate_model

    of_benchmark: dict[str, Any] = {"split": "all", "features_dir": out / "features", "ask": question_of}
    return evaluate_model(model, manifest, out / PREDICTIONS, modes, sampling, **of_benchmark, **options)


def notes_of(out: Path, clips: Container[str] | None = None) -> dict[str, int]:
    """Number of these clips (None: all predicted ones) with each note about what was read of them, see `Record`."""
    file = out / PREDICTIONS / RECORDS_FILE
    records = read_records(file) if file.exists() else []
    return count_notes((record.id, record.notes) for record in records if clips is None or record.id in clips)


def answered_items(clips: Sequence[Clip], out: Path, modes: Sequence[ThinkingMode]) -> list[Item]:
    """Every clip in every mode, with the model's answer or the reason why it is missing."""
    file = out / PREDICTIONS / RECORDS_FILE
    records = {(record.id, record.mode): record for record in read_records(file)}
    check_clips(file, records.values(), item_keys(clips, question_of))
    return [_item(clip, mode.value, records.get((clip.id, mode.value))) for mode in modes for clip in clips]


def clip_items(clips: Sequence[Clip]) -> list[Item]:
    """Every clip without an answer, for stages that need none (audio clues)."""
    return [_item(clip, GIVEN, None) for clip in clips]


def assumed_items(clips: Sequence[Clip], modes: Sequence[ThinkingMode]) -> list[Item]:
    """Every clip in every mode with an answer of typical length, for an estimate before anything is asked."""
    return [
        replace(_item(clip, mode.value, None), response="." * _ANSWER_CHARACTERS) for mode in modes for clip in clips
    ]


def _item(clip: Clip, mode: str, record: Record | None) -> Item:
    return Item(
        task=_task_name(clip),
        id=clip_name(clip),
        mode=mode,
        gold=gold_text(clip),
        response=answer_text(record) if record and record.error is None else None,
        problem=record.error if record else None,
        video=clip.video,
        audio=clip.audio,
        candidates=_candidates(clip),
        notes=tuple(record.notes) if record else (),
    )


def answer_text(record: Record) -> str:
    """The model's answer; of a fast one the part after the prefilled think block."""
    return record.completion.removeprefix(FAST_PREFILL) if record.mode == "fast" else record.completion


def given_items(paths: Sequence[Path], clips: Sequence[Clip]) -> list[Item]:
    """Answers of other systems in the reference's form: `{video_id, ground_truth, model_response}`, optionally `step`.

    Args:
        paths: files named after their tasks, or folders of such files.
        clips: clips with the media; an answer about another clip cannot be judged.

    Raises:
        UserError: a file names no task, or an item has no id or a repeated one.
    """
    known = {(_task_name(clip), clip_name(clip)): clip for clip in clips}
    items: dict[tuple[str, str], Item] = {}
    for path in task_files(paths):
        task = task_of(path)
        if task is None:
            raise UserError(f"{path}: which task? Expected the name to be one of {', '.join(TASKS)}")
        for number, row in enumerate(read_rows(path), start=1):
            item = _given(row, task, known)
            if item is None or (task, item.id) in items:
                raise UserError(f"{path}: item {number}: video_id: got {row.get('video_id')!r:.60}, expected a new id")
            items[task, item.id] = item
    return list(items.values())


def _given(row: Row, task: str, known: dict[tuple[str, str], Clip]) -> Item | None:
    name = row.get("video_id")
    if not isinstance(name, str) or not name:
        return None
    clip = known.get((task, name))
    response, step = row.get("model_response"), row.get("step")
    gold = row.get("ground_truth")
    return Item(
        task=task,
        id=name,
        mode=GIVEN,
        gold=gold if isinstance(gold, str) else gold_text(clip) if clip else str(gold),
        response=response if isinstance(response, str) else None,
        problem="model_response is not a text",
        step=step if isinstance(step, str) else None,
        video=clip.video if clip else None,
        audio=clip.audio if clip else None,
        candidates=_candidates(clip) if clip else None,
    )


def ledgers(out: Path) -> tuple[Ledger, Ledger]:
    """Ledgers of step extraction and of judging in a folder."""
    return steps_ledger(out / STEPS_FILE), judged_ledger(out / JUDGED_FILE)


def forecast(items: Sequence[Item], out: Path, extractor: Client, judge: Client, how: Judging) -> dict[str, Any]:
    """What step extraction and judging will about take from here, before either asks; see `jobs.estimated`."""
    steps, judged = ledgers(out)
    stages = (
        ("steps", extraction_jobs(items), extractor, steps),
        ("judge", judge_jobs(items, steps, judge.name, how), judge, judged),
    )
    return {stage: estimated(remaining(jobs, ledger, client), ledger, client) for stage, jobs, client, ledger in stages}


def export_reference(out: Path, judge: str) -> list[Path]:
    """Write one judge's items, first repetition, in the reference's form: one JSON array per task."""
    _, judged = ledgers(out)
    first = [row for row in judged.rows.values() if row["judge"] == judge and row["repeat"] == 0]
    paths = []
    for (mode, task), rows in grouped(first, lambda row: (row["mode"], row["task"])).items():
        paths.append(out / REFERENCE_FOLDER / mode / f"{task}.json")
        write_array(paths[-1], [_EXPORTED | {name: row[name] for name in _EXPORTED if name in row} for row in rows])
    return paths


def write_scores(
    out: Path,
    clips: Sequence[Clip],
    alpha: float = ALPHA,
    seed: int = 0,
    judge: str | None = None,
    items: Sequence[Item] | None = None,
    manifest: Path | str = "",
) -> dict[str, Any]:
    """Last stage: the report of the judged items, written to `scores.json`; see `compare.score_report`.

    Only judgements of `items` with their gold count; None takes the clips' in both modes, and any of answers from
    elsewhere. `source` in the report names the model, its weights, the `manifest`, and the number of clips.

    Raises:
        UserError: none of these is judged.
    """
    modes = [mode.value for mode in ThinkingMode]
    own = [_item(clip, mode, None) for mode in modes for clip in clips] if items is None else items
    gold = {item.key: item.gold for item in own}
    found = [
        row
        for row in read_judged([out / JUDGED_FILE])
        if gold.get((row.mode, row.task, row.id)) == row.gold or (items is None and row.mode == GIVEN)
    ]
    if not found:
        raise UserError(f"{out / JUDGED_FILE}: no judgement of these {len(clips)} clips with their gold labels")
    report = score_report(found, expected_ids(clips), alpha, seed, judge)
    report["source"] = source_of(out, clips, manifest)
    report["notes"] = notes_of(out, {clip.id for clip in clips})
    _write_json(out / SCORES_FILE, report)
    return report


def source_of(out: Path, clips: Sequence[Clip], manifest: Path | str) -> dict[str, Any]:
    """What scores are of: the model that was asked, if it was asked here, and the clips."""
    facts = read_claim(out / PREDICTIONS)
    model = {"model": facts.get("model"), "weights": facts.get("weights")}
    return model | {"manifest": str(manifest), "split": "all", "clips": len(clips)}


def write_label_scores(
    out: Path, items: Sequence[Item], taxonomy: Taxonomy, seed: int = 0, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Recognition without a judge, by mode, written to `labels.json`; see `label_match.label_report`.

    The report of each mode has `source` (see `source_of`) with the wheels.
    """
    report = {}
    for mode, group in grouped(items, lambda item: item.mode).items():
        rows = []
        for item in group:
            gold = gold_labels(item.gold) if TASKS[item.task].fraction else (item.gold,)
            rows.append(LabelItem(item.task, item.response or "", gold, item.candidates))
        report[mode] = label_report(rows, taxonomy, seed) | {
            "notes": count_notes((item.id, item.notes) for item in group),
            "source": {**(source or {}), "wheels": taxonomy.title},
        }
    _write_json(out / LABELS_FILE, report)
    return report


def _write_json(path: Path, report: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
