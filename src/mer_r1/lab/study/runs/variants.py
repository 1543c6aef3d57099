"""The studies as data: which variants each compares, as overrides of one recipe.

A variant is a set of overrides of the section `rl` of ``recipes/tiny.yaml`` and, if its cold start differs, of `sft`;
a cold start alone is a variant without RL. Variants with the same settings share their runs, within and across studies.
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
        diagnosed: variants whose calibration is judged on this one's policies (`mer-r1 diagnose`).
    """

    title: str
    rl: Mapping[str, str] | None = None
    sft: Mapping[str, str] = field(default_factory=dict)
    diagnosed: tuple[str, ...] = ()


FORMULATIONS = ("answer", "reasoning", "hinge")
"""Variants that differ in the formulation of the calibration only."""
ANSWER = {"method": "mer-r1", "calibration": "answer"}
FIRST_READING = {"method": "mer-r1", "calibration": "difference", "conditional": "false", "anchors": "all"}
FIRST_READING |= {"alpha": "0.1", "calibration_share": "null", "spread_floor": "0"}
IN_REWARDS = {"alpha": "0.55", "calibration_share": "null"}
"""Rewards take a fixed weight. In RL the terms spread three quarters as much as recall and precision do, so that this
weight gives them 15 % of the variance of reward and term, as the default share does in advantage space."""
TWICE = {"targets": "twice", "counterfactual_rows": "0", "replay": "0", "must_reason": "null"}

VARIANTS: dict[str, Variant] = {
    # Every cold start that other variants start from is a variant itself.
    "sft": Variant("SFT", diagnosed=FORMULATIONS),
    "sft-twice": Variant("SFT, two answers", sft=TWICE),
    "f1": Variant("F1-GRPO", {"method": "f1"}),
    "rd": Variant("RD", {"method": "rd"}),
    "ad": Variant("AD", {"method": "ad"}, diagnosed=("answer",)),
    "mer-r1": Variant("MER-R1", {"method": "mer-r1"}),
    **{
        name: Variant(f"MER-R1 ({name})", {"method": "mer-r1", "calibration": name}, diagnosed=(name,))
        for name in FORMULATIONS
    },
    "first-reading": Variant("MER-R1 (first reading)", FIRST_READING),
    "noise": Variant("AD + noise", {"method": "mer-r1", "calibration": "noise"}),
    "word": Variant("A1: word level", {**ANSWER, "confidence_level": "word"}),
    "recall-side": Variant("A2: no precision side", {**ANSWER, "sides": "recall"}),
    "reward-space": Variant("B1: reward space", {**ANSWER, **IN_REWARDS, "space": "reward"}),
    "mixed-space": Variant("B2: mixed", {**ANSWER, **IN_REWARDS, "space": "mixed"}),
    "r1-omni": Variant("R1-Omni", {"method": "r1-omni"}),
    "affectgpt-r1": Variant("AffectGPT-R1", {"method": "affectgpt-r1"}),
    # Two answers take more tokens; this limit leaves as many for the reasoning as the other methods have.
    "videoauto-r1": Variant(
        "VideoAuto-R1",
        {"method": "videoauto-r1", "max_completion_length": "88", "fast_share": "0", "fast_beta": "null"},
        TWICE,
    ),
}
"""Every variant that is compared, and the cold starts."""


@dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
        question: the question as a sentence.
        variants: names in `VARIANTS`, in the order of the table.
        seeds: number of seeds unless the command says otherwise.
        shows: its tables and figure, a key of `tables.EXTRA` or `figures.DRAWERS`; otherwise scores only.
        diagnosed: number of seeds whose policies are diagnosed.
    """

    question: str
    variants: tuple[str, ...]
    seeds: int = 16
    shows: str = "scores"
    diagnosed: int = 0

    def measures(self, seed: int, trial: bool) -> set[str]:
        """What is measured of each run with that seed: folders of evaluations, "gradients", "diagnosis".

        A study is judged on test clips, a trial on validation clips, by sampled and by greedy answers; only adaptive
        thinking chooses its threshold on validation clips.
        """
        if self.shows == "theory":
            return {"gradients"}
        split = "val" if trial else "test"
        found = {split, f"{split}-sampled"} | ({"val"} if self.shows == "auto" else set())
        return found | ({"diagnosis"} if seed < self.diagnosed else set())


STUDIES: dict[str, Study] = {
    "bed": Study(
        "Does calibration help where reasoning is the lever?",
        ("sft", "f1", "ad", *FORMULATIONS, "first-reading", "noise"),
        shows="bed",
        diagnosed=4,
    ),
    "paradox": Study("Does reasoning hurt after ordinary training?", ("sft", "f1"), shows="paradox"),
    "parts": Study("What does each part of MER-R1 bring?", ("sft", "f1", "rd", "ad", "mer-r1")),
    "calibration": Study(
        "At which level, on which sides and in which space should the calibration act?",
        ("answer", "word", "recall-side", "reward-space", "mixed-space"),
    ),
    "baselines": Study(
        "How does MER-R1 compare with other methods at the same budget?",
        ("f1", "r1-omni", "affectgpt-r1", "videoauto-r1", "mer-r1"),
        seeds=8,
        shows="costs",
    ),
    "theory": Study(
        "Do the objectives interfere as predicted?", ("sft", "rd", "ad", "mer-r1"), seeds=8, shows="theory"
    ),
    "auto": Study("When is reasoning worth its tokens?", ("f1", "videoauto-r1", "mer-r1"), seeds=8, shows="auto"),
}
"""All studies by name."""


def chosen_studies(name: str) -> list[str]:
    """The studies that a key of `STUDIES` or "all" stands for."""
    return list(STUDIES) if name == "all" else [name]


def titles_of(data: Mapping[str, Any]) -> dict[str, str]:
    """Variant -> title of the variants with results in a study's JSON, in the order of its table."""
    return {name: data["titles"][name] for name in STUDIES[data["study"]].variants if name in data["numbers"]}


def runs_with(part: str, data: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Any]]]:
    """Variant, title, and that part of its runs, for every variant of a study's JSON whose runs have it."""
    for variant, title in titles_of(data).items():
        if runs := [run[part] for run in data["numbers"][variant].values() if run.get(part)]:
            yield variant, title, runs
