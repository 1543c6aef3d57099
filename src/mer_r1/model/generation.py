"""Sampling on a shared prompt: one decoding loop for rollouts and answers.

Shapes: R rows, T sampled tokens, V vocabulary, D hidden size.
"""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import torch
from torch import Tensor

from mer_r1.model.omni import Omni
from mer_r1.model.shared_prefix.continuation import Branches

_OPENED = re.compile(r"\s*<think>\s*", re.IGNORECASE)
_CLOSING = re.compile(r"\s*<think>\s*<", re.IGNORECASE)
_FOLLOWER: ContextVar[Callable[[list[int]], object] | None] = ContextVar("follower", default=None)


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled.

    Attributes:
        max_new_tokens: length limit of a completion.
        temperature: 0 decodes greedily.
        top_p: nucleus; 1 keeps every token.
        seed: seed of a generator of its own; None draws from torch's global one, whose state checkpoints keep.
        top_k: likeliest tokens that may be drawn; 0 keeps every token.
        min_p: least probability of a token that may be drawn, as a share of the likeliest token's; 0 keeps every token.

    Raises:
        ValueError: a value is out of range.
    """

    max_new_tokens: int = 96
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0

    @classmethod
    def of(cls, args: Any) -> "Sampling":
        """The sampling that TRL's `GRPOConfig` describes."""
        return cls(args.max_completion_length, args.temperature, args.top_p, None, args.top_k, args.min_p or 0.0)

    def __post_init__(self) -> None:
        """Check the ranges; written so that NaN is refused too."""
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if not (0 < self.top_p <= 1 and 0 <= self.min_p <= 1 and self.top_k >= 0):
            given = f"top_p={self.top_p}, min_p={self.min_p}, top_k={self.top_k}"
            raise ValueError(f"expected top_p above 0 and at most 1, min_p from 0 to 1, top_k from 0; got {given}")


@contextmanager
def followed(tell: Callable[[list[int]], object]) -> Iterator[None]:
    """While it lasts, each step of `decode` in this thread calls `tell` with the sampled tokens, one per row."""
    before = _FOLLOWER.set(tell)
    try:
        yield
    finally:
        _FOLLOWER.reset(before)


def decode(
    omni: Omni, model: Any, hidden: Tensor, branches: Branches, sampling: Sampling, streams: int = 1
) -> tuple[list[list[int]], list[list[float]], Tensor]:
    """Sample token by token until all rows have finished; finished rows leave the batch (`Branches.leave`).

    Each step draws a random number for every row, also for those that have left: no row's numbers depend on the others.

    Args:
        omni: tokenizer, end tokens and forbidden tokens.
        model: policy, possibly wrapped in an adapter.
        hidden: (R, D) state of each prompt's last token.
        branches: continues the prompts.
        sampling: length, temperature, truncation, seed.
        streams: number of generators, each with the seed; row r takes its numbers from generator r % streams.

    Returns:
        R lists of tokens, the end token included; R lists of their log-probabilities; and the states (R, T, D), of
        which [r, t] predicts token t.
    """
    eos = torch.tensor(omni.eos_ids, device=model.device)
    forbidden = torch.tensor(omni.forbidden_ids, device=model.device)
    openings = Openings(omni.tokenizer, len(hidden)) if omni.settings.must_reason else None
    heights = _heights(len(hidden), sampling, streams, model.device)
    total, pad = len(hidden), omni.tokenizer.pad_token_id
    rows = torch.arange(total, device=model.device)
    done = torch.zeros(total, dtype=torch.bool, device=model.device)
    states, drawn, scored = list[Tensor](), list[Tensor](), list[Tensor]()
    tell = _FOLLOWER.get()
    for step in range(sampling.max_new_tokens):
        logits = lm_head(model, hidden)
        empty = openings.closing(logits) if openings else None
        height = None if heights is None else next(heights)[rows]
        token, logp = draw(logits, forbidden, sampling, height, empty)
        token = token.masked_fill(done, pad)
        for kept, part, fill in ((states, hidden, 0), (drawn, token, pad), (scored, logp, 0)):
            kept.append(part.new_full((total, *part.shape[1:]), fill).index_copy(0, rows, part))
        if openings:
            openings.add(token)
        if tell:
            tell(drawn[-1].tolist())
        done = done | torch.isin(token, eos)
        finished = done.cpu()
        if bool(finished.all()) or step + 1 == sampling.max_new_tokens:
            break
        if bool(finished.any()) and (stay := branches.leave(finished)) is not None:
            rows, token, done = rows[stay], token[stay], done[stay]
            if openings:
                openings.keep(stay.tolist())
        hidden = branches.run(token.unsqueeze(1), ~done.unsqueeze(1))[:, 0]
    ids, logps = torch.stack(drawn, dim=1).tolist(), torch.stack(scored, dim=1).tolist()
    return *_up_to(set(omni.eos_ids), ids, logps), torch.stack(states, dim=1)


def _up_to(
    ends: Collection[int], ids: list[list[int]], logps: list[list[float]]
) -> tuple[list[list[int]], list[list[float]]]:
    lengths = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in ids]
    return (
        [row[:length] for row, length in zip(ids, lengths, strict=True)],
        [row[:length] for row, length in zip(logps, lengths, strict=True)],
    )


