"""A world of noisy clips and the policy that reasons and answers about them.

A clip shows one to three of eight emotion categories, blurred by noise. The policy writes one reasoning token, then up
to four words and a stop; each category has two words. Slow and fast thinking share all weights: a fast answer follows
an empty reasoning and sees the clip in full, a slow one follows its reasoning and sees the clip scaled by `sight`:

    answer logits = sight * clip + reasoning token + words so far + position

Shapes: S seeds, N clips, G rollouts per clip, L words, V tokens, K categories. Every weight has the axis S first, so a
sum of the seeds' losses trains them independently.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

CATEGORIES, SYNONYMS, LENGTH = 8, 2, 4
WORDS = CATEGORIES * SYNONYMS
STOP = WORDS
TOKENS = WORDS + 1
REASONINGS = 2 * CATEGORIES
EMPTY = REASONINGS
"""The reasoning token of a fast answer."""
FEATURES, HIDDEN = 16, 24
NOISE = 0.8
"""Standard deviation of a clip's noise, per feature."""
SECOND, THIRD = 0.55, 0.2
"""Probability of a second category (a neighbour of the main one) and of a further one (any)."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Clips:
    """Clips of every seed.

    Attributes:
        features: (S, N, FEATURES) what the policy sees.
        gold: (S, N, K) bool, the correct categories.
        gold_words: (S, N, WORDS) bool, the annotators' word for each of them.
        main: (S, N) the strongest category.
    """

    features: Tensor
    gold: Tensor
    gold_words: Tensor
    main: Tensor

    def take(self, index: Tensor) -> "Clips":
        """The clips at these places, for every seed."""
        return Clips(self.features[:, index], self.gold[:, index], self.gold_words[:, index], self.main[:, index])


@dataclass(frozen=True)
class Rollouts:
    """What the policy wrote.

    Attributes:
        reasoning: (S, N, G) reasoning tokens, `EMPTY` for fast answers.
        words: (S, N, G, L) words; `STOP` from the first stop on.
    """

    reasoning: Tensor
    words: Tensor

    @property
    def is_word(self) -> Tensor:
        """(S, N, G, L) bool: positions with a word, the anchors of confidence."""
        return self.words != STOP

    @property
    def written(self) -> Tensor:
        """(S, N, G, L) bool: positions that the policy chose: its words and the first stop."""
        before = torch.ones_like(self.is_word)
        before[..., 1:] = self.is_word[..., :-1]
        return before


def make_clips(seeds: int, count: int, generator: Generator) -> Clips:
    """Draw `count` clips for each seed."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(seeds, count, *shape, generator=generator)

    main = torch.randint(CATEGORIES, (seeds, count), generator=generator)
    step = torch.where(uniform() < 0.5, 1, -1)
    neighbour = (main + step) % CATEGORIES
    other = torch.randint(CATEGORIES, (seeds, count), generator=generator)
    gold = one_hot(main, CATEGORIES).bool()
    gold |= one_hot(neighbour, CATEGORIES).bool() & (uniform() < SECOND)[..., None]
    gold |= one_hot(other, CATEGORIES).bool() & (uniform() < THIRD)[..., None]
    strength = 0.6 + 0.6 * uniform(CATEGORIES)
    looks = torch.randn(CATEGORIES, FEATURES, generator=torch.Generator().manual_seed(7)) * 3 / FEATURES**0.5
    noise = torch.randn(seeds, count, FEATURES, generator=generator)
    features = (gold * strength) @ looks + NOISE * noise
    word = torch.randint(SYNONYMS, (seeds, count, CATEGORIES), generator=generator)
    gold_words = (one_hot(word, SYNONYMS).bool() & gold[..., None]).flatten(-2)
    return Clips(features, gold, gold_words, main)


