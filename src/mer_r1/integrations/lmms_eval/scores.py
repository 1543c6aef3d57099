"""Scores of lmms-eval: answers read by rule, metrics by the functions of `mer-r1 score`.

lmms-eval reduces one list of values per metric. A weighted F1, or an F over five wheels, is not a mean of per-clip
values: so each value is the whole item (gold and prediction), and the metric is computed from all of them at once.

Answers are read by rule alone: the words inside `<answer>`. A text without such a list, or a blank answer (which
lmms-eval also saves when a model fails), is an empty prediction and counts in `unread`: above 0, the other numbers are
too low. `python -m mer_r1.integrations.lmms_eval answers` exports the answers for `mer-r1 extract`, where a language
model reads them as the benchmark does. Sentiments come from the wheels, not from a language model.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

from mer_r1.benchmarks.mer_unibench.scores.official import OfficialScore, official_score
from mer_r1.benchmarks.mer_unibench.sets import SETS
from mer_r1.benchmarks.mme_emotion.scores.label_match import LabelItem, gold_labels, match
from mer_r1.benchmarks.mme_emotion.tasks import TASKS
from mer_r1.emotions.metrics import MeanScores, mean_scores, wheel_scores
from mer_r1.emotions.wheels import parse_labels
from mer_r1.errors import UserError
from mer_r1.evaluation.labels.extract import labels_by_rule, sentiments_by_rule
from mer_r1.integrations.lmms_eval.documents import Document, wheels

logger = logging.getLogger(__name__)

Item = dict[str, Any]
"""One scored answer: `set`, `id`, `gold`, `predicted` and `unread` (why the prediction is empty, or None); of
MME-Emotion `set`, `id`, `gold` and `score`."""

WORD_METRICS = ("score", "unified_precision", "unified_recall", "unified_f1", "unread")
SENTIMENT_METRICS = ("score", "accuracy", "unread")
MME_METRICS = ("label_match", "any_hit", "unread")


def unibench_results(doc: Document, results: Sequence[str]) -> dict[str, Item]:
    """Hook of MER-UniBench: an answer becomes labels or a sentiment, the same item for every metric."""
    entry = SETS[doc["set"]]
    predicted, unread = read_answer(results[0], entry.kind == "sentiment")
    item = {name: doc[name] for name in ("set", "id", "gold")} | {"predicted": predicted, "unread": unread}
    return dict.fromkeys(SENTIMENT_METRICS if entry.kind == "sentiment" else WORD_METRICS, item)


def read_answer(text: str, sentiment: bool) -> tuple[str, str | None]:
    """Read an answer by rule.

    Args:
        text: whole answer.
        sentiment: whether to return a sentiment.

    Returns:
        The label string or the sentiment; and the reason if nothing could be read, else None.
    """
    rule = labels_by_rule(text)
    unread = "no list of words in an <answer>" if rule is None else "blank" if rule.source == "empty" else None
    labels = "[]" if rule is None or rule.value is None else rule.value
    if not sentiment:
        return labels, unread
    found = sentiments_by_rule([labels], wheels())[0]
    return found.value or "", unread or found.error


def score(items: Sequence[Item]) -> float:
    """The set's official main number, in [0, 1]: hit rate, weighted F1 or mean F; NaN where the reference gives NaN."""
    return _official(items)["main"]


def accuracy(items: Sequence[Item]) -> float:
    """Accuracy of a sentiment set, the reference's second number, in [0, 1]."""
    return _official(items)["second"]


def unified_precision(items: Sequence[Item]) -> float:
    """Mean over clips of the precision over wheels (docs/paper_map.md), in [0, 1]; over-prediction lowers it."""
    return _unified(items).precision


def unified_recall(items: Sequence[Item]) -> float:
    """Mean over clips of the recall over wheels, in [0, 1]."""
    return _unified(items).recall


def unified_f1(items: Sequence[Item]) -> float:
    """Mean over clips of the F1 over wheels, in [0, 1]."""
    return _unified(items).f1


def unread(items: Sequence[Item]) -> float:
    """Share of unreadable answers, in [0, 1]; they count as empty predictions."""
    reasons = [item["unread"] for item in items if item["unread"] is not None]
    if reasons:
        logger.warning(
            "%s: %d of %d answers cannot be read by rule and count as empty predictions (%s)",
            items[0]["set"],
            len(reasons),
            len(items),
            "; ".join(f"{reason}: {reasons.count(reason)}" for reason in sorted(set(reasons))[:3]),
        )
    return len(reasons) / len(items) if items else math.nan


def mme_results(doc: Document, results: Sequence[str]) -> dict[str, Item]:
    """Hook of MME-Emotion: recognition by label match, without a judge; this is NOT the benchmark's score.

    See `mme_emotion.scores.label_match`; the benchmark's own numbers need `mer-r1 eval mme-emotion`.
    """
    task = TASKS[doc["set"]]
    gold = gold_labels(doc["gold"]) if task.fraction else (doc["gold"],)
    candidates = tuple(doc["candidates"]) if doc["candidates"] else None
    found, hit, understood = match(LabelItem(task.name, results[0], gold, candidates), wheels())
    values = (found, hit, float(not understood))
    about = {name: doc[name] for name in ("set", "id", "gold")}
    return {metric: {**about, "score": value} for metric, value in zip(MME_METRICS, values, strict=True)}


def mean_score(items: Sequence[Item]) -> float:
    """The mean of the items' scores; NaN without items."""
    return math.fsum(item["score"] for item in items) / len(items) if items else math.nan


def _official(items: Sequence[Item]) -> OfficialScore:
    gold, predicted = ({item["id"]: item[side] for item in items} for side in ("gold", "predicted"))
    try:
        return official_score(SETS[items[0]["set"]].kind, gold, predicted, wheels())
    except UserError as error:  # the reference raises here; the results of all other sets would be lost
        logger.warning("%s: no score: %s", items[0]["set"], error)
        return {"main": math.nan, "second": math.nan, "third": math.nan, "report": {}}


def _unified(items: Sequence[Item]) -> MeanScores:
    return mean_scores(
        wheel_scores(parse_labels(item["gold"]), parse_labels(item["predicted"]), wheels()) for item in items
    )
