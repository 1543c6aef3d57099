"""Records of predictions: one JSON line per clip, mode and draw, so that no model has to be asked twice.

A record holds the raw completion, what was parsed from it, its scores, and what produced it. Evaluation appends records
while it runs and may be killed at any moment. So a half-written last line is dropped with a warning, and of several
records of one clip, mode and draw the last one counts.

`rescore` starts from the raw completion: no model is needed, and a corrected parser or other emotion wheels apply to
everything that was ever saved.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from subprocess import DEVNULL, CalledProcessError, check_output
from typing import Any, NamedTuple, TextIO, TypeVar

from mer_r1.data.claim import check_items, claim, read_claim
from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import append_line, object_of, read_lines, repair_end
from mer_r1.emotions.answers import answer_words, rule_doubt
from mer_r1.emotions.metrics import label_scores
from mer_r1.emotions.set_task import SetTask
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.two_answers import FORMS, ONCE, read_completion
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError

logger = logging.getLogger(__name__)

RECORDS_FILE = "records.jsonl"
"""Name of the file of records in a folder."""
FORMAT = 1
"""Version of the records; raise it when the same question about a clip gives another record."""
SCORE_NAMES = ("precision", "recall", "f1")
_MODES = tuple(mode.value for mode in ThinkingMode)


@dataclass(frozen=True)
class Record:
    """One completion for one clip in one mode, with everything needed to score and to explain it.

    Attributes:
        id: the clip's id in its manifest.
        mode: "slow" or "fast".
        completion: the raw completion, prefilled part included.
        reasoning: text of its think block; "" where there is none.
        labels: emotion words of its answer.
        gold: annotated words; None where the clip has none, or could not be read.
        well_formed: whether the completion has exactly the required form.
        scores: `precision`, `recall`, `f1`, each in [0, 1]; None where nothing can be scored.
        categories: wheel -> predicted sectors.
        confidence: wheel -> sector -> probability at the answer's words, in [0, 1]; empty where the answer has none.
        seconds: wall time of this completion.
        tokens: generated tokens.
        model: folder or name of the model.
        seed: random seed for sampling.
        versions: package -> version.
        commit: commit of the source tree; None if unknown.
        error: why the clip has no completion; None if it has one.
        without: unreadable files that were left out of the question: "video", "audio".
        sureness: answer confidence, the geometric mean of the token probabilities, in [0, 1]; None if unknown.
        form: form of the completion, "once" (think, answer) or "twice" (answer, think, answer; see `two_answers`).
        draw: number of this answer, from 0, among several sampled ones to the same question.
        doubt: why the labels are doubtful: the answer cannot be read, or no wheel knows a word of it; None if sound.
        finish_reason: "stop"; "length" where the answer was cut off at the longest length.
        item: digests of the clip's media and words when it was asked about (`claim.item_keys`); "" if unknown.
        notes: what was not read of the clip, or looks odd (`Media.notes`).
    """

    id: str
    mode: str
    completion: str
    reasoning: str = ""
    labels: list[str] = field(default_factory=list)
    gold: list[str] | None = None
    well_formed: bool = False
    scores: dict[str, float] | None = None
    categories: dict[str, list[str]] = field(default_factory=dict)
    confidence: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: int = 0
    model: str = ""
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    error: str | None = None
    without: list[str] = field(default_factory=list)
    sureness: float | None = None
    form: str = ONCE
    draw: int = 0
    doubt: str | None = None
    finish_reason: str = "stop"
    item: str = ""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse a mode that does not exist."""
        if self.mode not in _MODES:
            raise UserError(f"mode of record {self.id!r:.80}: expected 'slow' or 'fast', got {self.mode!r:.40}")

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON object; NaN is None."""
        return dict(without_nan(asdict(self)))

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Record":
        """The record of a JSON object; unknown fields are ignored.

        Raises:
            UserError: `id`, `mode` or `completion` is missing, or a field has the wrong type.
        """
        missing = [name for name in ("id", "mode", "completion") if name not in row]
        if missing:
            raise UserError(f"a record without {', '.join(missing)}; found {', '.join(map(str, row)) or 'nothing'}")
        known = {name: row[name] for name in _EXPECTED if name in row}
        for name, value in known.items():
            expected, is_right = _EXPECTED[name]
            if not is_right(value):
                raise UserError(f"{name} of record {row['id']!r:.80}: expected {expected}, got {value!r:.80}")
        return cls(**known)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_scores(value: object) -> bool:
    return isinstance(value, dict) and all(_is_number(value.get(n)) and 0 <= value[n] <= 1 for n in SCORE_NAMES)


def _is_confidence(value: object) -> bool:
    wheels = list(value.values()) if isinstance(value, dict) else [None]
    return all(isinstance(wheel, dict) and all(p is None or _is_number(p) for p in wheel.values()) for wheel in wheels)


_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("id", "mode", "completion", "reasoning", "model", "finish_reason", "item"), ("a text", _is_text)),
    **dict.fromkeys(("commit", "error", "doubt"), ("a text or null", lambda value: value is None or _is_text(value))),
    **dict.fromkeys(
        ("tokens", "seed", "draw"), ("a whole number", lambda value: _is_number(value) and isinstance(value, int))
    ),
    **dict.fromkeys(("labels", "without", "notes"), ("a list of words", _is_words)),
    "gold": ("a list of words or null", lambda value: value is None or _is_words(value)),
    "well_formed": ("true or false", lambda value: isinstance(value, bool)),
    "scores": ("precision, recall and f1 within 0 and 1, or null", lambda value: value is None or _is_scores(value)),
    "categories": ("wheel -> sectors", lambda value: isinstance(value, dict) and all(map(_is_words, value.values()))),
    "confidence": ("wheel -> sector -> probability", _is_confidence),
    "seconds": ("a number", _is_number),
    "sureness": ("a number or null", lambda value: value is None or _is_number(value)),
    "form": (" or ".join(FORMS), lambda value: value in FORMS),
    "versions": ("package -> version", lambda value: isinstance(value, dict)),
}


def without_nan(value: Any) -> Any:
    """A JSON-like value with None for NaN and infinities, which JSON cannot express."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


