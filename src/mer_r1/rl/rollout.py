"""Sampling: one prompt KV cache serves the fast confidence and all G rollouts.

The prompt (by far the longest part at full size) is computed once per group. The G rollouts are sampled after its keys
and values (`shared_prefix.continuation`), which are then cut back to the prompt and reused to score each rollout's
answer without its reasoning. The slow confidence costs the language-model head at the anchors only.

Source: docs/paper_map.md, "Slow-fast confidence calibration" and "Training".
Shapes: B prompts, G rollouts each, R = B*G, P prompt tokens (padded), T completion tokens, A anchors, C categories,
D hidden size.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mer_r1.emotions.thinking import ThinkingMode, prefill
from mer_r1.model.generation import Sampling, decode, lm_head
from mer_r1.model.omni import Omni, thinker
from mer_r1.model.prompts import Prompt, collate
from mer_r1.model.shared_prefix.continuation import Branches, backbone
from mer_r1.model.shared_prefix.packing import Text
from mer_r1.model.shared_prefix.readings import logits_after
from mer_r1.model.tower_outputs import media_embedded
from mer_r1.rl.anchors import AnswerTokens, answer_tokens
from mer_r1.rl.calibration import CategoryTokens, category_probabilities


@dataclass
class Rollouts:
    """Sampled completions and their confidences, in prompt order, the G rollouts of a prompt together.

    Attributes:
        completion_ids: R lists of tokens, the end token included.
        logps: R lists of log-probabilities of those tokens under the policy at `Sampling.temperature` (1 if greedy).
        anchor_rollout: (A,) the rollout of each anchor, ascending.
        slow: (A, C) category probabilities at the anchors with the rollout's own text before them; None if skipped.
        fast: (A, C) the same without the reasoning; None if skipped.
        answers: R positions of the answers and their words; empty if the confidences are skipped.
        seconds: seconds spent on "prefill", "decode", "slow" and "fast"; with vLLM on "media" instead of "prefill".
    """

    completion_ids: list[list[int]]
    logps: list[list[float]]
    anchor_rollout: Tensor
    slow: Tensor | None = None
    fast: Tensor | None = None
    answers: list[AnswerTokens] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def every(self, step: int, first: int) -> "Rollouts":
        """The rollouts first, first + step, ...; with their confidences and the seconds of all."""
        part, mine = slice(first, None, step), self.anchor_rollout % step == first
        slow, fast = (None if read is None else read[mine.to(read.device)] for read in (self.slow, self.fast))
        rows, texts = self.anchor_rollout[mine] // step, (self.completion_ids[part], self.logps[part])
        return Rollouts(*texts, rows, slow, fast, self.answers[part], self.seconds)


Confidences = TypeVar("Confidences")


def _at_rest(sample: Callable[..., Confidences]) -> Callable[..., Confidences]:
    # Evaluation mode: in training mode, gradient checkpointing discards the KV cache.
    @wraps(sample)
    def resting(omni: Omni, *args: Any, **kwargs: Any) -> Confidences:
        model = kwargs.get("model") or omni.model
        training = model.training
        model.eval()
        try:
            return sample(omni, *args, **kwargs)
        finally:
            model.train(training)

    return resting


@_at_rest
@torch.no_grad()
def rollout(
    omni: Omni,
    prompts: Sequence[Prompt],
    num_generations: int,
    sampling: Sampling,
    tokens: CategoryTokens | None = None,
    fast: bool = False,
    prefilled: str | Sequence[str] = "",
    model: Any = None,
    openings: Sequence[str] = (),
) -> Rollouts:
    """Sample G completions for each prompt and read the category confidences at their anchors.

    Args:
        omni: policy and tokenizer.
        prompts: B prompts; for fast thinking extended by its prefill (`fast_prompt`).
        num_generations: G.
        sampling: length, temperature.
        tokens: category tokens; None skips the confidences.
        fast: also score each answer without its reasoning; answers of prefilled prompts then have no anchors.
        prefilled: text at the end of the prompts, or of each, that the completions continue (`thinking.prefill`).
        model: policy, if not ``omni.model`` (for example an adapter around it).
        openings: G texts, each the beginning of one of a prompt's completions, which continue it; prompts then have no
            `prefilled` text. With a seed, each opening's completions are those that it would have alone.
    """
    model = model or omni.model
    clock = Clock()
    heads = [list(omni.tokenizer(text)["input_ids"]) for text in openings]
    room = sampling.max_new_tokens + max(map(len, heads), default=0)
    first_hidden, branches = _prefill(omni, model, prompts, num_generations, room)
    if any(heads):
        first_hidden = _after_heads(omni, first_hidden, heads * len(prompts), branches)
    clock.lap("prefill")
    completion_ids, logps, hidden = decode(omni, model, first_hidden, branches, sampling, max(len(heads), 1))
    result = Rollouts(completion_ids, logps, torch.empty(0, dtype=torch.long), seconds=clock.seconds)
    clock.lap("decode")
    if tokens is None:
        return result
    begun, each = (list(openings) * len(prompts), len(hidden)) if openings else (prefilled, len(prompts))
    result.answers = answers = find_answers(omni, completion_ids, begun, each, fast)
    result.anchor_rollout = anchor_rows(answers)
    result.slow = category_probabilities(lm_head(model, _at_anchors(hidden, answers)), tokens)
    clock.lap("slow")
    if fast:
        branches.forget()
        states = _fast_states(omni, completion_ids, answers, branches)
        result.fast = category_probabilities(lm_head(model, states), tokens)
        clock.lap("fast")
    return result


@_at_rest
@torch.no_grad()
def rescore(
    omni: Omni,
    prompts: Sequence[Prompt],
    answers: Sequence[AnswerTokens],
    completion_ids: list[list[int]],
    tokens: CategoryTokens,
    fast: bool = False,
    model: Any = None,
) -> tuple[Tensor, Tensor | None]:
    """Confidences, under this policy, of completions that were sampled elsewhere: one forward pass per prompt.

    The arguments are those of `rollout`, with the R = B*G completions and where their answers lie (`answer_tokens`).

    Returns:
        `slow` and `fast` of `Rollouts`, (A, C) each; fast is None if skipped.
    """
    group = len(completion_ids) // len(prompts)
    texts = texts_to_read(omni, list(zip(completion_ids, answers, strict=True)), fast)
    found = []
    for number, prompt in enumerate(prompts):
        own = [text for kind in zip(*texts[number * group : (number + 1) * group], strict=True) for text in kind]
        read = category_probabilities(logits_after(omni, model or omni.model, prompt, own), tokens)
        found.append(read.tensor_split([sum(len(places) for _, places in own[:group])]))
    slow, direct = (torch.cat(parts) for parts in zip(*found, strict=True))
    return slow, direct if fast else None


def texts_to_read(omni: Omni, completions: Sequence[tuple[list[int], AnswerTokens]], fast: bool) -> list[list[Text]]:
    """The texts in which the confidences of completions are read, up to their last anchor, and the anchors in them.

    Args:
        omni: tokenizer.
        completions: tokens, and where the answer lies in them.
        fast: also read the answer after an empty think block.

    Returns:
        For each completion the completion itself, and if `fast` that answer.
    """
    head = _fast_head(omni)
    found: list[list[Text]] = []
    for ids, answer in completions:
        end, shift = max(answer.anchors, default=0), len(head) - answer.start
        found.append([(ids[:end], answer.anchors)])
        if fast:
            direct = head + ids[answer.start : end] if answer.anchors else []
            found[-1].append((direct, [anchor + shift for anchor in answer.anchors]))
    return found


@_at_rest
@torch.no_grad()
def fast_confidences(omni: Omni, prompts: Sequence[Prompt], tokens: CategoryTokens, model: Any = None) -> Tensor:
    """Category probabilities (B, C) at the first anchor of fast thinking, which no answer precedes: one per prompt."""
    head, policy = _fast_head(omni), model or omni.model
    logits = [logits_after(omni, policy, prompt, [(head, [len(head)])]) for prompt in prompts]
    return category_probabilities(torch.cat(logits), tokens)


def _fast_head(omni: Omni) -> list[int]:
    return list(omni.tokenizer(prefill(ThinkingMode.FAST))["input_ids"])


def find_answers(
    omni: Omni, completion_ids: Sequence[Sequence[int]], prefilled: str | Sequence[str], prompts: int, fast: bool
) -> list[AnswerTokens]:
    """Where the answers of B*G completions lie; the arguments are those of `rollout`, with the number B of prompts."""
    openings = [prefilled] * prompts if isinstance(prefilled, str) else prefilled
    each = [opening for opening in openings for _ in range(len(completion_ids) // prompts)]
    return [
        AnswerTokens(0, []) if fast and opening else answer_tokens(ids, omni.tokenizer, opening)
        for ids, opening in zip(completion_ids, each, strict=True)
    ]


def anchor_rows(answers: Sequence[AnswerTokens]) -> Tensor:
    """(A,) the rollout of each anchor, ascending."""
    return torch.tensor([row for row, found in enumerate(answers) for _ in found.anchors], dtype=torch.long)


def fast_prompt(omni: Omni, prompt: Prompt) -> Prompt:
    """The prompt that triggers a direct answer: the same, with an empty think block prefilled."""
    return prompt.extended(_fast_head(omni))


def _prefill(omni: Omni, model: Any, prompts: Sequence[Prompt], group: int, room: int) -> tuple[Tensor, Branches]:
    # Hidden state (R, D) of the last prompt token of each rollout, and the branches that continue the prompts.
    batch = collate(prompts, [[]] * len(prompts), omni.tokenizer.pad_token_id)
    ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
    with media_embedded(thinker(model), batch["media"]):
        output = backbone(model)(
            input_ids=ids, attention_mask=mask, position_ids=batch["position_ids"].to(model.device), use_cache=True
        )
    next_positions = torch.tensor([prompt.next_position for prompt in prompts], device=model.device)
    branches = Branches(model, output.past_key_values, mask, next_positions, group, room)
    return output.last_hidden_state[:, -1].repeat_interleave(group, dim=0), branches


def _after_heads(omni: Omni, hidden: Tensor, heads: list[list[int]], branches: Branches) -> Tensor:
    # The states (R, D) behind each row's first tokens; where there are none, the one of the prompt.
    begun = torch.tensor([row for row, head in enumerate(heads) if head])
    last = torch.tensor([len(head) - 1 for head in heads if head])
    return hidden.index_copy(0, begun.to(hidden.device), _continue(omni, heads, branches)[begun, last])


def _fast_states(
    omni: Omni, completion_ids: list[list[int]], answers: Sequence[AnswerTokens], branches: Branches
) -> Tensor:
    # The rollouts' answers after an empty think block, on the prompts' keys and values: the states before each anchor.
    head = _fast_head(omni)
    suffixes = [
        head + (ids[answer.start : answer.anchors[-1]] if answer.anchors else [])
        for ids, answer in zip(completion_ids, answers, strict=True)
    ]
    states = _continue(omni, suffixes, branches)
    return _at_anchors(states, answers, [len(head) - answer.start - 1 for answer in answers])


def _at_anchors(states: Tensor, answers: Sequence[AnswerTokens], shifts: Sequence[int] | None = None) -> Tensor:
    # Hidden states (A, D) at the anchors, moved by one number per rollout, out of states (R, T, D).
    moved = zip(answers, shifts or [0] * len(answers), strict=True)
    columns = [anchor + shift for answer, shift in moved for anchor in answer.anchors]
    return states[anchor_rows(answers), torch.tensor(columns, dtype=torch.long)]


def _continue(omni: Omni, texts: list[list[int]], branches: Branches) -> Tensor:
    # Hidden states (R, T, D) of one text after each prompt.
    rows = [torch.tensor(text, dtype=torch.long) for text in texts]
    ids = pad_sequence(rows, batch_first=True, padding_value=omni.tokenizer.pad_token_id)
    real = torch.arange(ids.shape[1]) < torch.tensor([len(text) for text in texts])[:, None]
    return branches.run(ids.to(omni.device), real.to(omni.device))


class Clock:
    """Sums the seconds between laps by name, in `seconds`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to `name`, after waiting for the GPU."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