def _heights(rows: int, sampling: Sampling, streams: int, device: torch.device) -> Iterator[Tensor] | None:
    # Random numbers (R, 1) of each step, one per row; None for greedy decoding, which draws none.
    if sampling.temperature == 0:
        return None
    generators: list[torch.Generator | None] = [None]
    if sampling.seed is not None:
        generators = [torch.Generator(device).manual_seed(sampling.seed) for _ in range(streams)]
    each = rows // len(generators)
    return (torch.cat([uniform(each, one, device) for one in generators], dim=1).view(-1, 1) for _ in count())


def uniform(rows: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Random numbers (R, 1) within [0, 1), one per row."""
    return torch.rand(rows, 1, generator=generator, device=device, dtype=torch.double)


def draw(
    logits: Tensor,
    forbidden: Tensor,
    sampling: Sampling,
    height: Tensor | None,
    empty: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token per row, (R,), and its log-probability, (R,), from logits (R, V).

    The random numbers are `height`, (R, 1) within [0, 1); None if greedy.

    Log-probabilities are the policy's own at this temperature, as in the loss; the forbidden tokens, those that a row
    must not take next (`empty`, (R, V) bool), top_k, top_p and min_p only shape the draw.
    """
    scaled = logits.float() / (sampling.temperature or 1.0)
    logps = scaled.log_softmax(dim=-1)
    allowed = scaled.index_fill(1, forbidden, -torch.inf)
    if empty is not None:
        allowed = allowed.masked_fill(empty, -torch.inf)
    token = allowed.argmax(dim=-1) if height is None else pick(truncated(allowed.softmax(dim=-1), sampling), height)
    return token, logps.gather(1, token.unsqueeze(1)).squeeze(1)


def truncated(probabilities: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (R, V) with 0 for the tokens that top_k, then top_p, then min_p exclude; not normalised anew.

    The nucleus counts the mass of the top_k tokens as 1, as transformers and vLLM do. The likeliest token always stays.
    """
    if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
        return probabilities
    ordered, order = probabilities.topk(min(sampling.top_k or probabilities.shape[1], probabilities.shape[1]))
    beyond = ordered < sampling.min_p * ordered[:, :1]
    if sampling.top_p < 1:
        beyond |= ordered.cumsum(dim=-1) - ordered >= sampling.top_p * ordered.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(1, order, ordered.masked_fill(beyond, 0.0))


class Openings:
    """Completions that hold no more than the tag that opens their think block, which must not be left empty.

    Reasoning begins with a character that is neither white space nor "<"; so in these rows a token that would put "<"
    after the tag must not be sampled, whether a tag is one token or several. A row that begins otherwise, as after a
    prefilled think block, is none of them.

    Args:
        tokenizer: tokenizer of the policy.
        rows: R.
    """

    def __init__(self, tokenizer: Any, rows: int) -> None:
        self.tokenizer = tokenizer
        self._texts = dict.fromkeys(range(rows), "")
        self._ids: list[list[int]] = [[] for _ in range(rows)]

    def closing(self, logits: Tensor) -> Tensor | None:
        """(R, V) bool, the tokens that must not follow, for the logits (R, V); None if no row is an opening."""
        if not self._texts:
            return None
        mask = torch.zeros(logits.shape, dtype=torch.bool)
        pieces = _pieces_with_bracket(self.tokenizer)
        for text in set(self._texts.values()):
            rows = torch.tensor([row for row, own in self._texts.items() if own == text])
            tokens = [token for token, piece in pieces if _CLOSING.match(text + piece)]
            mask[rows[:, None], torch.tensor(tokens, dtype=torch.long)] = True
        return mask.to(logits.device)

    def keep(self, rows: list[int]) -> None:
        """Keep these rows, in this order."""
        self._texts = {new: self._texts[old] for new, old in enumerate(rows) if old in self._texts}
        self._ids = [self._ids[row] for row in rows]

    def add(self, tokens: Tensor) -> None:
        """Append the sampled tokens, (R,)."""
        drawn = tokens.tolist() if self._texts else []
        for row in list(self._texts):
            self._ids[row].append(drawn[row])
            self._texts[row] = text = self.tokenizer.decode(self._ids[row])
            if not (_OPENED.fullmatch(text) or "<think>".startswith(text.strip().lower())):
                del self._texts[row]


@lru_cache(maxsize=2)
def _pieces_with_bracket(tokenizer: Any) -> list[tuple[int, str]]:
    pieces = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return [(token, piece) for token, piece in enumerate(pieces) if "<" in piece]


def pick(probabilities: Tensor, height: Tensor) -> Tensor:
    """One token per row, (R,), by inverting the cumulated probabilities (R, V) at a random number per row, (R, 1).

    torch.multinomial draws one number for every token of the vocabulary, which took a third of the tiny policy's
    sampling. A token of probability 0 is never picked.
    """
    cumulated = probabilities.double().cumsum(dim=-1)
    token = torch.searchsorted(cumulated, height * cumulated[:, -1:], right=True).squeeze(1)
    return token.clamp(max=cumulated.shape[1] - 1)


def lm_head(model: Any, hidden: Tensor) -> Tensor:
    """Next-token logits (..., V) of hidden states (..., D)."""
    logits: Tensor = model.get_output_embeddings()(hidden)
    return logits
