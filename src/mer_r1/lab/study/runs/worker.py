"""Jobs of a study that are not public commands: ``python -m mer_r1.lab.study.runs.worker KIND JSON``.

Kinds: `scenes` writes a corpus with given split sizes, `features` caches the frozen towers' outputs of its clips,
`gradients` measures the angles between the objectives' gradients (module `gradients`).
"""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mer_r1.data.jsonl import write_atomically
from mer_r1.errors import UserError


def main(kind: str, arguments: str) -> None:
    """Run one job; an expected error prints one line and exits with status 2."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        JOBS[kind](**json.loads(arguments))
    except UserError as error:
        sys.stderr.write(f"mer-r1: {error}\n")
        sys.exit(2)


def write_study_scenes(out: str, splits: dict[str, int]) -> None:
    """Write a corpus into the folder `out`; `splits` gives the exact number of clips per split."""
    from mer_r1.lab.scenes import write_scenes

    write_scenes(out, sum(splits.values()), seed=0, splits=splits)


def build_features(model: str, manifest: str, parts: list[tuple[str, str]]) -> None:
    """Cache the tower outputs of the clips (split, slice) that a study uses, beside their manifest."""
    from mer_r1.model.features import FeatureCache
    from mer_r1.model.omni import load
    from mer_r1.training.recipe_files import select_clips
    from mer_r1.training.recipes import DataFields
    from mer_r1.training.stage import features_folder

    omni = load(model)
    for split, clips in parts:
        data = DataFields(manifest=manifest, split=split, clips=clips)
        FeatureCache(omni, features_folder(data)).build(select_clips(data))


def measure_gradients(out: str, **arguments: Any) -> None:
    """Write the result of `gradients.measure` to `gradients.json` in the folder `out`."""
    from mer_r1.lab.study.runs.gradients import measure

    found = measure(**arguments)
    write_atomically(Path(out) / "gradients.json", json.dumps(found, indent=2) + "\n")


JOBS: dict[str, Callable[..., None]] = {
    "scenes": write_study_scenes,
    "features": build_features,
    "gradients": measure_gradients,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
