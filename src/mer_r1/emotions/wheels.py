"""Maps emotion words onto emotion wheels, which makes them comparable.

A model may answer "thrilled" where the annotator wrote "excitement". Neither word is wrong, so words are not compared
as strings. Each goes through four steps: surface form ("thrilled") -> base word ("thrill") -> label of a wheel
("excitement") -> sector of that wheel ("zest" on ring 2, "joy" on ring 1). Several wheels are used, because psychology
has no single map of emotion; a word that is not on a wheel is dropped from that wheel's sets.

Two taxonomies follow this scheme: the built-in wheels (`builtin`, written for this project, see docs/wheels.md) and the
official tables of MER-UniBench (`official`), whose look-up rules are reproduced exactly, oddities included. They differ
in the choice between several candidates of a word: the built-in tables list the best candidate first, the official rule
takes the alphabetically first.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from mer_r1.emotions import official_wheels as wheel_tables
from mer_r1.emotions.official_wheels import normalise
from mer_r1.errors import UserError

LEVELS = (1, 2)
MATCHINGS = ("wheels", "meaning", "both")
_QUOTES_TO_COMMAS = str.maketrans("'\"", ",,")


@dataclass(frozen=True, eq=False)
class EmotionWheel:
    """One map of emotions: which sector each label lies in, on the inner ring (level 1) and the outer ring (level 2).

    Attributes:
        name: short name, unique within a taxonomy.
        source: the publication that the structure is taken from.
        level1: label -> level-1 sector.
        level2: label -> level-2 sector.
    """

    name: str
    source: str
    level1: Mapping[str, str]
    level2: Mapping[str, str]

    def level(self, level: int) -> Mapping[str, str]:
        """Label -> sector on ring `level` (1 or 2)."""
        if level not in LEVELS:
            raise UserError(f"level: expected 1 (inner ring) or 2 (outer ring) of wheel {self.name!r}, got {level!r}")
        return self.level1 if level == 1 else self.level2


Wheel = EmotionWheel | int | str
"""A wheel, its 0-based index in the taxonomy, or its name."""


@dataclass(frozen=True, eq=False)
class Taxonomy:
    """Wheels, and the words that lead to their labels.

    Words are lower-cased and trimmed before every look-up, and changed in no other way.

    Attributes:
        wheels: the wheels, in report order (`wheel1` is the first).
        forms: surface form -> its base words, best first.
        synonyms: base word -> its wheel labels, best first.
        alphabetical: whether the alphabetically first of several candidate labels counts (the MER-UniBench rule)
            instead of the first that the tables list.
        matching: how `metrics.label_scores` compares words: one of `MATCHINGS`; "both" is the mean of the two.
        meaning: the `meaning.Meaning` that compares them, unless the wheels do alone.
        task: name of another task's categories (`set_task.SetTask`); "" for emotions.
    """

    wheels: tuple[EmotionWheel, ...]
    forms: Mapping[str, tuple[str, ...]]
    synonyms: Mapping[str, tuple[str, ...]]
    alphabetical: bool = False
    matching: str = field(default="wheels", repr=False)
    meaning: Any = field(default=None, repr=False)
    task: str = field(default="", repr=False)
    _placed: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict, init=False, repr=False)

    def base(self, word: str) -> str | None:
        """The base word of a surface form (`case1`, M1 of MER-UniBench), or None for an unknown word."""
        bases = self.forms.get(normalise(word))
        return bases[0] if bases else None

    def label(self, word: str) -> str | None:
        """The first wheel label of the word's base word (`case2`, M2 of MER-UniBench), or None for an unknown word."""
        labels = self.synonyms.get(self.base(word) or "")
        return labels[0] if labels else None

    def sector(self, word: str, wheel: Wheel, level: int = 1) -> str | None:
        """The sector of `word` on one wheel and ring (`case3`), or None where the word is not on this wheel.

        >>> builtin().sector("Thrilled", "shaver", level=2)
        'zest'
        """
        return self.placed(wheel, level).get(normalise(word))

    def knows(self, word: str) -> bool:
        """Whether a word is on any wheel."""
        return any(self.sector(word, wheel) for wheel in range(len(self.wheels)))

    def categories(self, words: Iterable[str], wheel: Wheel, level: int = 1) -> frozenset[str]:
        """The set of sectors of `words` on one wheel; words that are not on it add nothing."""
        placed = self.placed(wheel, level)
        return frozenset(filter(None, map(placed.get, map(normalise, words))))

    def sectors(self, wheel: Wheel, level: int = 1) -> tuple[str, ...]:
        """Every sector of one wheel and ring, in the wheel's own order."""
        return tuple(dict.fromkeys(self.wheel(wheel).level(level).values()))

    def forms_of(self, wheel: Wheel, sector: str, level: int = 1) -> tuple[str, ...]:
        """Every surface form that maps to `sector`, in alphabetical order: the words that make a category's confidence.

        Raises:
            UserError: the wheel has no such sector.
        """
        if sector not in (sectors := self.sectors(wheel, level)):
            name = self.wheel(wheel).name
            raise UserError(f"sector {sector!r}: wheel {name!r} has at level {level} only {', '.join(sectors)}")
        return tuple(sorted(form for form, place in self.placed(wheel, level).items() if place == sector))

    def map_row(self, word: str) -> dict[str, str]:
        """Every mapping of a word, "" = dropped: `word`, `case1`, `case2`, `wheel1_level1` ..., `wheel1_level2` ..."""
        row = {"word": word, "case1": self.base(word) or "", "case2": self.label(word) or ""}
        for level in LEVELS:
            for index, wheel in enumerate(self.wheels, start=1):
                row[f"wheel{index}_level{level}"] = self.sector(word, wheel, level) or ""
        return row

    def placed(self, wheel: Wheel, level: int = 1) -> dict[str, str]:
        """Surface form -> sector on one wheel and ring, without forms that are not on it. A plain dict, built once."""
        chosen = self.wheel(wheel)
        key = (chosen.name, level)
        if key not in self._placed:
            places = chosen.level(level)
            known = (
                (form, [label for label in labels if label in places]) for form, labels in self._candidates.items()
            )
            self._placed[key] = {form: places[labels[0]] for form, labels in known if labels}
        return self._placed[key]

    def wheel(self, wheel: Wheel) -> EmotionWheel:
        """Look up a wheel by its 0-based index or its name; a wheel is returned as it is.

        Raises:
            UserError: no such wheel here.
        """
        if isinstance(wheel, EmotionWheel):
            return wheel
        if isinstance(wheel, int) and 0 <= wheel < len(self.wheels):
            return self.wheels[wheel]
        for index, candidate in enumerate(self.wheels):
            if wheel in (index, candidate.name):
                return candidate
        names = ", ".join(f"{index} = {known.name}" for index, known in enumerate(self.wheels))
        raise UserError(f"wheel {wheel!r}: expected one of {names}")

    @cached_property
    def title(self) -> str:
        """Official, built-in or of another task, and a digest of all its tables."""
        tables = [[wheel.name, dict(wheel.level1), dict(wheel.level2)] for wheel in self.wheels]
        content = json.dumps([tables, dict(self.forms), dict(self.synonyms), self.alphabetical], sort_keys=True)
        digest = hashlib.blake2b(content.encode(), digest_size=4).hexdigest()
        return f"{self.task or ('official' if self.alphabetical else 'built-in')} ({digest})"

    @property
    def compared_by(self) -> str:
        """The matching, and the embedding model and its floor where it has them."""
        return self.matching if self.meaning is None else f"{self.matching} ({self.meaning!r})"

    @cached_property
    def _candidates(self) -> dict[str, list[str]]:
        """Surface form -> candidate labels over all its base words, in the order of preference."""
        found = {
            form: [label for base in bases for label in self.synonyms.get(base, ())]
            for form, bases in self.forms.items()
        }
        return {form: sorted(set(labels)) for form, labels in found.items()} if self.alphabetical else found


