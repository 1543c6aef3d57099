"""The options that a study's folder was started with, saved so that `mer-r1 study report` needs only the folder.

Several studies may share a folder if they share recipe, clips and base; the session file lists them all.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mer_r1.data.claim import check_claim, digest, item_keys
from mer_r1.data.jsonl import read_object, write_atomically
from mer_r1.data.manifest import read_manifest
from mer_r1.errors import UserError
from mer_r1.lab.study.runs.jobs import CLIPS, Options, StudyJob, plan
from mer_r1.lab.study.runs.variants import STUDIES, chosen_studies

SESSION_FILE, RECIPE_FILE = "study.json", "recipe.yaml"
PATHS = ("scenes", "recipe")
FIXED = ("scenes", "base", "num_clips", "num_answers", "trial")
"""Options that all studies of a folder share."""


def to_options(out: Path, given: Mapping[str, Any]) -> Options:
    """The options of a command line.

    Args:
        out: folder of the study.
        given: the command's values by name; `recipe` None is the tiny one, `num_clips` "TRAIN,VAL,TEST".

    Raises:
        UserError: if `num_clips` is not three numbers, or the manifest does not exist.
    """
    values: dict[str, Any] = {key: Path(v) if v and key in PATHS else v for key, v in given.items()}
    try:
        train, val, test = (int(part) for part in str(values.pop("num_clips")).split(","))
    except ValueError as error:
        told = f"got {given['num_clips']!r}"
        raise UserError(f"--num-clips: expected TRAIN,VAL,TEST such as 1480,300,400; {told}") from error
    if values.get("scenes") and not values["scenes"].exists():
        raise UserError(f"--scenes: {values['scenes']} does not exist")
    if values.get("scenes") and (train, val, test) != CLIPS:
        raise UserError("--num-clips: no clips are made, --scenes names a manifest of clips")
    values["recipe"] = values.get("recipe") or _recipe(out)
    for name in ("settings", "sft_settings"):
        values[name] = tuple(values.get(name) or ())
    return Options(out=out, num_clips=(train, val, test), **values)


def keep_session(name: str, out: Path, given: Mapping[str, Any], command: str) -> None:
    """Add a study (a key of `STUDIES`, or "all") with its command line and values to its folder's session file.

    Raises:
        UserError: if the folder was started with a different value of one of `FIXED`, another recipe, or
            other media under the names in its manifest.
    """
    values = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    kept = _read(out) if (out / SESSION_FILE).is_file() else {"studies": {}}
    media = digest(json.dumps(item_keys(read_manifest(values["scenes"])))) if values.get("scenes") else None
    for entry in kept["studies"].values():
        before, now = ({key: told.get(key) or None for key in FIXED} for told in (entry["told"], values))
        check_claim(out, before, now, "choose another --out")
        if entry.get("media"):
            check_claim(out, {"media": entry["media"]}, {"media": media}, "choose another --out")
    kept["studies"][name] = {"told": {**values, "recipe": None}, "command": command, "media": media}
    out.mkdir(parents=True, exist_ok=True)
    _keep_recipe(out, given.get("recipe"))
    write_atomically(out / SESSION_FILE, json.dumps(kept, indent=2) + "\n")


def read_session(out: Path) -> tuple[dict[str, str], list[StudyJob]]:
    """The studies of a folder, each with its command line, and all their jobs.

    Raises:
        UserError: if the folder holds no study.
    """
    kept = _read(out)
    found: dict[str, StudyJob] = {}
    commands: dict[str, str] = {}
    for name, entry in kept["studies"].items():
        chosen = chosen_studies(name)
        commands |= {study: entry["command"] for study in chosen if study == name or study not in commands}
        found |= {job.name: job for job in plan(chosen, to_options(out, entry["told"]))}
    return {study: commands[study] for study in STUDIES if study in commands}, list(found.values())


def _recipe(out: Path) -> Path:
    # The recipe that the folder was started with, else the tiny one.
    if (out / RECIPE_FILE).is_file():
        return out / RECIPE_FILE
    from mer_r1.training.recipe_info import shipped_recipes

    return shipped_recipes()["tiny"]


def _keep_recipe(out: Path, given: Path | None) -> None:
    # A copy: editing the recipe must not change a study that has started.
    kept = out / RECIPE_FILE
    text = Path(given or _recipe(out)).read_text(encoding="utf-8")
    if kept.is_file() and kept.read_text(encoding="utf-8") != text:
        raise UserError(f"{given} differs from {kept}, with which {out} was started: choose another --out")
    write_atomically(kept, text)


def _read(out: Path) -> dict[str, Any]:
    try:
        kept = read_object(out / SESSION_FILE)
    except UserError as error:
        start = f"start with `mer-r1 study NAME --out {out}`"
        raise UserError(f"{out} is not a study's folder: {error}; {start}") from error
    if any("num_answers" not in entry["told"] for entry in kept["studies"].values()):
        raise UserError(f"{out} was started by an earlier version: choose another --out")
    return kept
