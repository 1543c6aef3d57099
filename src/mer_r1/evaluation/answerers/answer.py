"""One answer to each prompt, slow or fast, from a policy of either form.

A policy that answers once (think, then answer) is made to answer fast by an empty think block that is prefilled. One
that answers twice (`two_answers`) begins with its fast answer: stopped there it is fast, continued it is slow.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mer_r1.emotions.thinking import ThinkingMode, prefill
from mer_r1.emotions.two_answers import ONCE, first_answer_end

if TYPE_CHECKING:
    from mer_r1.model.generation import Sampling
    from mer_r1.model.omni import Omni
    from mer_r1.model.prompts import Prompt
    from mer_r1.rl.calibration import CategoryTokens
    from mer_r1.rl.rollout import Rollouts

FIRST_ANSWER_TOKENS = 64
"""Longest first answer of a policy that answers twice, in tokens; a longer one is cut when only it is wanted."""


def answer(
    omni: "Omni", prompts: "Sequence[Prompt]", mode: ThinkingMode, sampling: "Sampling", tokens: "CategoryTokens | None"
) -> "tuple[Rollouts, str]":
    """Sample one completion per prompt.

    Args:
        omni: policy; its settings say which form its completions have.
        prompts: B prompts, the same ones for both modes.
        mode: slow or fast.
        sampling: length, temperature, seed.
        tokens: category tokens; None skips the confidences. Fast answers of a policy that answers twice have none.

    Returns:
        The rollouts, one per prompt, and the text that was prefilled for each.
    """
    from mer_r1.rl.rollout import fast_prompt, rollout

    fast = mode is ThinkingMode.FAST
    if omni.settings.form == ONCE:
        opening = prefill(mode)
        asked = [fast_prompt(omni, prompt) for prompt in prompts] if fast else prompts
        return rollout(omni, asked, 1, sampling, tokens=tokens, prefilled=opening), opening
    if not fast:
        return rollout(omni, prompts, 1, sampling, tokens=tokens), ""
    short = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, FIRST_ANSWER_TOKENS))
    return _first_answers(omni, rollout(omni, prompts, 1, short)), ""


def answer_in_modes(
    omni: "Omni",
    prompts: "Sequence[Prompt]",
    modes: Sequence[ThinkingMode],
    sampling: "Sampling",
    tokens: "CategoryTokens | None",
) -> "list[tuple[Rollouts, str]]":
    """What `answer` gives in each of several modes, from one pass over the prompts and one batch.

    Both answers of a prompt continue its keys and values. A policy that answers twice is asked slowly only: its fast
    answers are the beginnings of the slow ones. Without a seed, sampled answers differ from those of a mode alone.
    """
    from mer_r1.rl.rollout import rollout

    if len(modes) == 1:
        return [answer(omni, prompts, mode, sampling, tokens) for mode in modes]
    if omni.settings.form != ONCE:
        slow, _ = answer(omni, prompts, ThinkingMode.SLOW, sampling, tokens)
        return [(_first_answers(omni, slow) if mode is ThinkingMode.FAST else slow, "") for mode in modes]
    openings = [prefill(mode) for mode in modes]
    both = rollout(omni, prompts, len(modes), sampling, tokens=tokens, openings=openings)
    return [(both.every(len(modes), place), opening) for place, opening in enumerate(openings)]


def _first_answers(omni: "Omni", sampled: "Rollouts") -> "Rollouts":
    # Up to the token that completes the first answer's closing tag; that token may also hold the next tag's bracket.
    lengths = []
    for ids in sampled.completion_ids:
        ends = range(1, min(len(ids), FIRST_ANSWER_TOKENS) + 1)
        closed = (end for end in ends if first_answer_end(omni.tokenizer.decode(ids[:end])) is not None)
        lengths.append(next(closed, len(ends)))
    texts, logps = sampled.completion_ids, sampled.logps
    return replace(
        sampled,
        completion_ids=[ids[:n] for ids, n in zip(texts, lengths, strict=True)],
        logps=[own[:n] for own, n in zip(logps, lengths, strict=True)],
        anchor_rollout=sampled.anchor_rollout[:0],
        slow=None,
        fast=None,
        answers=[],
    )


def trimmed(completion: str, mode: ThinkingMode, form: str) -> str:
    """A fast completion of the form "twice" without what its last token holds beyond the closing tag.

    >>> trimmed("<answer> sad </answer><", ThinkingMode.FAST, "twice")
    '<answer> sad </answer>'
    """
    end = first_answer_end(completion) if form != ONCE and mode is ThinkingMode.FAST else None
    return completion if end is None else completion[:end]
