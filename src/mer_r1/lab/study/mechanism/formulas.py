"""The advantages that the study compares: the paper's parts, its variants, other formulations, and noise.

Rewards become advantages by the functions of `rl.advantages`; a formula adds calibration terms to them. With C(k) the
probability of the words of category k at an anchor, C~(k) = C(k) / sum of C over the categories, Y the correct
categories, and slow and fast as in `policy`, the terms of a rollout are:

    difference   mean over Y of log C_slow - log C_fast, and minus that over the others; both averaged over all anchors
    conditional  the same with C~, at the first mention of each category
    answer       U(k) = 1 - product over anchors of (1 - C~_slow(k)): mean over Y of U, and sum over Y of U / sum of U
    reasoning    log C~_slow(Y) - log C~_fast(Y) at the first anchor, C~(Y) summed over Y; for the reasoning token only
    hinge        mean over Y of min(0, log C~_slow - log C~_cold), and min(0, log C~_cold(not Y) - log C~_slow(not Y)),
                 at the first anchor, with the fast confidence C~_cold of the frozen cold start
    noise        two random numbers

Source of the parts and variants: MER-R1 (arXiv 2606.27652), docs/paper_map.md; the other formulations are ours.
Shapes: as in `policy`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from mer_r1.lab.study.mechanism.policy import CATEGORIES, STOP, SYNONYMS, Clips, Rollouts
from mer_r1.rl.advantages import group_normalise, group_spread, normalise_each, sum_then_normalise

LOG_FLOOR, CLIP = 1e-10, 5.0
SHARES = (0.15, 0.5)
"""Shares of the advantage's variance at which the calibration terms are compared."""


@dataclass(frozen=True)
class Formula:
    """One way to make advantages.

    Attributes:
        title: name in tables.
        objectives: "f1" (one reward), "rd" (recall + precision, normalised once) or "ad" (each normalised).
        terms: calibration terms, a key of `TERMS`; None for none.
        sides: "both" terms, or the one of "recall".
        space: "advantage", "reward" (B1) or "mixed" (B2, recall's term in reward space).
        share: share of the variance of advantage (reward space: of reward) that the terms make up, in (0, 1).
        alpha: fixed weight of the normalised terms; replaces `share`.
        spread: added to a term's standard deviation in each group.
        where: tokens that the terms act on: "all", or "reasoning".
    """

    title: str
    objectives: str = "ad"
    terms: str | None = None
    sides: str = "both"
    space: str = "advantage"
    share: float = SHARES[0]
    alpha: float | None = None
    spread: float = 0.0
    where: str = "all"


SHARED = {
    "mer-r1": Formula("MER-R1's terms", terms="difference"),
    "word": Formula("A1: word level", terms="word"),
    "recall-side": Formula("A2: no precision side", terms="difference", sides="recall"),
    "reward-space": Formula("B1: reward space", terms="difference", space="reward"),
    "mixed-space": Formula("B2: mixed", terms="difference", space="mixed"),
    "conditional": Formula("conditional confidence", terms="conditional", spread=0.05),
    "answer": Formula("D1: answer", terms="answer", spread=0.01),
    "reasoning": Formula("D2: reasoning", terms="reasoning", spread=0.05, where="reasoning"),
    "hinge": Formula("D3: hinge", terms="hinge", spread=0.05),
    "noise": Formula("noise control", terms="noise"),
}
"""Formulas that are compared at every one of `SHARES`."""

FORMULAS: dict[str, Formula] = {
    "f1": Formula("F1-GRPO", "f1"),
    "rd": Formula("RD", "rd"),
    "ad": Formula("AD"),
    "landed": Formula("MER-R1, alpha 0.1", terms="difference", alpha=0.1),
    **{
        f"{name}-{share}": replace(formula, title=f"{formula.title}, {share:.0%}", share=share)
        for name, formula in SHARED.items()
        for share in SHARES
    },
}
"""All formulas of the study; "mer-r1-0.15" has terms with 15 % of the advantage's variance."""


@dataclass(frozen=True)
class Context:
    """What the terms of a batch are computed from.

    Attributes:
        slow: (S, N, G, L, V) logits of each answer behind its reasoning.
        fast: (S, N, G, L, V) logits of the same answer behind an empty reasoning.
        cold: (S, N, V) the frozen cold start's logits of a fast answer's first word.
        rollouts: the answers.
        clips: their clips.
        generator: source of the noise control.
    """

    slow: Tensor
    fast: Tensor
    cold: Tensor
    rollouts: Rollouts
    clips: Clips
    generator: Generator

    @property
    def gold(self) -> Tensor:
        """(S, N, 1, K) bool."""
        return self.clips.gold[:, :, None]


def _by_category(words: Tensor) -> Tensor:
    return words.unflatten(-1, (CATEGORIES, SYNONYMS)).sum(-1)


def _conditional(logits: Tensor) -> Tensor:
    # C~: the probability of each category, given that a word comes.
    return _by_category(logits[..., :STOP].softmax(-1))


def _first_mentions(rollouts: Rollouts) -> Tensor:
    # (S, N, G, L) bool: words whose category no earlier word of the answer has.
    category = rollouts.words // SYNONYMS
    same = category[..., :, None] == category[..., None, :]
    return rollouts.is_word & ~same.tril(-1).any(-1)


def _two_sides(slow: Tensor, fast: Tensor, gold: Tensor, anchors: Tensor) -> Sequence[Tensor]:
    # Delta+ and Delta- from probabilities (S, N, G, L, C) at the anchors (S, N, G, L); NaN without an anchor.
    gap = (slow + LOG_FLOOR).log() - (fast + LOG_FLOOR).log()
    gap = (gap * anchors[..., None]).sum(-2) / anchors.sum(-1, keepdim=True)
    return _mean(gap, gold).clamp(-CLIP, CLIP), _mean(-gap, ~gold).clamp(-CLIP, CLIP)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(-1) / mask.sum(-1)