def load(folder: "str | Path | Taxonomy | None" = None) -> Taxonomy:
    """Load the official tables from `folder`, or the built-in wheels if it is None; a taxonomy is returned as it is."""
    if isinstance(folder, Taxonomy):
        return folder
    return builtin() if folder is None else official(folder)


@lru_cache(maxsize=1)
def builtin() -> Taxonomy:
    """The wheels of this project, read from the package's `wheels.json` (sources and rules: docs/wheels.md).

    Examples:
        >>> [wheel.name for wheel in builtin().wheels]
        ['plutchik', 'ekman', 'shaver', 'russell', 'earl']
    """
    text = resources.files("mer_r1.emotions").joinpath("wheels.json").read_text(encoding="utf-8")
    return from_tables(json.loads(text))


def from_tables(tables: Mapping[str, Any]) -> Taxonomy:
    """Build a taxonomy from the structure of `wheels.json`.

    `wheels` lists each wheel's sectors: level 1 -> level 2 -> further labels. `families` are groups of near-synonyms,
    each with one place (a level-2 sector, or "" for none) per wheel and its base words with their forms. A base word
    that is itself a label of some wheel, apart from its family, keeps that place there and follows its family on the
    other wheels.

    Raises:
        UserError: two base words claim one form, or a family's place contradicts its wheel.
    """
    names = [wheel["name"] for wheel in tables["wheels"]]
    rings = {wheel["name"]: _rings(wheel["sectors"]) for wheel in tables["wheels"]}
    forms: dict[str, tuple[str, ...]] = {}
    synonyms: dict[str, tuple[str, ...]] = {}
    for family, entry in tables["families"].items():
        for name, place in zip(names, entry["places"], strict=True):
            if place:
                _place_family(rings[name], family, place, name)
        for base, variants in entry["words"].items():
            apart = any(base in outer and outer[base] != outer.get(family) for _, outer in rings.values())
            synonyms[base] = (base, family) if apart else (family,)
            for form in (base, *variants):
                if form in forms:
                    raise UserError(f"wheels.json: {form!r} is listed under {forms[form][0]!r} and under {base!r}")
                forms[form] = (base,)
    wheels = tuple(EmotionWheel(wheel["name"], wheel["source"], *rings[wheel["name"]]) for wheel in tables["wheels"])
    return Taxonomy(wheels, forms, synonyms)