class State(NamedTuple):
    """What resuming needs to know of a record; the whole record takes far more memory."""

    id: str
    mode: str
    draw: int
    error: str | None
    item: str


Part = TypeVar("Part", Record, State)


def read_records(path: Path | str) -> list[Record]:
    """Records of a file, one per clip, mode and draw, in the order in which they first appear.

    Args:
        path: JSON lines. Of several records of one clip, mode and draw the last one counts. A half-written last line is
            dropped with a warning.

    Raises:
        UserError: the file is missing, or a line other than the last is not a record.
    """
    return _latest(Path(path), lambda record: record)


def _latest(path: Path, part: Callable[[Record], Part]) -> list[Part]:
    latest: dict[tuple[str, str, int], Part] = {}
    count = 0
    for record in read_lines(path, _parse_line):
        latest[record.id, record.mode, record.draw] = part(record)
        count += 1
    if count > len(latest):
        logger.warning("%s: %d records were predicted again; the last of each counts", path, count - len(latest))
    return list(latest.values())


def append_record(file: TextIO, record: Record) -> None:
    """Append one record, see `append_line`."""
    append_line(file, json.dumps(record.to_dict(), allow_nan=False))


def kept_states(path: Path, items: Mapping[str, str]) -> list[State]:
    """As `kept_records`, the states only."""
    return _kept(path, items, lambda one: State(one.id, one.mode, one.draw, one.error, one.item))


def kept_records(path: Path, items: Mapping[str, str]) -> list[Record]:
    """The records of a file that is to be continued or does not exist.

    A half-written last line is cut off, so that the next record starts on a new line.

    Raises:
        UserError: a line other than the last is no record, or a record is of a clip that has changed since; see
            `claim.item_keys` for `items`.
    """
    return _kept(path, items, lambda record: record)


def _kept(path: Path, items: Mapping[str, str], part: Callable[[Record], Part]) -> list[Part]:
    if not path.exists():
        return []
    records = _latest(path, part)
    repair_end(path, _parse_line)
    check_clips(path, records, items)
    return records


def check_clips(path: Path, records: Iterable[Record | State], items: Mapping[str, str]) -> None:
    """Refuse answers about clips that have changed since; see `claim.check_items`."""
    check_items(path, ((record.id, record.item) for record in records if record.error is None), items)


