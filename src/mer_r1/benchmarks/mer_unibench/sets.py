"""The nine data sets of MER-UniBench in the published order, and OV-MERD, which is scored alike but not among the nine.

Three kinds of gold, three headline numbers: one emotion word per clip (hit rate over five wheels), a sentiment value
(weighted F1 of positive against the rest), and free emotion words (F over five wheels). The benchmark's number is the
plain mean of the nine headline numbers; the number of clips in a set plays no role (AffectGPT release; its paper,
arXiv 2501.16566).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from mer_r1.corpora.layout import letters
from mer_r1.errors import UserError

Kind = Literal["discrete", "sentiment", "open-set"]

HEADLINES: dict[Kind, str] = {"discrete": "hit rate", "sentiment": "weighted F1", "open-set": "mean F"}
"""Kind -> its main number."""


@dataclass(frozen=True)
class BenchmarkSet:
    """One data set.

    Attributes:
        name: the canonical name, as manifests carry it in `meta.dataset`.
        title: the name in tables.
        clips: number of test clips.
        reference: name in the reference's code and folders.
    """

    name: str
    title: str
    kind: Kind
    clips: int
    reference: str


OVMERD = BenchmarkSet("ovmerd", "OV-MERD", "open-set", 332, "OVMERD")
SETS: dict[str, BenchmarkSet] = {
    entry.name: entry
    for entry in (
        BenchmarkSet("mer2023", "MER2023", "discrete", 411, "MER2023"),
        BenchmarkSet("mer2024", "MER2024", "discrete", 1169, "MER2024"),
        BenchmarkSet("meld", "MELD", "discrete", 2610, "MELD"),
        BenchmarkSet("iemocap", "IEMOCAP", "discrete", 1241, "IEMOCAPFour"),
        BenchmarkSet("cmumosi", "MOSI", "sentiment", 686, "CMUMOSI"),
        BenchmarkSet("cmumosei", "MOSEI", "sentiment", 4659, "CMUMOSEI"),
        BenchmarkSet("sims", "SIMS", "sentiment", 457, "SIMS"),
        BenchmarkSet("simsv2", "SIMSv2", "sentiment", 1034, "SIMSv2"),
        BenchmarkSet("ovmerdplus", "OV-MERD+", "open-set", 532, "OVMERDPlus"),
        OVMERD,
    )
}
"""Canonical name -> set: the nine in the published order, then OV-MERD."""
NINE = tuple(name for name in SETS if name != OVMERD.name)
"""Names of the nine sets whose mean is the benchmark's number."""


@lru_cache(maxsize=256)
def named(name: str) -> BenchmarkSet:
    """The set of that name: canonical, in tables, or the reference's; case and punctuation do not matter.

    Raises:
        UserError: the set is unknown.

    >>> named("OV-MERD+").name, named("IEMOCAPFour").name, named("CMU-MOSI").name
    ('ovmerdplus', 'iemocap', 'cmumosi')
    """
    wanted = letters(name)
    for entry in SETS.values():
        if wanted in map(letters, (entry.name, entry.title, entry.reference)):
            return entry
    raise UserError(f"data set: got {name!r:.60}, expected one of {', '.join(SETS)}")


def nine_way_mean(scores: Mapping[str, float]) -> float:
    """The plain mean of the nine main numbers, by canonical name; NaN if one of them is NaN.

    Raises:
        UserError: a set is missing.
    """
    missing = [SETS[name].title for name in NINE if name not in scores]
    if missing:
        raise UserError(f"the mean of MER-UniBench is over nine sets; there is no score for {', '.join(missing)}")
    return math.fsum(scores[name] for name in NINE) / len(NINE)
