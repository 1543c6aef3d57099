"""Data of the sets: find or make their manifests, and read the gold. Media are never opened here.

Gold comes from the manifests of `mer-r1 prepare` or from plain JSON. A manifest names its set in `meta.dataset`; gold
is in `labels`, or in `meta.sentiment`. A JSON file is named after its set and holds name -> gold, as for the other
`score` commands.

A folder of manifests holds `NAME.jsonl` for a set NAME, or a folder with `NAME.jsonl` in it, or the set's folder under
the release's name (`meld-process`). From the last one the manifest is made and kept there, as `mer-r1 prepare` does. A
missing set is an error: a mean of fewer sets is not a result of this benchmark.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mer_r1.benchmarks.mer_unibench.sets import SETS, BenchmarkSet, named
from mer_r1.corpora.prepare import DATA_SETS, prepare
from mer_r1.data.clip import Clip, manifest_rows
from mer_r1.data.jsonl import read_object
from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.wheels import parse_labels
from mer_r1.errors import UserError, printable

TEST_SPLITS = ("test", None)
"""Splits of a manifest whose rows are scored."""


@dataclass(frozen=True)
class Gold:
    """Gold of one data set.

    Attributes:
        values: clip name -> list of labels, label string, or sentiment value; in the order of the file.
        notes: remarks for readers of the scores.
        manifest: the file that it is from.
    """

    entry: BenchmarkSet
    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    manifest: str = ""


def read_gold(paths: Iterable[Path | str]) -> dict[str, Gold]:
    """Gold from manifests and JSON files, or from folders that hold them under the names of their sets.

    Returns:
        Canonical name -> gold, in the published order.

    Raises:
        UserError: a file cannot be read, is not of a set of this benchmark, or has no gold; or a set is repeated.
    """
    found: dict[str, Gold] = {}
    sources: dict[str, Path] = {}
    for path in _files(paths):
        gold = _gold_of_json(path) if path.suffix.lower() == ".json" else _gold_of_manifest(path)
        name = gold.entry.name
        if name in found:
            raise UserError(
                f"gold of {gold.entry.title} is given twice: {printable(sources[name])} and {printable(path)}"
            )
        found[name], sources[name] = gold, path
    return {name: found[name] for name in SETS if name in found}


def _files(paths: Iterable[Path | str]) -> Iterator[Path]:
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        patterns = ("{}.jsonl", "{}.json", "*/{}.jsonl")
        inside = [file for name in SETS for pattern in patterns for file in sorted(path.glob(pattern.format(name)))]
        if not inside:
            raise UserError(f"{printable(path)}: no gold in it, expected manifests such as {', '.join(SETS)}.jsonl")
        yield from inside


def _gold_of_json(path: Path) -> Gold:
    entry = named(path.stem)
    values = read_object(path)
    if not values:
        raise UserError(f"{printable(path)}: no gold in it")
    for name, value in values.items():
        _require_gold(value, entry, f"{printable(path)}: {name!r:.80}")
    return Gold(entry, values, manifest=str(path))


def _gold_of_manifest(path: Path) -> Gold:
    values: dict[str, Any] = {}
    entry: BenchmarkSet | None = None
    others = 0
    for number, _, clip, problems in manifest_rows(path, allow_absolute=True):
        where = f"{printable(path)}:{number}"
        if clip is None:
            raise UserError(f"{where}: {problems[0]}")
        this = _entry_of(clip, where)
        if entry is not None and this is not entry:
            raise UserError(
                f"{where}: meta.dataset: got {this.name!r} after {entry.name!r}, expected one set a manifest"
            )
        entry = this
        if clip.split not in TEST_SPLITS:
            others += 1
            continue
        values[clip.id] = _value_of(clip, this, where)
    if entry is None or not values:
        raise UserError(
            f"{printable(path)}: no test rows in it" + (f" ({others} rows of other splits)" if others else "")
        )
    return Gold(entry, values, [f"{others} rows of other splits are left out"] if others else [], str(path))


def _entry_of(clip: Clip, where: str) -> BenchmarkSet:
    name = clip.meta.get("dataset")
    if not isinstance(name, str):
        raise UserError(f"{where}: meta.dataset: got {name!r:.40}, expected the name of a set (as `prepare` writes it)")
    try:
        return named(name)
    except UserError as error:
        raise UserError(f"{where}: meta.dataset: {error}") from None


def _value_of(clip: Clip, entry: BenchmarkSet, where: str) -> Any:
    if entry.kind == "sentiment":
        field, value = "meta.sentiment", clip.meta.get("sentiment")
    else:
        field, value = "labels", clip.labels and list(clip.labels)
    _require_gold(value, entry, f"{where}: {field}")
    return value


def _require_gold(value: Any, entry: BenchmarkSet, where: str) -> None:
    if entry.kind == "sentiment":
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{where}: got {value!r:.40}, expected a number (above 0 is positive)")
        return
    if not isinstance(value, str | list):
        raise UserError(f"{where}: got {value!r:.40}, expected a label string or a list of labels")
    try:
        parse_labels(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def find_manifests(
    root: Path, names: Sequence[str], *, allow_pickle: bool = False
) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """The manifests of sets, made where only the release's folder exists.

    Args:
        root: folder of all sets; for a single set, its own folder is accepted, too.
        names: canonical names.
        allow_pickle: read `.npz` labels that hold pickles, see `data.npz`.

    Returns:
        Name -> manifest; and name -> warnings, for manifests made here.

    Raises:
        UserError: the folder is missing; a set is missing (all missing sets are named) or in two places; a manifest
            cannot be made.
    """
    if not root.is_dir():
        raise UserError(f"{printable(root)}: no such folder, expected the data of {', '.join(names)}")
    found, folders, nowhere = {}, {}, []
    for name in names:
        manifest, folder = _existing(root, name), _release_folder(root, name)
        if manifest is not None:
            found[name] = manifest
        elif folder is not None:
            folders[name] = folder
        else:
            nowhere.append(name)
    if nowhere:
        expected = f"{nowhere[0]}.jsonl in it or in a folder in it, or the folder {DATA_SETS[nowhere[0]].folder}"
        raise UserError(
            f"{printable(root)}: no data of {', '.join(SETS[name].title for name in nowhere)} (expected {expected}); "
            "--sets chooses others"
        )
    warnings = {}
    for name, folder in folders.items():
        summary = prepare(name, folder, allow_pickle=allow_pickle)
        found[name] = Path(next(iter(summary["manifests"])))
        warnings[name] = list(summary["warnings"])
    return {name: found[name] for name in names}, warnings


def scored_clips(manifest: Path, *, allow_absolute: bool = False) -> list[Clip]:
    """The clips of a manifest that are scored.

    Raises:
        UserError: it cannot be read.
    """
    return [clip for clip in read_manifest(manifest, allow_absolute=allow_absolute) if clip.split in TEST_SPLITS]


def _existing(root: Path, name: str) -> Path | None:
    places = [path for pattern in (f"{name}.jsonl", f"*/{name}.jsonl") for path in sorted(root.glob(pattern))]
    if len(places) > 1:
        listed = " and ".join(printable(path) for path in places)
        raise UserError(f"{printable(root)}: two manifests of {SETS[name].title}: {listed}")
    return places[0] if places else None


def _release_folder(root: Path, name: str) -> Path | None:
    folder = DATA_SETS[name].folder
    if (root / folder).is_dir():
        return root / folder
    return root if root.resolve().name == folder else None
