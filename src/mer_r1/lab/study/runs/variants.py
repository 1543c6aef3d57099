"""The studies as data: which variants each compares, as overrides of one recipe.

A variant is a set of overrides of the section `rl` of ``recipes/tiny.yaml`` and, if its cold start differs, of `sft`;
a cold start alone is a variant without RL. Studies that name the same variant share its runs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One way of training.

    Attributes:
        title: name in tables.
        rl: overrides of the recipe's RL section; None stops after the cold start.
        sft: overrides of the recipe's cold start.
        seeds: maximum number of seeds; None for all.
    """

    title: str
    rl: Mapping[str, str] | None = None
    sft: Mapping[str, str] = field(default_factory=dict)
    seeds: int | None = None


READING = {"calibration": "difference", "conditional": "false", "anchors": "all", "alpha": "0.1"}
"""The calibration of every variant unless it or the user says otherwise: the reading of the tables in docs/study.md."""
HARDER = {"learning_rate": "7e-4", "num_train_epochs": "4"}
"""A stronger cold start: nearly twice the learning rate, twice as many epochs."""
TWICE = {"targets": "twice"}
STRONG = {"anchors": "first", "alpha": "1.0"}
"""Ten times the recipe's calibration, with anchors that do not reward repeating a word."""

VARIANTS: dict[str, Variant] = {
    # Every cold start that other variants start from is a variant itself.
    "sft": Variant("SFT"),
    "sft-harder": Variant("harder SFT", sft=HARDER),
    "sft-twice": Variant("SFT, two answers", sft=TWICE),
    "f1": Variant("F1-GRPO", {"method": "f1"}),
    "rd": Variant("+ RD", {"method": "rd"}),
    "ad": Variant("+ RD + AD", {"method": "ad"}),
    "mer-r1": Variant("MER-R1", {"method": "mer-r1"}),
    "word": Variant("A1: word level", {"method": "mer-r1", "confidence_level": "word"}),
    "recall-side": Variant("A2: no precision side", {"method": "mer-r1", "sides": "recall"}),
    "reward-space": Variant("B1: reward space", {"method": "mer-r1", "space": "reward"}),
    "mixed-space": Variant("B2: mixed", {"method": "mer-r1", "space": "mixed"}),
    "first-anchor": Variant("first anchor only", {"method": "mer-r1", "anchors": "first"}),
    "first-anchor-strong": Variant("first anchor, alpha 1", {"method": "mer-r1", **STRONG}),
    "word-strong": Variant("the same, A1: word level", {"method": "mer-r1", "confidence_level": "word", **STRONG}),
    "reward-strong": Variant("the same, B1: reward space", {"method": "mer-r1", "space": "reward", **STRONG}),
    "r1-omni": Variant("R1-Omni", {"method": "r1-omni"}),
    "affectgpt-r1": Variant("AffectGPT-R1", {"method": "affectgpt-r1"}),
    # Two answers take more tokens; this limit leaves as many for the reasoning as the other methods have.
    "videoauto-r1": Variant("VideoAuto-R1", {"method": "videoauto-r1", "max_completion_length": "88"}, TWICE),
    "f1-harder": Variant("harder SFT, F1-GRPO", {"method": "f1"}, HARDER),
    "mer-r1-harder": Variant("harder SFT, MER-R1", {"method": "mer-r1"}, HARDER),
}
"""Every variant that is compared on test clips, and the cold starts."""

ALPHAS = ("0.3", "1.0")
"""Compared on validation clips with no calibration ("ad") and the recipe's alpha ("mer-r1")."""
VARIANTS |= {
    f"alpha-{alpha}": Variant(f"alpha {alpha}", {"method": "mer-r1", "alpha": alpha}, seeds=4) for alpha in ALPHAS
}


@dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
        question: the question as a sentence.
        variants: names in `VARIANTS`, in the order of the table.
        gradients: whether the objectives' gradients are measured too, during and after training.
        splits: splits to evaluate on: validation clips to choose settings, test clips to judge.
        shows: its tables and figure, a key of `tables.EXTRA` or `figures.DRAWERS`; otherwise scores only.
        follow_up: whether another study's result raised the question; `all` omits it.
    """

    question: str
    variants: tuple[str, ...]
    gradients: bool = False
    splits: tuple[str, ...] = ("test",)
    shows: str = "scores"
    follow_up: bool = False


STUDIES: dict[str, Study] = {
    "paradox": Study("Does reasoning hurt after ordinary training?", ("sft", "f1"), shows="paradox"),
    "harder": Study(
        "Does it hurt after a stronger cold start?", ("sft-harder", "f1-harder", "mer-r1-harder"), shows="paradox"
    ),
    "parts": Study("What does each part of MER-R1 bring?", ("sft", "f1", "rd", "ad", "mer-r1")),
    "calibration": Study(
        "How should slow and fast confidence be compared?",
        ("mer-r1", "word", "recall-side", "reward-space", "mixed-space", "first-anchor"),
    ),
    "alpha": Study(
        "How much calibration? (validation clips only)",
        ("ad", "mer-r1", *(f"alpha-{alpha}" for alpha in ALPHAS)),
        splits=("val",),
        shows="alphas",
    ),
    "anchors": Study(
        "Does more calibration help if repeating a word earns nothing?",
        ("ad", "mer-r1", "first-anchor", "first-anchor-strong", "word-strong", "reward-strong"),
        follow_up=True,
    ),
    "baselines": Study(
        "How does MER-R1 compare with other methods at the same budget?",
        ("f1", "r1-omni", "affectgpt-r1", "videoauto-r1", "mer-r1"),
        shows="costs",
    ),
    "theory": Study(
        "Do the objectives interfere as predicted?",
        ("sft", "rd", "ad", "mer-r1"),
        gradients=True,
        splits=(),
        shows="theory",
    ),
    "auto": Study(
        "When is reasoning worth its tokens?", ("f1", "videoauto-r1", "mer-r1"), splits=("val", "test"), shows="auto"
    ),
}
"""All studies by name; `all` runs every one but follow-ups."""


def chosen_studies(name: str) -> list[str]:
    """The studies that a key of `STUDIES` or "all" stands for; "calibration" includes the alpha sweep."""
    if name == "all":
        return [study for study, asked in STUDIES.items() if not asked.follow_up]
    return [name, "alpha"] if name == "calibration" else [name]


def titles_of(data: Mapping[str, Any]) -> dict[str, str]:
    """Variant -> title of the variants with results in a study's JSON, in the order of its table."""
    return {name: data["titles"][name] for name in STUDIES[data["study"]].variants if name in data["numbers"]}


def runs_with(part: str, data: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Any]]]:
    """Variant, title, and that part of its runs, for every variant of a study's JSON whose runs have it."""
    for variant, title in titles_of(data).items():
        if runs := [run[part] for run in data["numbers"][variant].values() if run.get(part)]:
            yield variant, title, runs


def split_of(data: Mapping[str, Any]) -> str:
    """The split of a study's numbers: "test", or "val" where settings are chosen or tried."""
    return str(data.get("split", "test"))
