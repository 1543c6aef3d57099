"""What the official sentiment score hides: neutral and unreadable replies that count as negative, and easy baselines.

The reference asks only "positive or not". A reply of "neutral", and any reply that is not exactly one of the three
words, is therefore a vote for negative; clips whose gold is exactly 0 are left out. Both are counted here, replies are
also read with case and punctuation forgiven, and the score of a constant reply stands beside the model's.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mer_r1.benchmarks.mer_unibench.scores.tally import Tally, sentiment_tally
from mer_r1.emotions.metrics import SENTIMENTS
from mer_r1.evaluation.labels.replies import read_sentiment

REPLIES_NAMED = 10


def reply_tally(gold: Sequence[float], replies: Sequence[object]) -> Tally:
    """The tally of the clips whose gold is not 0, by the reference's exact match."""
    pairs = [(value > 0, reply == "positive") for value, reply in zip(gold, replies, strict=True) if value != 0]
    return sentiment_tally([g for g, _ in pairs], [p for _, p in pairs])


def audit_replies(gold: Sequence[float], replies: Sequence[object]) -> dict[str, Any]:
    """Everything that the weighted F1 of a sentiment set does not show.

    Args:
        gold: sentiment values of the clips that have a prediction.
        replies: their replies.

    Returns:
        `guards` (what stands in place of an error), `n_gold_neutral` (not scored), `as_negative` (replies that count as
        negative without saying so, by reply), `forgiving` (weighted F1 with case and punctuation of replies forgiven),
        `accuracy_three` (positive, negative, neutral over all clips, forgiving) and `constant` (weighted F1 of always
        the same reply).
    """
    read = [_read(reply) for reply in replies]
    signs = {1: "positive", -1: "negative", 0: "neutral"}
    classes = [signs[(value > 0) - (value < 0)] for value in gold]
    scored = [reply for value, reply in zip(gold, replies, strict=True) if value != 0]
    silent = Counter(str(reply) for reply in scored if reply not in ("positive", "negative"))
    return {
        "guards": [] if scored else ["every gold value is 0: nothing can be scored (officially an error)"],
        "n_gold_neutral": len(gold) - len(scored),
        "as_negative": {
            "n": silent.total(),
            "neutral": silent["neutral"],
            "unreadable": sum(count for reply, count in silent.items() if reply not in SENTIMENTS),
            "replies": dict(silent.most_common(REPLIES_NAMED)),
        },
        "forgiving": _number(reply_tally(gold, read).value()),
        "accuracy_three": sum(map(str.__eq__, classes, map(str, read))) / len(gold) if gold else None,
        "constant": {
            reply: _number(reply_tally(gold, [reply] * len(gold)).value()) for reply in ("positive", "negative")
        },
    }


def _read(reply: object) -> str | None:
    return read_sentiment(reply)[0] if isinstance(reply, str) else None


def _number(value: float) -> float | None:
    return None if value != value else value
