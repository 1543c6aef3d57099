"""The audited score of one set of answers, and what the official one hides.

Clips without an answer stop the official scoring. Here they are left out and counted with their reasons, and the score
with all of them wrong is given, too. The other checks concern the existing answers: words in `audit_words`, sentiments
in `audit_replies`.

The reference asks only "positive or not". A reply of "neutral", and any reply other than the three words, is therefore
a vote for negative; clips whose gold is exactly 0 are left out. Both are counted here, replies are also read with case
and punctuation forgiven, and constant replies are scored as baselines.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mer_r1.benchmarks.mer_unibench.gold import Gold
from mer_r1.benchmarks.mer_unibench.predictions import Answers
from mer_r1.benchmarks.mer_unibench.scores.audit_words import PlacedClips, audit_words
from mer_r1.benchmarks.mer_unibench.scores.tally import Tally, not_nan, sentiment_tally
from mer_r1.emotions.sentiment import SENTIMENTS
from mer_r1.emotions.wheels import Taxonomy, parse_labels
from mer_r1.errors import UserError
from mer_r1.evaluation.intervals import Array, interval_of
from mer_r1.evaluation.labels.replies import read_sentiment

NAMES_SHOWN = 3


@dataclass(frozen=True)
class Side:
    """One checkpoint's answers of one mode, and the gold of the set."""

    gold: Gold
    answers: Answers
    taxonomy: Taxonomy

    @cached_property
    def values(self) -> dict[str, Any]:
        """Clip name -> list of labels or sentiment reply, of the gold's clips with a readable one."""
        found: dict[str, Any] = {}
        for name in self.gold.values:
            if name in self.answers.values:
                value = self.answers.values[name]
                with suppress(UserError):
                    found[name] = value if self._of_sentiments else parse_labels(value)
        return found

    @cached_property
    def rows(self) -> list[str]:
        """Names of the tally's rows: all clips, in a sentiment set those with gold other than 0."""
        values = self.gold.values
        return [name for name in values if values[name] != 0] if self._of_sentiments else list(values)

    @cached_property
    def answered(self) -> NDArray[np.bool_]:
        """Whether each row has an answer, (N,)."""
        return np.array([name in self.values for name in self.rows], dtype=bool)

    @cached_property
    def tally(self) -> Tally:
        """The tally of all rows; one without an answer is wrong."""
        if not self._of_sentiments:
            return self._placed(self.rows).tally
        gold = [self.gold.values[name] for name in self.rows]
        wrong = ["negative" if value > 0 else "positive" for value in gold]
        return reply_tally(gold, [self.values.get(name, reply) for name, reply in zip(self.rows, wrong, strict=True)])

    def audit(self, samples: Array, seed: int, resamples: int) -> dict[str, Any]:
        """The audited part of the report.

        Args:
            samples: the score of the answered rows in each bootstrap draw.
            seed: of further bootstraps.
            resamples: of further bootstraps.

        Returns:
            `score` (over the answered clips, with interval), `score_missing_wrong`, `n`, `n_missing`, `missing`
            (reasons and first names), `n_unread`, `n_not_in_gold`, and the parts of `audit_words` or `audit_replies`.
        """
        kept = self.tally.only(self.answered)
        names = [name for name in self.gold.values if name in self.values]
        missing = [name for name in self.gold.values if name not in self.values]
        if self._of_sentiments:
            body = audit_replies([self.gold.values[name] for name in names], [self.values[name] for name in names])
        else:
            body = audit_words(self._placed(names), seed, resamples)
        return {
            "score": interval_of(kept.value(), samples, int(self.answered.sum())),
            "score_missing_wrong": not_nan(self.tally.value()),
            "n": len(names),
            "n_missing": len(missing),
            "missing": {"reasons": dict(Counter(map(self._reason, missing))), "names": missing[:NAMES_SHOWN]},
            "n_unread": len(self.answers.unread & set(names)),
            "n_not_in_gold": len(self.answers.values.keys() - self.gold.values.keys()),
            **body,
        }

    @property
    def _of_sentiments(self) -> bool:
        return self.gold.entry.kind == "sentiment"

    def _placed(self, names: Sequence[str]) -> PlacedClips:
        """The clips of these names on the wheels; those without an answer have no word."""
        golds = [parse_labels(self.gold.values[name]) for name in names]
        predicted = [self.values.get(name, []) for name in names]
        return PlacedClips.place(self.gold.entry.kind, golds, predicted, self.taxonomy)

    def _reason(self, name: str) -> str:
        """Why a clip has no answer, without details of this clip."""
        error = self.answers.errors.get(name)
        if error is None:
            return "its label string cannot be read" if name in self.answers.values else "not in the predictions"
        for kind in ("labels", "sentiment"):
            if error.startswith(f"{kind}:"):
                return f"no {kind} could be read from it"
        return error if error.startswith("no ") else "the prediction failed"


REPLIES_NAMED = 10


def reply_tally(gold: Sequence[float], replies: Sequence[object]) -> Tally:
    """The tally of the clips with gold other than 0, by the reference's exact match."""
    pairs = [(value > 0, reply == "positive") for value, reply in zip(gold, replies, strict=True) if value != 0]
    return sentiment_tally([g for g, _ in pairs], [p for _, p in pairs])


def audit_replies(gold: Sequence[float], replies: Sequence[object]) -> dict[str, Any]:
    """What the weighted F1 of a sentiment set hides, from the gold values and the replies of its answered clips.

    Returns:
        `guards` (replaced errors), `n_gold_neutral` (not scored), `as_negative` (other replies that count as negative,
        by reply), `forgiving` (weighted F1 with case and punctuation of replies forgiven),
        `accuracy_three` (positive, negative, neutral over all clips, forgiving) and `constant` (weighted F1 of a
        constant reply).
    """
    read = [read_sentiment(reply)[0] if isinstance(reply, str) else None for reply in replies]
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
        "forgiving": not_nan(reply_tally(gold, read).value()),
        "accuracy_three": sum(map(str.__eq__, classes, map(str, read))) / len(gold) if gold else None,
        "constant": {
            reply: not_nan(reply_tally(gold, [reply] * len(gold)).value()) for reply in ("positive", "negative")
        },
    }
