"""What a study runs beside the public commands, each as a process: ``python -m mer_r1.lab.study.runs.worker KIND JSON``.

Kinds: `scenes` writes a corpus with given split sizes, `features` sends every clip through the frozen towers once,
`gradients` measures how the two objectives' gradients lie to each other (`gradients`).
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from mer_r1.errors import UserError


def main(kind: str, told: str) -> None:
    """Do one job; an expected error is one line and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        JOBS[kind](json.loads(told))
    except UserError as error:
        sys.stderr.write(f"mer-r1: {error}\n")
        sys.exit(2)


def write_study_scenes(told: dict[str, Any]) -> None:
    """A corpus whose splits have exactly these sizes.

    Args:
        told: `out` (folder) and `splits` (split -> clips).
    """
    from mer_r1.lab.scenes import write_scenes

    write_scenes(told["out"], sum(told["splits"].values()), seed=0, splits=told["splits"])


def build_features(told: dict[str, Any]) -> None:
    """The tower outputs of the clips that a study uses, kept beside their manifests.

    Args:
        told: `model` (folder) and `parts`: manifest, split and slice each.
    """
    from mer_r1.lab.study.runs.gradients import chosen_clips
    from mer_r1.model.features import FeatureCache
    from mer_r1.model.omni import load

    omni = load(told["model"])
    for manifest, split, clips in told["parts"]:
        FeatureCache(omni, Path(manifest).parent / "features").build(chosen_clips(manifest, split, clips))


def measure_gradients(told: dict[str, Any]) -> None:
    """See `gradients.measure`; writes `gradients.json` into the folder `out`."""
    from mer_r1.lab.study.runs.gradients import measure

    out = Path(told.pop("out"))
    found = measure(**told)
    (out / "gradients.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


JOBS = {"scenes": write_study_scenes, "features": build_features, "gradients": measure_gradients}

if __name__ == "__main__":
    main(*sys.argv[1:])