def _rings(sectors: Mapping[str, Mapping[str, Sequence[str]]]) -> tuple[dict[str, str], dict[str, str]]:
    """Label -> sector on both rings, from level 1 -> level 2 -> labels."""
    level1: dict[str, str] = {}
    level2: dict[str, str] = {}
    for inner, outer_labels in sectors.items():
        for outer, labels in outer_labels.items():
            for label in (outer, *labels):
                level1[label] = inner
                level2[label] = outer
    return level1, level2


def _place_family(rings: tuple[dict[str, str], dict[str, str]], family: str, place: str, wheel: str) -> None:
    """Make the family's name a label of the wheel; if the wheel has that label already, both must agree."""
    level1, level2 = rings
    if level2.get(place) != place:
        raise UserError(f"wheels.json: family {family!r} names {place!r}, no level-2 sector of wheel {wheel!r}")
    if level2.setdefault(family, place) != place:
        raise UserError(f"wheels.json: wheel {wheel!r} has {family!r} under {level2[family]!r}, not under {place!r}")
    level1[family] = level1[place]


def official(folder: str | Path) -> Taxonomy:
    """Load the MER-UniBench tables: `format.csv`, `synonym.xlsx` and `wheel1.xlsx` ... `wheel5.xlsx` in one folder.

    Follows the reference (AffectGPT release) exactly: base words and labels in alphabetical order, later placements on
    a wheel overwrite earlier ones, and a level-1 label maps to the alphabetically first of its sectors on ring 2.

    Raises:
        UserError: the folder, a file or a column is missing, or a file cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"emotion wheels: no folder {folder} (expected format.csv, synonym.xlsx, wheel1.xlsx ... wheel5.xlsx)"
        )
    forms = wheel_tables.read_forms(folder / "format.csv")
    synonyms = wheel_tables.read_synonyms(folder / "synonym.xlsx")
    paths = [folder / f"wheel{number}.xlsx" for number in range(1, 6)]
    source = "MER-UniBench (AffectGPT release)"
    wheels = tuple(EmotionWheel(path.stem, source, *wheel_tables.read_rings(path)) for path in paths)
    return Taxonomy(wheels, forms, synonyms, alphabetical=True)


def parse_labels(labels: object) -> list[str]:
    """Parse a stored label string into a list of labels, by the rule of MER-UniBench with its quirks.

    A list or array passes through; None, NaN and "" give []. A string loses one leading "[" and one trailing "]" and is
    split at every quote and comma and at nothing else; blank pieces are dropped.

    Args:
        labels: a string such as "[happy, sad]", or a sequence of labels.

    Raises:
        UserError: the string is a lone "[" (the reference stops with an index error there), or `labels` is a number or
            another object that holds no labels.

    >>> parse_labels("[happy, it's fine]")
    ['happy', 'it', 's fine']
    """
    if labels is None or (isinstance(labels, float) and math.isnan(labels)):
        return []
    if not isinstance(labels, str):
        if isinstance(labels, bytes | Mapping) or not isinstance(labels, Iterable):
            raise UserError(f"labels: expected a string such as '[happy, sad]' or a list, got {labels!r:.80}")
        return [str(label) for label in labels]
    if labels == "[":
        raise UserError("labels: '[' opens a list and ends there; expected a string such as '[happy, sad]'")
    text = labels[1:] if labels.startswith("[") else labels
    text = text[:-1] if text.endswith("]") else text
    return [piece for raw in text.translate(_QUOTES_TO_COMMAS).split(",") if (piece := raw.strip())]
