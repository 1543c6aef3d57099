"""One answer to each prompt, slow or fast, from a policy of either form.

A policy that thinks once is made to answer fast by an empty think that is written for it. One that answers twice
(`two_answers`) begins with its fast answer: it is fast if it is stopped there, and slow if it goes on.
"""

from collections.abc import Sequence

from mer_r1.emotions.thinking import ThinkingMode, prefill
from mer_r1.emotions.two_answers import ONCE, first_answer_end
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Omni
from mer_r1.model.prompts import Prompt
from mer_r1.rl.calibration import CategoryTokens
from mer_r1.rl.rollout import Rollouts, fast_prompt, rollout

FIRST_ANSWER_TOKENS = 64
"""A first answer that is longer is cut there; a fast answer of a policy that answers twice costs at most these."""


def answer(
    omni: Omni, prompts: Sequence[Prompt], mode: ThinkingMode, sampling: Sampling, tokens: CategoryTokens | None
) -> tuple[Rollouts, str]:
    """Sample one completion a prompt.

    Args:
        omni: policy; its settings say which form its completions have.
        prompts: B of them, as both modes share them.
        mode: slow or fast.
        sampling: length, temperature, seed.
        tokens: category tokens; None skips the confidences. Fast answers of a policy that answers twice have none.

    Returns:
        The rollouts, one a prompt, and the text that was written for the model before each.
    """
    fast = mode is ThinkingMode.FAST
    if omni.settings.form == ONCE:
        opening = prefill(mode)
        asked = [fast_prompt(omni, prompt) for prompt in prompts] if fast else prompts
        return rollout(omni, asked, 1, sampling, tokens=tokens, prefilled=opening), opening
    if not fast:
        return rollout(omni, prompts, 1, sampling, tokens=tokens), ""
    short = Sampling(
        min(sampling.max_new_tokens, FIRST_ANSWER_TOKENS), sampling.temperature, sampling.top_p, sampling.seed
    )
    sampled = rollout(omni, prompts, 1, short)
    lengths = [_first_answer_tokens(omni, ids) for ids in sampled.completion_ids]
    sampled.completion_ids = [ids[:n] for ids, n in zip(sampled.completion_ids, lengths, strict=True)]
    sampled.logps = [logps[:n] for logps, n in zip(sampled.logps, lengths, strict=True)]
    return sampled, ""


def _first_answer_tokens(omni: Omni, ids: Sequence[int]) -> int:
    # Up to the token with which the first answer's closing tag is complete; that token may hold the next tag's bracket.
    for count in range(1, len(ids) + 1):
        if first_answer_end(omni.tokenizer.decode(ids[:count])) is not None:
            return count
    return len(ids)


def trimmed(completion: str, mode: ThinkingMode, form: str) -> str:
    """A fast completion of the form "twice" without what its last token holds beyond the closing tag.

    >>> trimmed("<answer> sad </answer><", ThinkingMode.FAST, "twice")
    '<answer> sad </answer>'
    """
    end = first_answer_end(completion) if form != ONCE and mode is ThinkingMode.FAST else None
    return completion if end is None else completion[:end]
