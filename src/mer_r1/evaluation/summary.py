"""Summary of records: slow thinking, fast thinking, and their paired difference, with 95 % intervals.

Every number is a mean over clips with its bootstrap interval (`intervals`). Two results are compared on the same clips,
by their difference on each clip: hard clips are hard for both sides and cancel out, which makes a paired interval much
narrower than two separate ones.

"F1" is the paper's unified F1: precision, recall and F1 of one clip are averaged over the emotion wheels, then over the
clips. Which clips there are, and their gold words, is read from the manifest when the records are scored. Where a clip
has several sampled answers (`Record.draw`), its number is their mean. Clips without a gold word on any wheel are
skipped, and clips that cannot be read are errors. Neither enters a mean, and both are counted. An answer without any
word scores 0.

Whether a model uses a channel is measured by giving every clip another clip's audio or video (`derange`).
"""

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from mer_r1.data.claim import item_keys, read_claim, weights_digest
from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import write_atomically
from mer_r1.data.manifest import read_manifest
from mer_r1.data.media.notes import count_notes
from mer_r1.emotions import wheels as wheel_words
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.intervals import Interval, bootstraps, interval_text, number_text
from mer_r1.evaluation.records import RECORDS_FILE, SCORE_NAMES, Record, check_clips, read_records, rescore, taxonomy_in
from mer_r1.weights.card import with_scores

if TYPE_CHECKING:
    from rich.table import Table

SUMMARY_FILE = "summary.json"
WIDE = 116
"""Columns of a terminal from which an interval stands beside its mean in the table."""
SLOW_MINUS_FAST = "slow - fast"


class ModeSummary(TypedDict):
    """Results of one mode.

    `n` clips are scored; of all `n_records`, `n_errors` could not be read and `n_skipped` have no gold word on any
    wheel. `n_unparsed` answers hold no word that can be read (they score 0), `n_doubtful` hold words that no wheel
    knows, and `n_cut` were cut off at the longest length. The scores and `well_formed` are in [0, 1]; `categories` is
    the mean over wheels; the confidences are probabilities of the gold categories (correct) and of all others
    (incorrect), at the words of the model's own answer.
    """

    n_records: int
    n: int
    n_skipped: int
    n_errors: int
    n_unparsed: int
    n_doubtful: int
    n_cut: int
    precision: Interval
    recall: Interval
    f1: Interval
    well_formed: Interval
    labels: Interval
    categories: Interval
    tokens: Interval
    seconds: Interval
    confidence_correct: Interval
    confidence_incorrect: Interval


class Difference(TypedDict):
    """Paired differences over the `n` clips scored on both sides; `n_unmatched` are scored on one side only."""

    n: int
    n_unmatched: int
    precision: Interval
    recall: Interval
    f1: Interval


class Summary(TypedDict):
    """Results of one set of records, ready for JSON.

    `condition` names a change made to the clips, if any; `notes` counts the clips that were not read whole, or look odd
    (`media.notes`); `matching` says how words were compared (`wheels.Taxonomy.compared_by`). Of a folder it also names
    the digest of the model's weights, the manifest, its split, the number of its clips and of those without a record,
    and the wheels.
    """

    model: str
    condition: str | None
    seed: int
    resamples: int
    modes: dict[str, ModeSummary]
    differences: dict[str, Difference]
    notes: dict[str, int]
    matching: str
    weights: NotRequired[str | None]
    manifest: NotRequired[str]
    split: NotRequired[str]
    clips: NotRequired[int]
    missing: NotRequired[int]
    wheels: NotRequired[str]


def summarise(
    records: Sequence[Record],
    *,
    seed: int = 0,
    resamples: int = 2000,
    taxonomy: Taxonomy | None = None,
    condition: str | None = None,
) -> Summary:
    """Results of each mode and, with both modes, the paired differences slow minus fast.

    Args:
        records: one record per clip and mode, see `read_records`.
        seed: random seed of the bootstrap.
        resamples: bootstrap resamples.
        taxonomy: wheels for the gold categories; None takes the built-in ones.
        condition: change made to the clips, such as "audio exchanged".
    """
    wheels = taxonomy or wheel_words.builtin()
    by_mode = {mode.value: [record for record in records if record.mode == mode] for mode in ThinkingMode}
    modes = {mode: _summarise_mode(rows, wheels, seed, resamples) for mode, rows in by_mode.items() if rows}
    differences = {}
    if len(modes) == 2:
        slow, fast = (by_mode[mode] for mode in (ThinkingMode.SLOW, ThinkingMode.FAST))
        differences[SLOW_MINUS_FAST] = _difference(slow, fast, seed, resamples)
    return {
        "model": ", ".join(sorted({record.model for record in records if record.model})),
        "condition": condition,
        "seed": seed,
        "resamples": resamples,
        "modes": modes,
        "differences": differences,
        "notes": count_notes((record.id, record.notes) for record in records),
        "matching": wheels.compared_by,
    }


