"""Where the data of each set are: a manifest that is there, or one made from the release's folder.

One folder holds everything. For a set NAME it has `NAME.jsonl`, or a folder with `NAME.jsonl` in it, or the set's
folder under the release's name (`meld-process`), from which the manifest is made and left there, as `mer-r1 prepare`
does. A set that is nowhere is an error: a mean of fewer sets is no result of this benchmark.
"""

from collections.abc import Sequence
from pathlib import Path

from mer_r1.benchmarks.mer_unibench.gold import TEST_SPLITS
from mer_r1.benchmarks.mer_unibench.sets import SETS
from mer_r1.corpora.prepare import DATA_SETS, prepare
from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest
from mer_r1.errors import UserError, shown


def find_manifests(
    root: Path, names: Sequence[str], *, allow_pickle: bool = False
) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """The manifests of sets, made where there is only the release's folder.

    Args:
        root: holds them all; for a single set, its own folder will do.
        names: canonical names.
        allow_pickle: read `.npz` labels that hold pickles, see `corpora.pickles`.

    Returns:
        Name -> manifest; and name -> what was not as it should be, for those that were made.

    Raises:
        UserError: no such folder; a set is nowhere or in two places (all that are nowhere are named); a manifest
            cannot be made.
    """
    if not root.is_dir():
        raise UserError(f"{shown(root)}: no such folder, expected the data of {', '.join(names)}")
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
            f"{shown(root)}: no data of {', '.join(SETS[name].title for name in nowhere)} (expected {expected}); "
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

    Args:
        manifest: of `mer-r1 prepare`.
        allow_absolute: whether media paths may be absolute.

    Raises:
        UserError: it cannot be read.
    """
    return [clip for clip in read_manifest(manifest, allow_absolute=allow_absolute) if clip.split in TEST_SPLITS]


def _existing(root: Path, name: str) -> Path | None:
    places = [path for pattern in (f"{name}.jsonl", f"*/{name}.jsonl") for path in sorted(root.glob(pattern))]
    if len(places) > 1:
        listed = " and ".join(shown(path) for path in places)
        raise UserError(f"{shown(root)}: the manifest of {SETS[name].title} is there twice: {listed}")
    return places[0] if places else None


def _release_folder(root: Path, name: str) -> Path | None:
    folder = DATA_SETS[name].folder
    if (root / folder).is_dir():
        return root / folder
    return root if root.resolve().name == folder else None
