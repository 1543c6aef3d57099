"""Read predictions: our records, JSON lines of other systems, JSON, or the reference's `.npz`.

One folder holds the predictions of all sets. For a set NAME it has `NAME.jsonl`, `NAME.json` or `NAME.npz`, or a folder
`NAME/` (with `labels.jsonl` as `mer-r1 extract` writes it, else `records.jsonl` as `mer-r1 evaluate` writes it, else
one file per checkpoint), or the reference's `results-NAME/SYSTEM/checkpoint_...-openset.npz`. Where several checkpoints
lie there, each is read: the reference reports the best of them.

A clip whose prediction failed, or whose text has no labels yet, has no answer here: it never counts as an empty one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mer_r1.benchmarks.mer_unibench.sets import BenchmarkSet, named
from mer_r1.data.jsonl import object_of, read_lines, read_object
from mer_r1.emotions.thinking import TAG, ThinkingMode
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError, printable
from mer_r1.evaluation.labels.extract import label_field, label_string, labels_by_rule, sentiments_by_rule

SentimentFrom = Literal["saved", "rules"]
GIVEN = "given"
"""Mode of predictions without a mode: those of other systems."""
MODES = (*(mode.value for mode in ThinkingMode), GIVEN)
ENDINGS = (".jsonl", ".json", ".npz")
_OPENSET, _SENTIMENT = "-openset", "-openset-sentiment"
_PREFERRED = ("labels.jsonl", "records.jsonl")
_NOT_PREDICTIONS = ("summary.json", "run.json", "claim.json", "scores.json")


@dataclass
class Answers:
    """Answers of one checkpoint in one mode about the clips of a set.

    Attributes:
        values: clip name -> label string, list of labels, or sentiment reply.
        errors: clip name -> why it has no answer.
        unread: names of answers without a list of words that count as empty (`mer-r1 extract` reads such texts).
    """

    values: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Reading:
    """How predictions are read.

    Attributes:
        sentiment: "saved" takes the sentiments in the files, "rules" derives them from labels by the wheels.
        taxonomy: further wheels for "rules".
        allow_pickle: whether an `.npz` with pickles may be read.
        system: folder to choose where the reference's layout has several.
    """

    sentiment: SentimentFrom = "saved"
    taxonomy: Taxonomy | None = None
    allow_pickle: bool = False
    system: str | None = None


def read_predictions(folder: Path | str, entry: BenchmarkSet, reading: Reading) -> dict[str, dict[str, Answers]]:
    """Predictions of one set: checkpoint -> mode -> answers; empty if the folder has none.

    Raises:
        UserError: a file cannot be read, or none of its rows has an answer.
    """
    found = {}
    for name, path in sorted(_checkpoints(Path(folder), entry, reading).items()):
        modes: dict[str, Answers] = {}
        for row in _rows(path, entry, reading):
            answers = modes.setdefault(row.get("mode") or GIVEN, Answers())
            _take(answers, row, entry, reading)
        for mode, answers in modes.items():
            if not answers.values:
                reason = next(iter(answers.errors.values()), "no rows")
                raise UserError(
                    f"{printable(path)}, {mode}: none of {len(answers.errors)} clips has an answer: {reason}"
                )
        found[name] = {mode: modes[mode] for mode in MODES if mode in modes}
    return found


def _take(answers: Answers, row: dict[str, Any], entry: BenchmarkSet, reading: Reading) -> None:
    """Add one row: the last row of a clip counts."""
    name = row["id"]
    answers.values.pop(name, None)
    answers.errors.pop(name, None)
    answers.unread.discard(name)
    try:
        if row.get("error") is not None:
            raise UserError(str(row["error"]))
        if entry.kind == "sentiment":
            answers.values[name] = _sentiment(row, reading)
        else:
            answers.values[name], unread = _labels(row)
            answers.unread |= {name} if unread else set()
    except UserError as error:
        answers.errors[name] = str(error)


def _labels(row: dict[str, Any]) -> tuple[Any, bool]:
    """Labels of a row, and whether they are empty because nothing could read its text."""
    for key in ("openset", "labels"):
        value = row.get(key)
        if isinstance(value, str | list):
            text = row.get("completion")
            unread = not value and "label_source" not in row and isinstance(text, str) and labels_by_rule(text) is None
            return label_field(value), unread
    text = next((row[key] for key in ("completion", "text") if isinstance(row.get(key), str)), None)
    by_rule = None if text is None else labels_by_rule(text)
    if by_rule is None:
        raise UserError("no labels, only a text: `mer-r1 extract` reads it")
    return by_rule.value, False


def _sentiment(row: dict[str, Any], reading: Reading) -> str:
    if reading.sentiment == "saved":
        if isinstance(row.get("sentiment"), str):
            return str(row["sentiment"])
        raise UserError("no sentiment: `mer-r1 extract --kind sentiment` adds it, --sentiment rules does without")
    labels, _ = _labels(row)
    found = sentiments_by_rule([labels if isinstance(labels, str) else label_string(labels)], reading.taxonomy)[0]
    if found.value is None:
        raise UserError(f"sentiment: {found.error}")
    return found.value


def _checkpoints(folder: Path, entry: BenchmarkSet, reading: Reading) -> dict[str, Path]:
    """Checkpoint -> its file."""
    if not folder.is_dir():
        raise UserError(f"{printable(folder)}: no such folder, expected the predictions")
    candidates = [path for path in sorted(folder.iterdir()) if _is_of(path, entry)]
    if len(candidates) > 1:
        listed = ", ".join(printable(path.name) for path in candidates)
        raise UserError(f"{printable(folder)}: predictions of {entry.title} in several places ({listed}), expected one")
    if not candidates:
        return {}
    place = candidates[0]
    if place.is_file():
        return {place.stem: place}
    for name in _PREFERRED:
        if (place / name).is_file():
            return {name.partition(".")[0]: place / name}
    return _files_of(_system_folder(place, reading.system), entry, reading)


def _is_of(path: Path, entry: BenchmarkSet) -> bool:
    """Whether a file or folder of the predictions belongs to a set, by its name."""
    if path.name.startswith(".") or (path.is_file() and path.suffix.lower() not in ENDINGS):
        return False
    stem = path.stem if path.is_file() else path.name
    try:
        return named(stem.lower().removeprefix("results-")) is entry
    except UserError:
        return False


def _system_folder(place: Path, system: str | None) -> Path:
    """The folder with the checkpoints: the place itself, or the one of a system in it."""
    inside = sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    if any(path.suffix.lower() in ENDINGS and path.name not in _NOT_PREDICTIONS for path in place.iterdir()):
        return place
    if system is not None:
        inside = [path for path in inside if path.name == system]
    if len(inside) != 1:
        listed = ", ".join(printable(path.name) for path in inside) or "none"
        wanted = "one system" if system is None else f"the system {system}"
        raise UserError(f"{printable(place)}: expected predictions of {wanted}, found {listed}; --system chooses")
    return inside[0]


def _files_of(folder: Path, entry: BenchmarkSet, reading: Reading) -> dict[str, Path]:
    """The files of a folder by checkpoint; of the reference's three files, the one that this kind of set needs."""
    stems: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS and path.name not in _NOT_PREDICTIONS and not path.name.startswith("."):
            ending = next((end for end in (_SENTIMENT, _OPENSET) if path.stem.endswith(end)), "")
            stems.setdefault(path.stem.removesuffix(ending), {})[ending] = path
    order = (_OPENSET, "", _SENTIMENT)
    if entry.kind == "sentiment" and reading.sentiment == "saved":
        order = (_SENTIMENT, "", _OPENSET)
    return {stem: next(files[ending] for ending in order if ending in files) for stem, files in stems.items()}


