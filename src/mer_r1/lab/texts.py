"""Made data sets of texts, whose answers are sets of words: told scenes (emotions) and described dishes (allergens).

A row has a text instead of media, in the manifest's `subtitle`. Beside the manifest, `task.json` holds the task
(`emotions.set_task`), so that anybody can put a question of their own in its place.

- `scenes`: a scene of the built-in corpus told in words (`lab.scenes.story`) instead of rendered; the labels are
  emotion words.
- `allergens`: a dish of some ingredients, of which one may be left out or replaced. The allergens are those of the
  ingredients that remain: known for sure, several at once, and found step by step. The texts for the cold start imitate
  an annotator who overlooks an ingredient now and then; the broad direct answers miss some allergens and add others.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import read_object, write_atomically
from mer_r1.data.manifest import write_manifest
from mer_r1.lab.scenes.story.sentences import Split, sample_sentence
from mer_r1.lab.scenes.story.texts import write_texts
from mer_r1.lab.scenes.story.world import pick, sample_scene

MANIFEST, TASK_FILE = "manifest.jsonl", "task.json"
SHARES: Mapping[Split, float] = {"train": 0.7, "val": 0.1, "test": 0.2}
TOLD_QUESTION = "{text} Which emotions does the person feel?"
OVERLOOKED = 0.15
"""Chance that the reasoning of the cold start leaves an ingredient out, and its answer the allergens with it."""
CHANGED = 0.6
"""Share of the dishes of which an ingredient is left out or replaced."""
BROAD_KEEP, BROAD_ADD = 0.85, 0.5
"""Chance that a direct answer holds an allergen of the dish, and that it adds another one."""
_KEY = 5_000_011


def write_allergens(out: Path, rows: int, seed: int = 0) -> None:
    """Write described dishes and their task; see `_write` for the arguments."""
    world = _dishes()
    _write(out, rows, seed, _dish, {"question": world["question"], "categories": world["categories"]})


def write_told_scenes(out: Path, rows: int, seed: int = 0) -> None:
    """Write told scenes and their task, emotions; see `_write` for the arguments."""
    _write(out, rows, seed, _told_scene, {"question": TOLD_QUESTION})


WRITERS = {"allergens": write_allergens, "scenes": write_told_scenes}
"""Name of a made data set -> what writes it."""


def _write(out: Path, rows: int, seed: int, draw: Any, task: Mapping[str, Any]) -> None:
    """Write `manifest.jsonl` and `task.json`.

    Args:
        out: folder, created if absent.
        rows: number of rows over all splits.
        seed: the same seed gives the same rows.
        draw: function of a random generator and a split that gives a row's text, labels, reasoning and `meta`.
        task: fields of `SetTask`.
    """
    clips = []
    for number, (split, share) in enumerate(SHARES.items()):
        for index in range(round(rows * share)):
            text, labels, reasoning, meta = draw(np.random.default_rng([seed, _KEY, number, index]), split)
            clip_id = f"{split}-{index:06d}"
            clips.append(Clip(clip_id, subtitle=text, labels=labels, reasoning=reasoning, split=split, meta=meta))
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / TASK_FILE, json.dumps(task, indent=2, ensure_ascii=False) + "\n")
    write_manifest(out / MANIFEST, clips)


def _told_scene(rng: np.random.Generator, split: Split) -> tuple[str, tuple[str, ...], str, dict[str, Any]]:
    scene = sample_scene(rng)
    said = sample_sentence(scene.theme, split, rng)
    texts = write_texts(scene, bool(rng.random() < 0.5), rng)
    meta = {"careful_labels": texts.careful_labels, "broad_labels": texts.broad_labels}
    return f"{texts.description} Says: '{said}'", tuple(scene.labels), texts.reasoning, meta


def _dish(rng: np.random.Generator, _: Split) -> tuple[str, tuple[str, ...], str, dict[str, Any]]:
    world = _dishes()
    drawn = [str(thing) for thing in rng.choice(list(world["holds"]), size=int(rng.integers(2, 5)), replace=False)]
    base, harmless = (str(thing) for thing in rng.choice(world["harmless"], size=2, replace=False))
    named, fate = drawn[:-1], "kept"
    if rng.random() < CHANGED:
        fate = "out" if rng.random() < 0.5 else "swapped"
    told = [*named, harmless]
    rng.shuffle(told)
    text = pick(rng, world["dishes"]).format(base=base, things=f"{', '.join(told[:-1])} and {told[-1]}")
    steps = {thing: world["holds"][thing] for thing in told if thing in named}
    if fate != "kept":
        old, new = named[0], drawn[-1]
        text += " " + _sentence(pick(rng, world["changes"][fate]).format(old=old, new=new))
        steps[old] = None
        if fate == "swapped":
            steps[new] = world["holds"][new]
    labels = allergens_of(steps.values())
    seen = {thing: held for thing, held in steps.items() if held is None or rng.random() >= OVERLOOKED}
    careful = allergens_of(seen.values())
    meta = {"careful_labels": careful, "broad_labels": _broad(labels, rng), "fate": fate}
    return _sentence(text), tuple(labels), reasoned(seen), meta


def allergens_of(held: Any) -> list[str]:
    """The allergens of some ingredients, each once; `none` if there are none.

    Args:
        held: allergens of each ingredient; None for one that is left out.
    """
    found = dict.fromkeys(allergen for allergens in held for allergen in allergens or ())
    return list(found) or [_dishes()["none"]]


def reasoned(steps: Mapping[str, Sequence[str] | None]) -> str:
    """The reasoning: a sentence per ingredient.

    >>> reasoned({"pesto": ["nuts", "milk"], "tuna": None})
    'Pesto: nuts and milk. No tuna.'
    """
    reasons = _dishes()["reasons"]
    said = [
        reasons["out"].format(old=thing)
        if held is None
        else reasons["holds"].format(thing=_sentence(thing), allergens=" and ".join(held))
        for thing, held in steps.items()
    ]
    return " ".join(said) or str(reasons["none"])


def _broad(labels: Sequence[str], rng: np.random.Generator) -> list[str]:
    none = _dishes()["none"]
    kept = [label for label in labels if rng.random() < BROAD_KEEP]
    others = [name for name in _dishes()["categories"]["allergen"] if name not in (*labels, none)]
    for chance in (BROAD_ADD, BROAD_ADD / 2):
        if rng.random() < chance:
            kept.append(others.pop(int(rng.integers(len(others)))))
    return [label for label in kept if label != none] or list(labels[:1])


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


@lru_cache(maxsize=1)
def _dishes() -> dict[str, Any]:
    return read_object(Path(__file__).with_name("dishes.json"))
