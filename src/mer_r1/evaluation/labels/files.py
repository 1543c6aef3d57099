"""Read prediction files, add labels to their rows, write them.

A prediction file holds the raw text that a model wrote about each clip: JSON lines as `mer-r1 evaluate` saves them,
JSON lines of other systems, or one JSON object name -> text. Extraction adds labels and their source to every row. A
row without labels gets an `error`; no row is ever dropped, and no label is made up.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from mer_r1.data.jsonl import object_of, read_lines, read_object, write_atomically
from mer_r1.data.media.notes import count_notes
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.labels.extract import Extracted, extract_labels, extract_sentiments, sentiments_by_rule
from mer_r1.evaluation.llm.chat import OnReply, TextModel

logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""A prediction: `id`, `completion` (or None), optionally `mode`, `error` and any other fields."""

SentimentBy = Literal["llm", "rules"]
_OUR_ERRORS = ("labels: ", "sentiment: ")


def read_predictions(path: Path | str, allow_pickle: bool = False) -> list[Row]:
    """Predictions of a file: JSON lines, `.json` (an object name -> text), or the reference's `.npz`.

    A line is an object with `id` or `name`, and `completion` or `text`; its other fields are kept. Of several
    rows of one id and mode the last one counts, in the first one's place. A half-written last line is dropped with a
    warning. Of an `.npz`, the entry `name2reason` is read (AffectGPT release).

    Args:
        path: the file.
        allow_pickle: whether an `.npz`, which holds pickles, may be read; see `data.npz`.

    Raises:
        UserError: the file cannot be read, or a row is invalid; names the line.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        from mer_r1.data.npz import read_npz

        rows = _rows_of_object(path, read_npz(path, "name2reason", allow_pickle=allow_pickle))
    elif path.suffix.lower() == ".json":
        rows = _rows_of_object(path, read_object(path))
    else:
        rows = list(read_lines(path, _row))
    latest = {(row["id"], row.get("mode")): row for row in rows}
    if len(latest) < len(rows):
        logger.warning("%s: %d rows come again later; the last of each counts", path, len(rows) - len(latest))
    if not latest:
        raise UserError(f"{path}: no predictions in it")
    return list(latest.values())


def label_rows(
    rows: Sequence[Row],
    model: TextModel | None,
    taxonomy: Taxonomy | None = None,
    checked: bool = True,
    on_reply: OnReply | None = None,
) -> list[Row]:
    """Rows with the fields `labels`, `openset`, `label_source`, `label_reply`, `label_doubt` and `label_model` added.

    Rows with an `error` stay as they are, unless it is of an earlier extraction. The other arguments are those of
    `extract.extract_labels`.

    Returns:
        New rows in the same order. Where no labels were found, `labels` and `openset` are None and `error` says why.
    """
    rows = [_without_earlier_labels(row) for row in rows]
    asked = [row for row in rows if row.get("error") is None]
    found = extract_labels([row["completion"] for row in asked], model, taxonomy, checked, on_reply)
    return _with_fields(rows, found, "labels", model)


def sentiment_rows(
    rows: Sequence[Row],
    by: SentimentBy,
    model: TextModel | None = None,
    taxonomy: Taxonomy | None = None,
    checked: bool = True,
    on_reply: OnReply | None = None,
) -> list[Row]:
    """Rows of `label_rows` with `sentiment`, `sentiment_source`, `sentiment_reply` and `sentiment_doubt` added.

    Rows with an `error` stay as they are. "llm" asks `model` (`extract.extract_sentiments`), "rules" uses the wheels
    (`extract.sentiments_by_rule`); the other arguments are theirs.

    Raises:
        UserError: "llm" without a model, or as `TextModel.complete` does.
    """
    texts = [row["openset"] for row in rows if row.get("error") is None]
    if by == "rules":
        found = sentiments_by_rule(texts, taxonomy)
    elif model is None:
        raise UserError("sentiment by llm: no language model was given; name one, or take the wheels (rules)")
    else:
        found = extract_sentiments(texts, model, checked, on_reply)
    return _with_fields(rows, found, "sentiment", model)


def summarise(rows: Iterable[Row]) -> dict[str, Any]:
    """Counts of rows: `rows`, `labels` and `sentiments` by source, `doubtful`, `errors`, `without_completion`.

    `notes` counts the clips with each note about what was read of them (see `Record.notes`).
    `errors` counts rows without labels or sentiment, `without_completion` rows that had an error before.
    """
    rows = list(rows)
    counts: dict[str, Any] = {"rows": 0, "labels": Counter(), "sentiments": Counter()}
    counts |= dict.fromkeys(("doubtful", "errors", "without_completion"), 0)
    counts["notes"] = count_notes((row["id"], row.get("notes")) for row in rows)
    for row in rows:
        counts["rows"] += 1
        if "label_source" not in row:
            counts["without_completion"] += 1
        elif row["error"] is not None:
            counts["errors"] += 1
        else:
            counts["labels"][row["label_source"]] += 1
            counts["sentiments"].update([row["sentiment_source"]] if "sentiment_source" in row else [])
            counts["doubtful"] += any(row.get(f"{kind}_doubt") is not None for kind in ("label", "sentiment"))
    return {name: dict(count) if isinstance(count, Counter) else count for name, count in counts.items()}


def write_rows(path: Path | str, rows: Sequence[Row], field: Literal["openset", "sentiment"]) -> None:
    """Write rows atomically: JSON lines, or with the ending `.json` an object name -> `field` for `mer-r1 score`.

    In the object, rows with an error are left out: the score then fails for a missing prediction instead of counting
    an empty one.

    Raises:
        UserError: the object would hold a clip twice (in both modes).
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        names = Counter(row["id"] for row in rows)
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserError(f"{path}: {twice[0]!r} has several modes, which one object cannot hold; choose one mode")
        text = json.dumps({row["id"]: row[field] for row in rows if row.get("error") is None}, indent=1) + "\n"
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, text)


