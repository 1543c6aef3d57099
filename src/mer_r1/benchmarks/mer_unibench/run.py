"""The whole evaluation in one folder: ask the model about every clip, read labels out of its answers, score.

    claim.json             settings that decide the answers (model, decoding ...); the folder accepts no others
    NAME/records.jsonl     predictions for the clips of a set, slow and fast
    NAME/labels.jsonl      the same with labels, and with sentiments for the sentiment sets
    replies.sqlite         cache of replies of servers and of the language model that reads labels
    scores.json, scores.md the report and its table

Every answer is on disk as soon as it is made. Rerunning the same command resumes an interrupted run, with the result of
an uninterrupted one. A clip without an answer, or with an answer that nothing can read, is not scored but counted with
its reason.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mer_r1.benchmarks.mer_unibench.gold import Gold
from mer_r1.benchmarks.mer_unibench.predictions import Answers
from mer_r1.benchmarks.mer_unibench.report import Scoring, score_benchmark
from mer_r1.benchmarks.mer_unibench.sets import SETS
from mer_r1.benchmarks.mer_unibench.tables import render, score_tables
from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import write_atomically
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.labels.files import Row, SentimentBy, label_rows, sentiment_rows, summarise, write_rows
from mer_r1.evaluation.llm.chat import OnReply, TextModel
from mer_r1.evaluation.records import RECORDS_FILE, read_records, without_nan

LABELS_FILE, REPLIES_FILE = "labels.jsonl", "replies.sqlite"
SCORES_FILE, TABLE_FILE = "scores.json", "scores.md"
RESULTS = tuple(f"{name}/{file}" for name in SETS for file in (RECORDS_FILE, LABELS_FILE))
RESULTS += (f"{REPLIES_FILE}*", SCORES_FILE, TABLE_FILE)
CHECKPOINT = "labels"
"""Name of the only checkpoint in the report, after the file of its labels."""


@dataclass(frozen=True)
class Reader:
    """How labels and sentiments are read from answers.

    Attributes:
        taxonomy: wheels with the known words.
        model: reads answers that no rule can; None leaves them without labels, and counted.
        sentiment: "llm" asks `model`, "rules" uses the wheels.
        checked: whether unusable replies of `model` are refused; the reference accepts every reply.
    """

    taxonomy: Taxonomy
    model: TextModel | None = None
    sentiment: SentimentBy = "rules"
    checked: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that would fail only after hours."""
        if self.sentiment == "llm" and self.model is None:
            raise UserError("sentiment by llm: no language model was given; name one, or take the wheels (rules)")


def read_labels(
    name: str,
    clips: Sequence[Clip],
    modes: Sequence[ThinkingMode],
    out: Path,
    reader: Reader,
    on_reply: OnReply | None = None,
) -> dict[str, list[Row]]:
    """Labels of a set's answers, and sentiments where the set asks for them, written to `labels.jsonl`.

    Returns:
        Mode -> rows, in the clips' order; a row without labels, or without its sentiment, has an `error`.

    Raises:
        UserError: see `chat.TextModel.complete`; replies so far are kept.
    """
    records = {(record.id, record.mode): record for record in read_records(out / name / RECORDS_FILE)}
    rows: list[Row] = [records[clip.id, mode.value].to_dict() for mode in modes for clip in clips]
    rows = label_rows(rows, reader.model, reader.taxonomy, reader.checked, on_reply)
    if SETS[name].kind == "sentiment":
        rows = sentiment_rows(rows, reader.sentiment, reader.model, reader.taxonomy, reader.checked, on_reply)
    write_rows(out / name / LABELS_FILE, rows, "openset")
    return {mode.value: [row for row in rows if row["mode"] == mode.value] for mode in modes}


def score(
    golds: Mapping[str, Gold],
    rows: Mapping[str, Mapping[str, Sequence[Row]]],
    out: Path,
    how: Scoring,
    model: str,
    sentiment: SentimentBy,
    published: bool = False,
    weights: str | None = None,
) -> dict[str, Any]:
    """Official and audited scores, written to `scores.json` and, as a table, to `scores.md`.

    `rows` is set -> mode -> rows of `read_labels`. The report notes `sentiment`, the source of the sentiments; the
    table names the `model` (and the digest of its `weights`) and, with `published`, has the published rows, too.

    Returns:
        The report of `report.score_benchmark` with `model`, `sentiment` and `answers`: per set and mode the counts
        of `labels.files.summarise`, and `partly`: clip -> the files that it was asked without.
    """
    report = score_benchmark(
        golds,
        {name: {CHECKPOINT: {mode: answers_of(name, r) for mode, r in m.items()}} for name, m in rows.items()},
        how,
    )
    clips = sum(len(next(iter(modes.values()), ())) for modes in rows.values())
    report |= {"model": model, "weights": weights, "sentiment": sentiment, "clips": clips}
    report["answers"] = {name: {mode: _summary(r) for mode, r in modes.items()} for name, modes in rows.items()}
    write_atomically(out / SCORES_FILE, _json(without_nan(report)))
    write_atomically(
        out / TABLE_FILE, "\n".join(render(table, "markdown") for table in score_tables(report, model, published))
    )
    return report


def answers_of(name: str, rows: Sequence[Row]) -> Answers:
    """Rows of `read_labels` in the form for scoring; a row with an error has no answer."""
    key = "sentiment" if SETS[name].kind == "sentiment" else "openset"
    return Answers(
        {row["id"]: row[key] for row in rows if row["error"] is None},
        {row["id"]: str(row["error"]) for row in rows if row["error"] is not None},
    )


def gaps(report: Mapping[str, Any]) -> int:
    """Number of clips without an answer over all sets and modes: no completion, labels, or sentiment."""
    counts = [entry for modes in report["answers"].values() for entry in modes.values()]
    return sum(int(entry["errors"]) + int(entry["without_completion"]) for entry in counts)


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    return {**summarise(rows), "partly": {row["id"]: row["without"] for row in rows if row["without"]}}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
