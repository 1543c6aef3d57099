"""Answers as a table: one row per clip, slow and fast side by side, as CSV, JSON lines or Parquet."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mer_r1.data.jsonl import write_atomically
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError, printable
from mer_r1.evaluation.clips.ask import Answered
from mer_r1.evaluation.clips.text import how_sure, notes_of, unknown_words

ENDINGS = (".csv", ".jsonl", ".parquet")
LISTS = ("slow_labels", "fast_labels", "unknown_words", "notes")
"""Columns with lists; in CSV their items are joined by ", ", notes by "; "."""
NUMBERS = ("start", "end", "confidence", "slow_confidence", "fast_confidence")


def records_file(out: Path) -> Path:
    """The file of records beside a table, one line per clip and mode, with everything that is known of an answer.

    Raises:
        UserError: an ending of no known kind.
    """
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"--out {printable(out)}: expected a name that ends in {', '.join(ENDINGS)}")
    return out.with_name(f"{out.name}.records.jsonl")


def transcripts_file(out: Path) -> Path:
    """The file of transcripts beside a table."""
    return out.with_name(f"{out.name}.transcripts.jsonl")


def row_of(answered: Answered, taxonomy: Taxonomy) -> dict[str, Any]:
    """One clip as a row.

    `confidence` is the probability of `most_likely`, `slow_confidence` that of the slow answer's own words (geometric
    mean over its tokens), `fast_confidence` likewise.
    """
    clip, sure = answered.clip, how_sure(answered.records, taxonomy)
    start, end = clip.section or (None, None)
    row: dict[str, Any] = {
        "id": clip.id,
        "file": str(clip.video or clip.audio or ""),
        "start": start,
        "end": end,
        "words": clip.subtitle,
        "words_by": answered.asked.words_by,
    }
    by_mode = {record.mode: record for record in answered.records}
    for mode in ("slow", "fast"):
        record = by_mode.get(mode)
        row[f"{mode}_labels"] = record.labels if record else []
        row[f"{mode}_confidence"] = record.sureness if record else None
    best = sure.sectors[0] if sure.sectors else (None, None)
    row |= {"most_likely": best[0] or "", "confidence": None if best[1] is None else round(best[1], 4)}
    row |= {"how_sure": str(sure) if answered.error is None else ""}
    row |= {"unknown_words": unknown_words(answered.records, taxonomy), "notes": notes_of(answered)}
    reasoning = next((record.reasoning for record in answered.records if record.reasoning), "")
    return row | {"reasoning": reasoning, "error": answered.error or "", "model": answered.records[0].model}


def write_rows(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, JSON lines or Parquet, by the ending of the name; the old file or the new one is there.

    Raises:
        UserError: Parquet without pyarrow.
    """
    if out.suffix.lower() == ".parquet":
        write_atomically(out, lambda path: _parquet(path, rows))
    elif out.suffix.lower() == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows[0] if rows else [])
        writer.writerows([_cell(name, value) for name, value in row.items()] for row in rows)
        write_atomically(out, text.getvalue())
    else:
        write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _cell(name: str, value: Any) -> Any:
    if name in LISTS:
        return ("; " if name == "notes" else ", ").join(value)
    return "" if value is None else value


def _parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("--out ....parquet needs pyarrow: install mer-r1 with the extra parquet") from None
    kinds = dict.fromkeys(rows[0] if rows else (), pyarrow.string())
    kinds |= {name: pyarrow.list_(pyarrow.string()) for name in LISTS if name in kinds}
    kinds |= {name: pyarrow.float64() for name in NUMBERS if name in kinds}
    table = pyarrow.Table.from_pylist([dict(row) for row in rows], schema=pyarrow.schema(list(kinds.items())))
    parquet.write_table(table, path)