def _difference(of: Context) -> Sequence[Tensor]:
    slow, fast = (_by_category(logits.softmax(-1)[..., :STOP]) for logits in (of.slow, of.fast))
    return _two_sides(slow, fast, of.gold, of.rollouts.is_word)


def _word(of: Context) -> Sequence[Tensor]:
    slow, fast = (logits.softmax(-1)[..., :STOP] for logits in (of.slow, of.fast))
    return _two_sides(slow, fast, of.clips.gold_words[:, :, None], of.rollouts.is_word)


def _conditional_difference(of: Context) -> Sequence[Tensor]:
    found = _two_sides(_conditional(of.slow), _conditional(of.fast), of.gold, _first_mentions(of.rollouts))
    return [_at_least(term) for term in found]


def _answer(of: Context) -> Sequence[Tensor]:
    missed = torch.log1p(-_conditional(of.slow).clamp(max=1 - 1e-6)) * _first_mentions(of.rollouts)[..., None]
    named = 1 - missed.sum(-2).exp()
    right = (named * of.gold).sum(-1)
    empty = ~of.rollouts.is_word.any(-1)
    return [
        _at_least(side.masked_fill(empty, torch.nan))
        for side in (right / of.gold.sum(-1), right / named.sum(-1).clamp(min=1e-6))
    ]


def _reasoning(of: Context) -> Sequence[Tensor]:
    slow, fast = ((_conditional(logits[..., 0, :]) * of.gold).sum(-1) for logits in (of.slow, of.fast))
    return [(slow + LOG_FLOOR).log() - (fast + LOG_FLOOR).log()]


def _hinge(of: Context) -> Sequence[Tensor]:
    slow, cold = _conditional(of.slow[..., 0, :]), _conditional(of.cold)[:, :, None]
    kept = ((slow + LOG_FLOOR).log() - (cold + LOG_FLOOR).log()).clamp(max=0)
    wrong_slow, wrong_cold = ((part * ~of.gold).sum(-1) for part in (slow, cold))
    suppressed = ((wrong_cold + LOG_FLOOR).log() - (wrong_slow + LOG_FLOOR).log()).clamp(max=0)
    return _mean(kept, of.gold), suppressed


def _noise(of: Context) -> Sequence[Tensor]:
    return [torch.randn(of.rollouts.reasoning.shape, generator=of.generator) for _ in range(2)]


def _at_least(term: Tensor) -> Tensor:
    # An answer without words has the least term of its group.
    least = torch.where(term.isnan(), torch.inf, term).amin(-1, keepdim=True)
    return torch.where(term.isnan(), least.nan_to_num(posinf=0.0), term)


TERMS: dict[str, Callable[[Context], Sequence[Tensor]]] = {
    "difference": _difference,
    "word": _word,
    "conditional": _conditional_difference,
    "answer": _answer,
    "reasoning": _reasoning,
    "hinge": _hinge,
    "noise": _noise,
}
"""Name -> the terms of recall and precision, (S, N, G) each; a single one counts for both."""


def advantages(formula: Formula, rewards: Sequence[Tensor], terms: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
    """The advantages of the words and of the reasoning tokens.

    Both have mean square 1 per seed, so the weight of the KL penalty means the same for every formula.

    Args:
        formula: choices.
        rewards: recall, precision and F1, (S, N, G) each.
        terms: the formula's calibration terms, (S, N, G) each; NaN counts as no information.

    Returns:
        (S, N, G) each.
    """
    shape = rewards[0].shape
    group = shape[-1]
    recall, precision, f1 = (reward.reshape(-1) for reward in rewards)
    if formula.objectives != "ad":
        columns = torch.stack([f1] if formula.objectives == "f1" else [recall, precision], 1)
        summed = _scaled(sum_then_normalise(columns, torch.ones(columns.shape[1]), group), shape)
        return summed, summed
    objectives, added, in_rewards = [recall, precision], torch.zeros_like(recall), 0
    for side, term in enumerate(terms[: 1 if formula.sides == "recall" else 2]):
        values = term.reshape(-1)
        if formula.space == "reward" or (formula.space == "mixed" and side == 0):
            weight = _weight(formula, values, objectives[side], shape)
            objectives[side] = objectives[side] + weight * values.nan_to_num(0.0)
            in_rewards += 1
        else:
            added = added + group_normalise(values, group, formula.spread)
    normalised = normalise_each(torch.stack(objectives, 1), group)
    plain = normalised.sum(1)
    full = plain + _weight(formula, added, normalised[:, in_rewards:].sum(1), shape) * added
    return _scaled(plain if formula.where == "reasoning" else full, shape), _scaled(full, shape)


def _weight(formula: Formula, term: Tensor, rest: Tensor, shape: torch.Size) -> Tensor | float:
    # (S*N*G,): the weight that gives the term its share of the variance within groups, for each seed.
    if formula.alpha is not None:
        return formula.alpha
    of_term, of_rest = (group_spread(values, shape[-1]).view(shape[0], -1).square().mean(1) for values in (term, rest))
    wanted = formula.share / (1 - formula.share) * of_rest / of_term.clamp(min=1e-12)
    return torch.where(of_term > 1e-12, wanted, 0.0).sqrt().repeat_interleave(term.shape[0] // shape[0])


def _scaled(values: Tensor, shape: torch.Size) -> Tensor:
    grouped = values.view(shape)
    return grouped / grouped.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-6)