def states_of(records: Iterable[Record | State], draw: int = 0) -> dict[tuple[str, str], str | None]:
    """Clip id and mode -> error, None for an answer."""
    return {(record.id, record.mode): record.error for record in records if record.draw == draw}


def is_news(record: Record, known: Mapping[tuple[str, str], str | None]) -> bool:
    """Whether a record says more than one of `states_of`: an answer, or another error."""
    return record.error is None or record.error != known.get((record.id, record.mode))


def claim_records(folder: Path, taxonomy: Taxonomy, settings: Mapping[str, Any], results: Sequence[str]) -> None:
    """Claim a folder of records; `settings` are those of the model, the other arguments those of `claim.claim`."""
    claim(folder, {"format": FORMAT, "wheels": taxonomy.title, **settings}, results)


def taxonomy_in(folder: Path | str, wheels: Path | str | Taxonomy | None = None) -> Taxonomy:
    """The categories of a folder's records: of the task that the folder is claimed for, of emotions without one.

    A taxonomy in place of the wheels is returned as it is.
    """
    if isinstance(wheels, Taxonomy):
        return wheels
    return SetTask(**(read_claim(Path(folder)).get("task") or {})).taxonomy(wheels)


def rescore(records: Iterable[Record], taxonomy: Taxonomy, level: int = 1) -> list[Record]:
    """Score saved completions again: parse, map to the wheels and compare with the gold words. No model is needed.

    Args:
        records: saved records; those with an error stay as they are.
        taxonomy: wheels and words, and how words are compared.
        level: ring of the wheels, 1 or 2.
    """
    return [record if record.error is not None else _rescored(record, taxonomy, level) for record in records]


def _rescored(record: Record, taxonomy: Taxonomy, level: int) -> Record:
    parsed = read_completion(record.completion, record.mode, record.form)
    read = parsed.labels if taxonomy.task else answer_words(parsed.answer)
    labels = read or ()
    unread = read is None or not (labels or "answer>" in record.completion.lower())
    scores = None if record.gold is None else label_scores(record.gold, labels, taxonomy, level)
    return replace(
        record,
        reasoning=parsed.reasoning,
        labels=list(labels),
        doubt="no answer that can be read as words" if unread else rule_doubt(labels, taxonomy),
        well_formed=parsed.well_formed,
        scores=None if scores is None else scores._asdict(),
        categories={w.name: sorted(taxonomy.categories(labels, w, level)) for w in taxonomy.wheels},
    )


def record_of_answer(
    clip: Clip,
    mode: ThinkingMode,
    completion: str,
    taxonomy: Taxonomy,
    source: Mapping[str, Any],
    form: str = ONCE,
    **measured: Any,
) -> Record:
    """The record of a completion: parsed, mapped to the wheels, scored against the clip's labels.

    The completion is the raw text, prefilled part included. `source` holds the fields of `provenance`, `measured`
    further ones: `seconds`, `tokens`, `sureness`, `confidence`, `notes`.
    """
    record = Record(clip.id, mode.value, completion, gold=_gold(clip), form=form, **measured, **source)
    return _rescored(record, taxonomy, level=1)


def record_of_error(clip: Clip, mode: ThinkingMode, error: str, source: Mapping[str, Any]) -> Record:
    """The record of a clip without a completion, with the reason."""
    return Record(clip.id, mode.value, "", gold=_gold(clip), error=error, **source)


def provenance(model: str, seed: int | None, versions: Mapping[str, str]) -> dict[str, Any]:
    """Where a record comes from: its fields `model`, `seed` (0 if None), `versions` and `commit`."""
    return {"model": model, "seed": seed or 0, "versions": dict(versions), "commit": commit()}


def _gold(clip: Clip) -> list[str] | None:
    return list(clip.labels) if clip.labels is not None else None


def _parse_line(line: bytes) -> Record:
    return Record.from_dict(object_of(line, "a record"))


@lru_cache
def versions(*names: str) -> dict[str, str]:
    """Versions of the installed ones among these packages; by default of all that decide a result."""
    found = {}
    for name in names or ("mer-r1", "torch", "transformers", "trl"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Commit of the source tree this runs from; None outside a git checkout."""
    try:
        folder = Path(__file__).resolve().parent
        return check_output(["git", "-C", str(folder), "rev-parse", "HEAD"], text=True, stderr=DEVNULL).strip()
    except (OSError, CalledProcessError):
        return None
