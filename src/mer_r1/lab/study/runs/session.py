"""What a study's folder was started with, kept so that it can be reported on without saying it again.

Several studies may share a folder as long as they share its recipe, scenes and seeds' meaning; the file lists them all.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mer_r1.errors import UserError
from mer_r1.lab.study.runs.jobs import Job, Options, plan
from mer_r1.lab.study.runs.variants import STUDIES, chosen_studies

SESSION_FILE, RECIPE_FILE = "study.json", "recipe.yaml"
PATHS = ("scenes", "exam", "base", "recipe")
FIXED = ("scenes", "exam", "base", "clips", "trial")
"""What may not change within a folder: everything in it is trained and asked on the same."""


def to_options(out: Path, told: Mapping[str, Any]) -> Options:
    """The options of a command line.

    Args:
        out: folder of the study.
        told: the command's values by name; `recipe` None is the tiny one, `clips` "TRAIN,VAL,TEST".

    Raises:
        UserError: clips that are not three numbers, or a path that is not there.
    """
    values: dict[str, Any] = {key: Path(v) if v and key in PATHS else v for key, v in told.items()}
    try:
        train, val, test = (int(part) for part in str(values.pop("clips")).split(","))
    except ValueError as error:
        raise UserError(f"--clips: expected TRAIN,VAL,TEST such as 3600,300,1000; got {told['clips']!r}") from error
    for name in ("scenes", "exam", "base"):
        if values.get(name) and not values[name].exists():
            raise UserError(f"--{name}: there is no {values[name]}")
    values["trial"] = bool(values.get("trial"))
    values["recipe"] = values.get("recipe") or _recipe(out)
    for name in ("settings", "sft_settings"):
        values[name] = tuple(values.get(name) or ())
    return Options(out=out, clips=(train, val, test), **values)


def keep_session(name: str, out: Path, told: Mapping[str, Any], command: str) -> None:
    """Add a study to its folder's file.

    Args:
        name: key of `STUDIES`, or "all".
        out: folder of the study.
        told: the command's values.
        command: the whole line.

    Raises:
        UserError: the folder was started with other scenes or another base.
    """
    values = {key: str(value) if isinstance(value, Path) else value for key, value in told.items()}
    kept = _read(out) if (out / SESSION_FILE).is_file() else {"studies": {}}
    for key in FIXED:
        if kept["studies"] and any(
            (entry["told"].get(key) or None) != (values.get(key) or None) for entry in kept["studies"].values()
        ):
            raise UserError(f"{out} was started with another {key}: choose another --out")
    kept["studies"][name] = {"told": {**values, "recipe": None}, "command": command}
    out.mkdir(parents=True, exist_ok=True)
    _keep_recipe(out, told.get("recipe"))
    unfinished = out / f"{SESSION_FILE}.partial"
    unfinished.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(out / SESSION_FILE)


def read_session(out: Path) -> tuple[dict[str, str], list[Job]]:
    """The studies of a folder, each with the command line that asked for it, and all their jobs.

    Args:
        out: folder of a study.

    Raises:
        UserError: it is none.
    """
    kept = _read(out)
    found: dict[str, Job] = {}
    commands: dict[str, str] = {}
    for name, entry in kept["studies"].items():
        chosen = chosen_studies(name)
        commands |= {study: entry["command"] for study in chosen if study == name or study not in commands}
        found |= {job.name: job for job in plan(chosen, to_options(out, entry["told"]))}
    return {study: commands[study] for study in STUDIES if study in commands}, list(found.values())


def _recipe(out: Path) -> Path:
    # The one that the folder was started with, else the tiny one.
    if (out / RECIPE_FILE).is_file():
        return out / RECIPE_FILE
    from mer_r1.training.recipe_info import shipped_recipes

    return shipped_recipes()["tiny"]


def _keep_recipe(out: Path, given: Path | None) -> None:
    # A recipe that is edited while a study rests must not change the study.
    kept = out / RECIPE_FILE
    text = Path(given or _recipe(out)).read_text(encoding="utf-8")
    if kept.is_file() and kept.read_text(encoding="utf-8") != text:
        raise UserError(f"{given} differs from {kept}, with which {out} was started: choose another --out")
    kept.write_text(text, encoding="utf-8")


def _read(out: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((out / SESSION_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{out} is no study's folder: {error}; start one with `mer-r1 study NAME --out {out}`"
        ) from error