def compare(
    records_a: Sequence[Record],
    records_b: Sequence[Record],
    mode: ThinkingMode | str,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> Difference:
    """Paired differences a minus b in one mode, on the clips that both have scored (MER-R1 slow minus SFT slow)."""
    chosen = ThinkingMode(mode)
    side_a, side_b = ([record for record in records if record.mode == chosen] for records in (records_a, records_b))
    return _difference(side_a, side_b, seed, resamples)


def derange(ids: Iterable[str], seed: int = 0) -> dict[str, str]:
    """Another clip for every clip: a permutation without fixed points; the order of `ids` does not matter.

    Raises:
        UserError: fewer than two ids, or a repeated one.
    """
    left = sorted(ids)
    if len(left) < 2 or len(set(left)) < len(left):
        raise UserError(f"exchange: expected at least two different clips, got {len(set(left))} in {len(left)} rows")
    right = list(left)
    generator = random.Random(seed)
    for last in range(len(right) - 1, 0, -1):  # Sattolo's shuffle: one cycle through all clips
        other = generator.randrange(last)
        right[last], right[other] = right[other], right[last]
    return dict(zip(left, right, strict=True))


def clips_of(manifest: Path | str, split: str) -> list[Clip]:
    """The clips of a split of a manifest, or of "all"."""
    clips = [clip for clip in read_manifest(manifest) if split in ("all", clip.split)]
    if not clips:
        raise UserError(f"{manifest} has no rows with split={split}")
    return clips


def donors_of(clips: Iterable[Clip], exchange: str | None, seed: int | None) -> dict[str, str] | None:
    """Clip -> the clip that one of its channels is exchanged with; None without an exchange."""
    return derange([clip.id for clip in clips], seed or 0) if exchange else None


def with_gold(records: Iterable[Record], clips: Iterable[Clip], taxonomy: Taxonomy) -> list[Record]:
    """The records that are of these clips, scored again with the clips' labels."""
    labels = {clip.id: None if clip.labels is None else list(clip.labels) for clip in clips}
    known = (replace(record, gold=labels[record.id]) for record in records if record.id in labels)
    return rescore(known, taxonomy)


def saved_records(
    out_dir: Path | str, manifest: Path | str, split: str, taxonomy: Taxonomy
) -> tuple[list[Record], dict[str, Any]]:
    """The records of a folder that are of a manifest's clips, scored again with the gold of that manifest.

    Confidences belong to the wheels that the model was asked with; with other wheels there are none.

    Returns:
        The records, and what a `Summary` says of a folder.

    Raises:
        UserError: no records of these clips, or of clips that have changed since.
    """
    path, clips, facts = Path(out_dir) / RECORDS_FILE, clips_of(manifest, split), read_claim(Path(out_dir))
    records = with_gold(read_records(path), clips, taxonomy)
    if not records:
        raise UserError(f"{path}: no records of the {len(clips)} clips of {manifest} with split={split}")
    if facts.get("question"):  # records of `predict.evaluate_model`
        seed = facts["sampling"].get("seed") if isinstance(facts.get("sampling"), dict) else None
        donors = donors_of(clips, facts.get("exchange"), seed if isinstance(seed, int) else 0)
        check_clips(path, records, item_keys(clips, donors=donors))
    if facts.get("wheels", taxonomy.title) != taxonomy.title:
        records = [replace(record, confidence={}) for record in records]
    missing = len(clips) - len({record.id for record in records})
    told = {"weights": facts.get("weights"), "manifest": str(manifest), "split": split, "clips": len(clips)}
    exchange = f"{facts['exchange']} exchanged" if facts.get("exchange") else None
    return records, told | {"missing": missing, "wheels": taxonomy.title, "condition": exchange}


def write_summary(
    out_dir: Path | str,
    manifest: Path | str,
    split: str = "test",
    *,
    seed: int = 0,
    resamples: int = 2000,
    wheels: Path | str | Taxonomy | None = None,
    condition: str | None = None,
) -> Summary:
    """Score the saved records of a folder again and write `summary.json` beside them; no model is needed.

    `wheels` is a taxonomy, or the folder of the official wheels; None takes the built-in ones. `condition` is by
    default the exchange that the records were made with. The others are those of `saved_records` and `summarise`.
    """
    taxonomy = taxonomy_in(out_dir, wheels)
    records, told = saved_records(out_dir, manifest, split, taxonomy)
    told["condition"] = condition or told["condition"]
    summary = summarise(records, seed=seed, resamples=resamples, taxonomy=taxonomy)
    return save_summary(out_dir, summary, told)


def save_summary(out_dir: Path | str, summary: Summary, told: Mapping[str, Any]) -> Summary:
    """Write `summary.json` into a folder of records, with what `saved_records` tells of the folder; returns it."""
    summary.update(told)  # type: ignore[typeddict-item]
    write_atomically(Path(out_dir) / SUMMARY_FILE, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def score_card(model: str | Path, summary: Summary) -> bool:
    """Write scores into the card of a local model, if it has one that training wrote and they are of its weights."""
    card = Path(model) / "README.md"
    if summary["condition"] or not card.is_file() or summary["weights"] != weights_digest(model):
        return False
    where = f"{Path(summary['manifest']).name}, split {summary['split']}, {summary['clips']} clips, {summary['wheels']}"
    where += "" if summary["matching"] == "wheels" else f", words compared by {summary['matching']}"
    modes: Mapping[str, Mapping[str, Any]] = summary["modes"]  # type: ignore[assignment]
    rows = [(mode, *(interval_text(row[name]) for name in SCORE_NAMES)) for mode, row in modes.items()]
    text = with_scores(card.read_text(encoding="utf-8", errors="replace"), where, rows)
    if text is not None:
        write_atomically(card, text)
    return text is not None


def build_table(
    summary: Summary | Mapping[str, Summary],
    comparisons: Mapping[str, Difference] | None = None,
    width: int = WIDE,
) -> "Table":
    """A terminal table (rich): one row per stage and mode, then the paired differences.

    Args:
        summary: one summary, or stage title -> summary.
        comparisons: further paired differences by name.
        width: columns of the terminal; below `WIDE` an interval stands under its mean.
    """
    from rich.table import Table
    from rich.text import Text

    stages: Mapping[str, Any] = {"": summary} if "modes" in summary else summary
    caption = "\n".join(filter(None, (*map(source_text, stages.values()), _counts_text(stages))))
    gap = " " if width >= WIDE else "\n"
    table = Table(
        title="Means over clips, 95 % bootstrap intervals", caption=Text(caption), box=None, padding=(0, 1, 0, 0)
    )
    for name in ("", "clips", "precision", "recall", "F1", "labels", f"well{gap}formed"):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    for stage, entry in stages.items():
        for mode, row in entry["modes"].items():
            cells = [interval_text(row[name], gap=gap) for name in SCORE_NAMES]
            extra = [number_text(row["labels"]["mean"], 2), number_text(row["well_formed"]["mean"])]
            table.add_row(Text(f"{stage} {mode}".strip()), str(row["n"]), *cells, *extra)
    table.add_section()
    own = {
        f"{stage} {name}".strip(): row for stage, entry in stages.items() for name, row in entry["differences"].items()
    }
    for name, row in {**own, **(comparisons or {})}.items():
        table.add_row(
            Text(name), str(row["n"]), *(interval_text(row[score], signed=True, gap=gap) for score in SCORE_NAMES)
        )
    return table


def source_text(summary: Mapping[str, Any]) -> str:
    """What a summary is of: model, manifest, split, number of clips, wheels; "" where it does not say."""
    if "manifest" not in summary:
        return ""
    weights = f" ({summary['weights']})" if summary["weights"] else ""
    lost = f", {summary['missing']} of them without a record" if summary["missing"] else ""
    clips = f"{summary['clips']} clips{lost}" + (f", {summary['condition']}" if summary["condition"] else "")
    where = f"{summary['manifest']}, split {summary['split']}"
    by = "" if summary.get("matching", "wheels") == "wheels" else f"; words compared by {summary['matching']}"
    return f"{summary['model']}{weights} on {where}: {clips}; wheels: {summary['wheels']}{by}"


def _summarise_mode(records: Sequence[Record], taxonomy: Taxonomy, seed: int, resamples: int) -> ModeSummary:
    answered = [record for record in records if record.error is None]

    confidences = {id(record): _confidences(record, taxonomy) for record in answered}
    measures: dict[str, Callable[[Record], float | None]] = {
        **{name: _score(name) for name in SCORE_NAMES},
        "well_formed": lambda record: record.well_formed,
        "labels": lambda record: len(record.labels),
        "categories": lambda record: _mean([len(sectors) for sectors in record.categories.values()]),
        "tokens": lambda record: record.tokens,
        "seconds": lambda record: record.seconds,
        "confidence_correct": lambda record: confidences[id(record)][0],
        "confidence_incorrect": lambda record: confidences[id(record)][1],
    }
    columns = {name: _by_clip(answered, measure).values() for name, measure in measures.items()}
    intervals = bootstraps(columns, seed=seed, resamples=resamples)
    summary: Any = {
        "n_records": len(records),
        "n": intervals["f1"]["n"],
        "n_skipped": sum(record.scores is None for record in answered),
        "n_errors": len(records) - len(answered),
        "n_unparsed": sum(not record.labels for record in answered),
        "n_doubtful": sum(bool(record.labels and record.doubt) for record in answered),
        "n_cut": sum(record.finish_reason != "stop" for record in answered),
        **intervals,
    }
    return summary


def _score(name: str) -> Callable[[Record], float | None]:
    return lambda record: None if record.scores is None else record.scores[name]


def _by_clip(records: Iterable[Record], value: Callable[[Record], float | None]) -> dict[str, float]:
    """Mean of a number over each clip's records that have it; a clip without one is left out."""
    found: dict[str, list[float]] = {}
    for record in records:
        number = value(record)
        if number is not None:
            found.setdefault(record.id, []).append(number)
    return {clip_id: _mean(numbers) for clip_id, numbers in found.items()}


def _confidences(record: Record, taxonomy: Taxonomy) -> tuple[float, float]:
    """Mean confidence in gold and in other sectors, per wheel, then averaged (docs/paper_map.md, calibration)."""
    correct, incorrect = [], []
    for wheel in taxonomy.wheels:
        values = {key: value for key, value in record.confidence.get(wheel.name, {}).items() if value is not None}
        gold = taxonomy.categories(record.gold or (), wheel)
        if gold:
            correct.append(_mean([value for sector, value in values.items() if sector in gold]))
            incorrect.append(_mean([value for sector, value in values.items() if sector not in gold]))
    return _mean(correct), _mean(incorrect)


def _difference(side_a: Iterable[Record], side_b: Iterable[Record], seed: int, resamples: int) -> Difference:
    sides = [[record for record in side if record.error is None] for side in (side_a, side_b)]
    scores = {name: [_by_clip(side, _score(name)) for side in sides] for name in SCORE_NAMES}
    a, b = scores["f1"]
    both = [clip_id for clip_id in a if clip_id in b]
    columns = {name: [scores[name][0][c] - scores[name][1][c] for c in both] for name in SCORE_NAMES}
    intervals = bootstraps(columns, seed=seed, resamples=resamples)
    return {
        "n": len(both),
        "n_unmatched": len(a) + len(b) - 2 * len(both),
        "precision": intervals["precision"],
        "recall": intervals["recall"],
        "f1": intervals["f1"],
    }


def _mean(values: Sequence[float]) -> float:
    """Arithmetic mean of the known values, NaN if there is none."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _counts_text(stages: Mapping[str, Any]) -> str:
    parts = []
    for stage, entry in stages.items():
        for mode, row in entry["modes"].items():
            counts = {"skipped": row["n_skipped"], "errors": row["n_errors"], "without a word": row["n_unparsed"]}
            counts |= {"with unknown words": row.get("n_doubtful", 0), "cut off": row.get("n_cut", 0)}
            parts += [f"{stage} {mode}: {count} {name}".strip() for name, count in counts.items() if count]
    return "; ".join(parts)