def initial_weights(seeds: int, generator: Generator) -> Weights:
    """Fresh weights for each seed."""

    def normal(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(seeds, *shape, generator=generator)

    return {
        "see": normal(FEATURES**-0.5, FEATURES, HIDDEN),
        "see_bias": torch.zeros(seeds, 1, HIDDEN),
        "reason": normal(0.1, HIDDEN, REASONINGS),
        "reason_bias": torch.zeros(seeds, 1, REASONINGS),
        "clip_to_word": normal(0.1, HIDDEN, TOKENS),
        "reasoning_to_word": normal(0.1, REASONINGS + 1, TOKENS),
        "word_to_word": normal(0.1, TOKENS, TOKENS),
        "position": torch.zeros(seeds, LENGTH, TOKENS),
    }


def see(weights: Weights, clips: Clips) -> Tensor:
    """(S, N, HIDDEN): the clip as the policy perceives it."""
    return torch.tanh(clips.features @ weights["see"] + weights["see_bias"])


def reasoning_logits(weights: Weights, seen: Tensor) -> Tensor:
    """(S, N, REASONINGS) logits of the reasoning token."""
    return seen @ weights["reason"] + weights["reason_bias"]


def answer_logits(weights: Weights, seen: Tensor, rollouts: Rollouts, sight: float) -> Tensor:
    """(S, N, G, L, V) logits at every position of given answers."""
    tokens = one_hot(rollouts.words, TOKENS).to(seen.dtype)
    so_far = (tokens.cumsum(-2) - tokens).flatten(1, 3) @ weights["word_to_word"]
    start = _start(weights, seen, rollouts.reasoning, sight)
    return start[..., None, :] + weights["position"][:, None, None] + so_far.view(*tokens.shape)


def _start(weights: Weights, seen: Tensor, reasoning: Tensor, sight: float) -> Tensor:
    # (S, N, G, V): what clip and reasoning say about every word.
    thought = one_hot(reasoning, REASONINGS + 1).to(seen.dtype).flatten(1, 2) @ weights["reasoning_to_word"]
    return thought.view(*reasoning.shape, TOKENS) + sight * (seen @ weights["clip_to_word"])[:, :, None]


@torch.no_grad()
def reason(weights: Weights, seen: Tensor, count: int, generator: Generator) -> Tensor:
    """(S, N, count) sampled reasoning tokens."""
    return _draw(reasoning_logits(weights, seen)[:, :, None].expand(-1, -1, count, -1), generator)


@torch.no_grad()
def answer(weights: Weights, seen: Tensor, reasoning: Tensor, sight: float, generator: Generator) -> Rollouts:
    """Sample an answer behind each reasoning token, (S, N, G), at temperature 1."""
    logits = _start(weights, seen, reasoning, sight)
    going = torch.ones_like(reasoning, dtype=torch.bool)
    words = []
    for place in range(LENGTH):
        word = _draw(logits + weights["position"][:, None, None, place], generator)
        words.append(torch.where(going, word, STOP))
        going = going & (word != STOP)
        added = one_hot(words[-1], TOKENS).to(seen.dtype).flatten(1, 2) @ weights["word_to_word"]
        logits = logits + added.view_as(logits)
    return Rollouts(reasoning, torch.stack(words, -1))


def roll_out(weights: Weights, clips: Clips, count: int, sight: float | None, generator: Generator) -> Rollouts:
    """Sample `count` rollouts per clip: slow ones at the given sight, or fast ones for None."""
    seen = see(weights, clips)
    if sight is None:
        return answer(weights, seen, torch.full((*clips.main.shape, count), EMPTY), 1.0, generator)
    return answer(weights, seen, reason(weights, seen, count, generator), sight, generator)


def _draw(logits: Tensor, generator: Generator) -> Tensor:
    # One uniform number per token, read off the cumulative distribution: equal seeds give every policy the same random
    # numbers, so that methods are compared on common ones.
    below = logits.softmax(-1).cumsum(-1)
    chosen = torch.rand(*logits.shape[:-1], 1, generator=generator) * below[..., -1:]
    return (below <= chosen).sum(-1).clamp(max=logits.shape[-1] - 1)


def scores(rollouts: Rollouts, clips: Clips) -> tuple[Tensor, Tensor, Tensor]:
    """Recall, precision and F1 of the named categories, (S, N, G) each; 0 for an empty answer."""
    named = one_hot(rollouts.words // SYNONYMS, CATEGORIES + 1)[..., :CATEGORIES].amax(-2)
    gold = clips.gold[:, :, None].long()
    hits, size, wanted = (named * gold).sum(-1), named.sum(-1), gold.sum(-1)
    return hits / wanted, hits / size.clamp(min=1), 2 * hits / (size + wanted)
