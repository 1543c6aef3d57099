"""Cold start, reinforcement learning and evaluation of the mechanism's policies, all seeds as one batch.

The base answers directly and broadly (fast). The cold start teaches a reasoning that is often right, and careful
answers behind it (slow). RL then samples slow rollouts and updates by GRPO with each formula's advantages, with a KL
penalty towards the cold start. All formulas start from the same cold start, and training and test clips are the same
for all of them, so that their differences are paired by seed.
Shapes: as in `policy`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from mer_r1.lab.study.mechanism import policy
from mer_r1.lab.study.mechanism.formulas import TERMS, Context, Formula, advantages
from mer_r1.lab.study.mechanism.policy import CATEGORIES, EMPTY, LENGTH, STOP, SYNONYMS, Clips, Rollouts, Weights

Lesson = tuple[Clips, Rollouts, float]
"""Clips, what to write about them, and the sight of the answer."""


@dataclass(frozen=True)
class Setup:
    """Sizes of a study.

    Attributes:
        seeds: number of paired seeds.
        steps: RL steps.
        base_clips: training clips of the base.
        base_steps: its steps.
        cold_clips: training clips of the cold start.
        cold_steps: its steps.
        test_clips: test clips per seed.
        draws: sampled answers per test clip.
        prompts: clips per RL step.
        rollouts: rollouts per clip.
        learning_rate: of Adam, in RL.
        beta: weight of the KL penalty.
    """

    seeds: int = 72
    steps: int = 300
    base_clips: int = 1600
    base_steps: int = 400
    cold_clips: int = 800
    cold_steps: int = 300
    test_clips: int = 250
    draws: int = 8
    prompts: int = 8
    rollouts: int = 8
    learning_rate: float = 4e-3
    beta: float = 0.04

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that no study can have."""
        if self.seeds < 2 or self.steps < 1 or self.rollouts < 2:
            raise ValueError(
                f"expected at least 2 seeds, 1 step and 2 rollouts; got {self.seeds}, {self.steps} and {self.rollouts}"
            )


def cold_start(setup: Setup, sight: float) -> Weights:
    """The policies that RL starts from: a base that answers broadly, then a careful slow thinker."""
    generator = torch.Generator().manual_seed(1)
    weights = policy.initial_weights(setup.seeds, generator)
    clips = policy.make_clips(setup.seeds, setup.base_clips, generator)
    empty = torch.full_like(clips.main, EMPTY)
    broad = Rollouts(empty[..., None], label_words(clips, 0.9, 0.25, generator))
    direct = (clips, broad, 1.0)
    _teach(weights, [direct], setup.base_steps, generator)
    clips = policy.make_clips(setup.seeds, setup.cold_clips, generator)
    careful = Rollouts(_taught_reasoning(clips, generator), label_words(clips, 0.6, 0.0, generator))
    _teach(weights, [(clips, careful, sight), direct], setup.cold_steps, generator)
    return weights


def label_words(clips: Clips, kept: float, added: float, generator: Generator) -> Tensor:
    """Answers to learn, (S, N, 1, L): some of the correct categories, and some next to them, in random order.

    Args:
        clips: the clips.
        kept: probability to name a correct category; at least one is named.
        added: probability to name, after each correct category, the next one on the circle too.
        generator: source of the choices.
    """
    shape = clips.gold.shape
    named = clips.gold & (torch.rand(shape, generator=generator) < kept)
    named = torch.where(named.any(-1, keepdim=True), named, clips.gold)
    named |= named.roll(1, -1) & (torch.rand(shape, generator=generator) < added)
    order = (torch.rand(shape, generator=generator) + ~named).argsort(-1)[..., : LENGTH - 1]
    words = order * SYNONYMS + torch.randint(SYNONYMS, order.shape, generator=generator)
    words = torch.where(named.gather(-1, order), words, STOP)
    return torch.cat([words, torch.full_like(words[..., :1], STOP)], -1)[:, :, None]


def _taught_reasoning(clips: Clips, generator: Generator) -> Tensor:
    # (S, N, 1): the main category, wrong in about one of five; the second half of the tokens says "and others".
    shape = clips.main.shape
    right = torch.rand(shape, generator=generator) < 0.75
    seen = torch.where(right, clips.main, torch.randint(CATEGORIES, shape, generator=generator))
    company = (clips.gold.sum(-1) > 1) & (torch.rand(shape, generator=generator) < 0.6)
    return (seen + CATEGORIES * company)[..., None]