def _rows(path: Path, entry: BenchmarkSet, reading: Reading) -> Iterator[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from read_lines(path, _row)
        return
    content = read_object(path) if suffix == ".json" else _npz_object(path, reading.allow_pickle)
    key = _key_of_texts(path, entry, reading)
    for name, value in content.items():
        if value is not None and not isinstance(value, str | list):
            raise UserError(f"{printable(path)}: {name!r:.80}: expected a text or a list of labels, got {value!r:.60}")
        raw = isinstance(value, str) and TAG.search(value)
        yield {"id": str(name), "completion" if raw else key: "" if value is None else value}


def _key_of_texts(path: Path, entry: BenchmarkSet, reading: Reading) -> str:
    # What the texts of a file are that has one for each name, unless they hold tags.
    is_npz = path.suffix.lower() == ".npz"
    if is_npz and not path.stem.endswith((_OPENSET, _SENTIMENT)):
        return "completion"
    sentiments = entry.kind == "sentiment" and reading.sentiment == "saved"
    return "sentiment" if sentiments and not (is_npz and path.stem.endswith(_OPENSET)) else "openset"


def _npz_object(path: Path, allow_pickle: bool) -> dict[str, Any]:
    """The reference's result files: `filenames` and `fileitems` side by side, or `name2reason`."""
    from mer_r1.data.npz import npz_keys, read_npz

    keys = npz_keys(path)
    if "filenames" not in keys:
        content = read_npz(path, "name2reason", allow_pickle=allow_pickle)
        if not isinstance(content, dict):
            raise UserError(f"{printable(path)}: name2reason: expected name -> text, got {type(content).__name__}")
        return content
    names, items = (read_npz(path, key, allow_pickle=allow_pickle) for key in ("filenames", "fileitems"))
    if not isinstance(names, list) or not isinstance(items, list) or len(names) != len(items):
        raise UserError(f"{printable(path)}: filenames and fileitems: expected two lists of the same length")
    return dict(zip(names, items, strict=True))


def _row(line: bytes) -> dict[str, Any]:
    row = object_of(line, "a prediction")
    name = row.get("id", row.get("name"))
    if not isinstance(name, str):
        raise UserError(f"expected an id or name as text; the fields are {', '.join(map(str, row)) or 'none'}")
    if row.get("mode") not in (*MODES, None):
        raise UserError(f"mode of {name!r:.80}: expected 'slow', 'fast' or none, got {row['mode']!r:.40}")
    return {**row, "id": name}
