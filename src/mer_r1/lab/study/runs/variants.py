"""The studies as data: which variants each compares, as overrides of one recipe.

A variant is a set of overrides of the section `rl` of ``recipes/tiny.yaml`` and, where it starts differently, of
`sft`; a cold start by itself is a variant without RL. Two studies that name the same variant share its runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One way of training.

    Attributes:
        title: what tables call it.
        rl: overrides of the recipe's RL section; None stops after the cold start.
        sft: overrides of the recipe's cold start.
        seeds: at most so many; None for all.
    """

    title: str
    rl: Mapping[str, str] | None = None
    sft: Mapping[str, str] = field(default_factory=dict)
    seeds: int | None = None


HARDER = {"learning_rate": "7e-4", "num_train_epochs": "4"}
"""A cold start that bends the policy further to the annotators' way: nearly twice the learning rate, twice as long."""
TWICE = {"targets": "twice"}
STRONG = {"anchors": "first", "alpha": "1.0"}
"""Ten times the recipe's calibration, where an answer that repeats a word does not earn it."""

VARIANTS: dict[str, Variant] = {
    # Every cold start that a variant begins with is one too.
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
    # Two answers take more tokens; the limit leaves as many for the reasoning as the others have.
    "videoauto-r1": Variant("VideoAuto-R1", {"method": "videoauto-r1", "max_completion_length": "88"}, TWICE),
    "f1-harder": Variant("harder SFT, F1-GRPO", {"method": "f1"}, HARDER),
    "mer-r1-harder": Variant("harder SFT, MER-R1", {"method": "mer-r1"}, HARDER),
}
"""Everything that is compared on test scenes, and what it starts from."""

ALPHAS = ("0.3", "1.0")
"""Tried on validation scenes beside none at all ("ad") and the recipe's own alpha ("mer-r1")."""
VARIANTS |= {
    f"alpha-{alpha}": Variant(f"alpha {alpha}", {"method": "mer-r1", "alpha": alpha}, seeds=4) for alpha in ALPHAS
}


@dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
        question: in words.
        variants: names in `VARIANTS`, in the order of the table.
        gradients: whether the objectives' gradients are measured too, along the training of what has any.
        splits: what its policies are asked about: validation clips where something is chosen, test clips where judged.
        shows: its tables and picture, a key of `tables.EXTRA` or `figures.DRAWERS`; scores alone if of neither.
        follow_up: whether it was asked because of another's result; `all` leaves it out.
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
        "And after a cold start that bends the policy further?",
        ("sft-harder", "f1-harder", "mer-r1-harder"),
        shows="paradox",
    ),
    "parts": Study("What does each part of MER-R1 bring?", ("sft", "f1", "rd", "ad", "mer-r1")),
    "calibration": Study(
        "How should slow thinking be held against fast?",
        ("mer-r1", "word", "recall-side", "reward-space", "mixed-space", "first-anchor"),
    ),
    "alpha": Study(
        "How much calibration? (validation scenes only)",
        ("ad", "mer-r1", *(f"alpha-{alpha}" for alpha in ALPHAS)),
        splits=("val",),
        shows="alphas",
    ),
    "anchors": Study(
        "And more of it, where repeating a word does not pay?",
        ("ad", "mer-r1", "first-anchor", "first-anchor-strong", "word-strong", "reward-strong"),
        follow_up=True,
    ),
    "baselines": Study(
        "How does it compare, at the same budget?",
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
    "auto": Study("When does thinking pay?", ("f1", "videoauto-r1", "mer-r1"), splits=("val", "test"), shows="auto"),
}
"""`all` is every one of them but follow-ups."""


def chosen_studies(name: str) -> list[str]:
    """The studies that a name stands for; calibration brings its alpha sweep along.

    Args:
        name: a key of `STUDIES`, or "all".
    """
    if name == "all":
        return [study for study, asked in STUDIES.items() if not asked.follow_up]
    return [name, "alpha"] if name == "calibration" else [name]


def titles_of(data: Mapping[str, Any]) -> dict[str, str]:
    """Variant -> title of what has results in a study's JSON, in the order of its table.

    Args:
        data: from `collect.collect`, or read back.
    """
    return {name: data["titles"][name] for name in STUDIES[data["study"]].variants if name in data["numbers"]}


def split_of(data: Mapping[str, Any]) -> str:
    """Whose clips a study's numbers are about: "test", or "val" where settings are chosen or tried."""
    return str(data.get("split", "test"))