def _teach(weights: Weights, lessons: Sequence[Lesson], steps: int, generator: Generator, batch: int = 48) -> None:
    # Supervised learning of reasoning and answer, in place; each step takes a batch of every lesson.
    optimizer = _optimizer(weights, 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        for clips, targets, sight in lessons:
            index = torch.randint(clips.main.shape[1], (batch,), generator=generator)
            some = Rollouts(targets.reasoning[:, index], targets.words[:, index])
            seen = policy.see(weights, clips.take(index))
            thought, words = _log_probabilities(weights, seen, some, policy.answer_logits(weights, seen, some, sight))
            (-(thought + words.sum(-1)).sum() / batch).backward()
        optimizer.step()
    for value in weights.values():
        value.requires_grad_(False)


def _optimizer(weights: Weights, learning_rate: float) -> torch.optim.Optimizer:
    # Adam works on each weight by itself, so the seeds stay independent.
    return torch.optim.Adam([value.requires_grad_() for value in weights.values()], lr=learning_rate)


def _log_probabilities(weights: Weights, seen: Tensor, rollouts: Rollouts, logits: Tensor) -> tuple[Tensor, Tensor]:
    # Of the reasoning token (S, N, G), 0 if empty, and of the answer's tokens (S, N, G, L), 0 behind the first stop.
    words = logits.log_softmax(-1).gather(-1, rollouts.words[..., None]).squeeze(-1) * rollouts.written
    if bool((rollouts.reasoning == EMPTY).all()):
        return torch.zeros_like(words[..., 0]), words
    return policy.reasoning_logits(weights, seen).log_softmax(-1).gather(-1, rollouts.reasoning), words


def reinforce(formula: Formula, start: Weights, setup: Setup, sight: float) -> tuple[Weights, Weights]:
    """RL with a formula's advantages; returns new weights after a third of the steps, and after all."""
    generator, noise = torch.Generator().manual_seed(11), torch.Generator().manual_seed(12)
    weights = {name: value.clone() for name, value in start.items()}
    early = start
    optimizer = _optimizer(weights, setup.learning_rate)
    for step in range(setup.steps):
        if step == setup.steps // 3:
            early = {name: value.detach().clone() for name, value in weights.items()}
        clips = policy.make_clips(setup.seeds, setup.prompts, generator)
        with torch.no_grad():
            rollouts = policy.roll_out(weights, clips, setup.rollouts, sight, generator)
        optimizer.zero_grad()
        _loss(formula, weights, start, (clips, rollouts, sight), setup, noise).backward()
        optimizer.step()
    return early, {name: value.detach() for name, value in weights.items()}


def _loss(formula: Formula, weights: Weights, start: Weights, batch: Lesson, setup: Setup, noise: Generator) -> Tensor:
    # GRPO with one update per batch: the ratio to the sampling policy is 1, so its clipping never acts.
    clips, rollouts, sight = batch
    seen = policy.see(weights, clips)
    logits = policy.answer_logits(weights, seen, rollouts, sight)
    thought, words = _log_probabilities(weights, seen, rollouts, logits)
    with torch.no_grad():
        cold_seen = policy.see(start, clips)
        cold_logits = policy.answer_logits(start, cold_seen, rollouts, sight)
        cold_thought, cold_words = _log_probabilities(start, cold_seen, rollouts, cold_logits)
        terms: Sequence[Tensor] = ()
        if formula.terms:
            empty = Rollouts(torch.full_like(rollouts.reasoning, EMPTY), rollouts.words)
            fast, frozen = (
                policy.answer_logits(weights, seen, empty, 1.0),
                policy.answer_logits(start, cold_seen, empty, 1.0),
            )
            # The first word's logits are the same for all rollouts of a clip.
            terms = TERMS[formula.terms](Context(logits, fast, frozen[:, :, 0, 0], rollouts, clips, noise))
        of_words, of_thought = advantages(formula, policy.scores(rollouts, clips), terms)
    gain = (of_words[..., None] * words).sum(-1) + of_thought * thought
    # Positions behind the stop have log-probability 0 in both policies, so they add no penalty.
    penalty = _kl(words, cold_words).sum(-1) + _kl(thought, cold_thought)
    return -((gain - setup.beta * penalty) / (rollouts.written.sum(-1) + 1)).mean((1, 2)).sum()


def _kl(log_probability: Tensor, reference: Tensor) -> Tensor:
    # The estimate of the KL divergence that GRPO uses.
    return (reference - log_probability).exp() - (reference - log_probability) - 1


@torch.no_grad()
def evaluate(weights: Weights, clips: Clips, setup: Setup, sight: float) -> dict[str, Any]:
    """Scores of sampled answers to test clips, drawn with random numbers that are the same for all policies.

    Returns:
        "slow" and "fast": mean recall, precision, f1 and words over seeds; "f1": the slow F1 of each seed; "explained":
        mean of `explained_share`.
    """
    found: dict[str, Any] = {}
    for mode, seeing in (("slow", sight), ("fast", None)):
        values = _test_scores(weights, clips, setup, seeing)
        found[mode] = {name: round(float(value.mean()), 5) for name, value in values.items()}
        found.setdefault("f1", _per_seed(values["f1"]))  # of slow answers
    found["explained"] = round(float(explained_share(weights, clips, sight).mean()), 5)
    return found


@torch.no_grad()
def slow_f1(weights: Weights, clips: Clips, setup: Setup, sight: float) -> list[float]:
    """Mean F1 of each seed's sampled slow answers."""
    return _per_seed(_test_scores(weights, clips, setup, sight)["f1"])


def _test_scores(weights: Weights, clips: Clips, setup: Setup, sight: float | None) -> dict[str, Tensor]:
    rollouts = policy.roll_out(weights, clips, setup.draws, sight, torch.Generator().manual_seed(5))
    found = dict(zip(("recall", "precision", "f1"), policy.scores(rollouts, clips), strict=True))
    return found | {"words": rollouts.is_word.sum(-1).float()}


def _per_seed(values: Tensor) -> list[float]:
    return [round(float(value), 5) for value in values.mean((1, 2))]


@torch.no_grad()
def explained_share(weights: Weights, clips: Clips, sight: float, num_clips: int = 64, count: int = 8) -> Tensor:
    """Share of F1's variance within a clip that comes from which reasoning was written, (S,) in [0, 1].

    The rest comes from sampling the answer behind it. `count` answers follow each of `count` reasonings of a clip; the
    variance of their means is corrected for the answers' own.
    """
    generator = torch.Generator().manual_seed(6)
    some = clips.take(torch.arange(min(num_clips, clips.main.shape[1])))
    seen = policy.see(weights, some)
    reasoning = policy.reason(weights, seen, count, generator).repeat_interleave(count, -1)
    f1 = policy.scores(policy.answer(weights, seen, reasoning, sight, generator), some)[2].unflatten(-1, (count, count))
    within = f1.var(-1).mean((1, 2))
    between = (f1.mean(-1).var(-1).mean(1) - within / count).clamp(min=0)
    return between / (between + within).clamp(min=1e-9)