def _without_earlier_labels(row: Row) -> Row:
    """The row without the fields of an earlier extraction, so that a failed one is retried."""
    kept = {name: value for name, value in row.items() if not name.startswith(("label_", "sentiment", "openset"))}
    if str(row.get("error")).startswith(_OUR_ERRORS):
        kept["error"] = None
    return kept


def _with_fields(
    rows: Sequence[Row], found: Sequence[Extracted], kind: Literal["labels", "sentiment"], model: TextModel | None
) -> list[Row]:
    """New rows; those without an error get the fields of what was found for them."""
    new, prefix = [dict(row) for row in rows], kind.removesuffix("s")
    for row, answer in zip([row for row in new if row.get("error") is None], found, strict=True):
        if kind == "labels":
            row |= {"labels": None if answer.value is None else answer.labels, "openset": answer.value}
        else:
            row["sentiment"] = answer.value
        row |= {
            f"{prefix}_source": answer.source,
            f"{prefix}_reply": answer.reply,
            f"{prefix}_doubt": answer.doubt,
            f"{prefix}_model": model.name if model and answer.source == "llm" else None,
            "error": None if answer.error is None else f"{kind}: {answer.error}",
        }
    return new


def _rows_of_object(path: Path, content: Any) -> list[Row]:
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object, name -> text, got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise UserError(f"{path}: {name!r:.80}: expected a text, got {value!r:.80}")
    return [{"id": name, "completion": value} for name, value in content.items()]


def _row(line: bytes) -> Row:
    row = object_of(line, "a prediction")
    name, words = row.get("id", row.get("name")), row.get("completion", row.get("text"))
    if not isinstance(name, str):
        raise UserError(f"expected an id or name as text; the fields are {', '.join(row) or 'none'}")
    if row.get("error") is None and not isinstance(words, str):
        raise UserError(f"{name!r:.80}: expected its completion or text, got {words!r:.60}")
    if not isinstance(row.get("mode"), str | None):
        raise UserError(f"{name!r:.80}: expected its mode as text, got {row['mode']!r:.60}")
    return row | {"id": name, "completion": words}
