"""Precision, recall and F1 of sets of words, and the benchmark scores built from them.

The pure functions (`set_scores`, `corpus_scores`, `accuracy`, `weighted_f1`) know no emotions: they take any sets or
labels. `wheel_scores` and the reports add the emotion wheels: words become sectors, one set per wheel, and the numbers
are averaged over the wheels. Rewards and evaluation call the same functions.

Every empty case has a stated value. An item with an empty gold set cannot be scored: it is skipped and counted. An item
with an empty prediction scores 0. A mean over nothing is NaN, and stays NaN until it is printed.

The reports follow MER-UniBench (the AffectGPT evaluation), whose F-score is taken from the mean precision and the mean
recall of a corpus; the training rewards average the F1 of the items (docs/paper_map.md, rewards).
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from mer_r1.emotions.wheels import Taxonomy, parse_labels
from mer_r1.errors import UserError

Report = dict[str, dict[str, float]]


class SetScores(NamedTuple):
    """Precision, recall and F1 of one item, each in [0, 1]; all NaN where the gold set is empty."""

    precision: float
    recall: float
    f1: float


NOTHING_PREDICTED = SetScores(0.0, 0.0, 0.0)
"""The scores of an empty prediction: it misses every gold category."""
UNDEFINED = SetScores(math.nan, math.nan, math.nan)
"""The scores against an empty gold set: nothing can be scored."""


class CorpusScores(NamedTuple):
    """Mean precision and recall over the scored items, F of these two means, and how many items were (not) scored."""

    precision: float
    recall: float
    fscore: float
    n_scored: int
    n_skipped: int


class MeanScores(NamedTuple):
    """Means of precision, recall and F1 over the items that could be scored ("unified" scores), with counts."""

    precision: float
    recall: float
    f1: float
    n_scored: int
    n_skipped: int


def set_scores(gold: Iterable[Hashable], predicted: Iterable[Hashable]) -> SetScores:
    """Precision |G∩P|/|P|, recall |G∩P|/|G| and F1 = 2|G∩P|/(|G|+|P|) of two sets.

    Duplicates count once. An empty prediction is `NOTHING_PREDICTED`, an empty gold set `UNDEFINED`.

    >>> set_scores({"happy", "proud"}, ["happy", "calm", "calm", "sad", "shy"])
    SetScores(precision=0.25, recall=0.5, f1=0.3333333333333333)
    """
    gold, predicted = frozenset(gold), frozenset(predicted)
    if not gold:
        return UNDEFINED
    if not predicted:
        return NOTHING_PREDICTED
    shared = len(gold & predicted)
    return SetScores(shared / len(predicted), shared / len(gold), 2 * shared / (len(gold) + len(predicted)))


def wheel_scores(
    gold_labels: Iterable[str], predicted_labels: Iterable[str], taxonomy: Taxonomy, level: int = 1, junk: int = 0
) -> SetScores | None:
    """The scores of one answer, averaged over the wheels that have at least one gold word.

    Source: docs/paper_map.md, rewards.

    Args:
        gold_labels: the annotated words.
        predicted_labels: the answered words.
        taxonomy: wheels and words.
        level: ring of the wheels, 1 (default) or 2.
        junk: number of further answered words that count as wrong on each wheel (`rl.rewards`).

    Returns:
        Means over wheels, each in [0, 1]; None where no wheel has any gold word, so that nothing can be scored.
    """
    gold_labels, predicted_labels = list(gold_labels), list(predicted_labels)
    per_wheel = []
    for wheel in taxonomy.wheels:
        gold = taxonomy.categories(gold_labels, wheel, level)
        if gold:
            # Numbers are no categories.
            per_wheel.append(set_scores(gold, [*taxonomy.categories(predicted_labels, wheel, level), *range(junk)]))
    if not per_wheel:
        return None
    return SetScores(*(_mean(values) for values in zip(*per_wheel, strict=True)))


def soft_scores(
    gold: Iterable[str], predicted: Iterable[str], similarity: Callable[[str, str], float], junk: int = 0
) -> SetScores:
    """Precision s/|P|, recall s/|G| and F1 = 2s/(|G|+|P|) of two sets whose members may be alike without being equal.

    s is the largest sum of similarities over all one-to-one matchings of gold and predicted members. Equal sets score
    1; where no two different members are alike, the scores are those of `set_scores`. The empty cases are the same.

    Args:
        gold: duplicates count once.
        predicted: likewise.
        similarity: symmetric, in [0, 1], and 1 for equal members.
        junk: number of further predicted members that are wrong.
    """
    gold, predicted = sorted(set(gold)), sorted(set(predicted))
    if not gold:
        return UNDEFINED
    if not predicted:
        return NOTHING_PREDICTED
    from scipy.optimize import linear_sum_assignment  # only these scores need it

    table = [[similarity(right, left) for left in predicted] for right in gold]
    shared = math.fsum(table[row][column] for row, column in zip(*linear_sum_assignment(table, True), strict=True))
    count = len(predicted) + junk
    return SetScores(shared / count, shared / len(gold), 2 * shared / (len(gold) + count))


def label_scores(
    gold_labels: Iterable[str],
    predicted_labels: Iterable[str],
    taxonomy: Taxonomy,
    level: int = 1,
    junk: int = 0,
    repeated: int = 0,
) -> SetScores | None:
    """The scores of one answer as the taxonomy compares words: by its wheels, by meaning, or the mean of both.

    By meaning, every gold word counts, and a word that no wheel places is compared like any other. Of "both", one that
    has no gold word is left out of the mean, as a wheel is.

    Args:
        gold_labels: the annotated words.
        predicted_labels: the answered words.
        taxonomy: wheels, words, and how they are compared.
        level: ring of the wheels.
        junk: number of further answered words that count as wrong on each wheel.
        repeated: how many of these are repetitions; only they count as wrong by meaning.

    Returns:
        Scores in [0, 1]; None where nothing can be scored.
    """
    gold_labels, predicted_labels = list(gold_labels), list(predicted_labels)
    by_wheels = None
    if taxonomy.matching != "meaning":
        by_wheels = wheel_scores(gold_labels, predicted_labels, taxonomy, level, junk)
    if taxonomy.matching == "wheels":
        return by_wheels
    meaning = taxonomy.meaning
    gold, predicted = (list(map(meaning.key, words)) for words in (gold_labels, predicted_labels))
    meaning.read(gold + predicted)
    scores = mean_scores([by_wheels, soft_scores(gold, predicted, meaning.similarity, repeated)])
    return SetScores(scores.precision, scores.recall, scores.f1) if scores.n_scored else None


def mean_scores(items: Iterable[SetScores | None]) -> MeanScores:
    """Means over items, as the paper's unified scores; None and `UNDEFINED` items are skipped and counted.

    Without any scorable item the three means are NaN.
    """
    items = list(items)
    scored = [item for item in items if item is not None and not math.isnan(item.f1)]
    columns = zip(*scored, strict=True) if scored else ((), (), ())
    precision, recall, f1 = (_mean(column) for column in columns)
    return MeanScores(precision, recall, f1, len(scored), len(items) - len(scored))


def corpus_scores(golds: Iterable[Iterable[Hashable]], predictions: Iterable[Iterable[Hashable]]) -> CorpusScores:
    """Corpus scores by the MER-UniBench rule: F of the mean precision and the mean recall.

    F is NaN where both means are 0 (the reference divides 0 by 0), and all three are NaN where nothing is scored.

    Args:
        golds: one gold set per item.
        predictions: the predicted sets, in the same order.
    """
    items = [set_scores(gold, predicted) for gold, predicted in zip(golds, predictions, strict=True)]
    means = mean_scores(items)
    total = means.precision + means.recall
    fscore = 2 * means.precision * means.recall / total if total else math.nan
    return CorpusScores(means.precision, means.recall, fscore, means.n_scored, means.n_skipped)


def openset_report(gold: Mapping[str, object], predicted: Mapping[str, object], taxonomy: Taxonomy) -> Report:
    """The open-vocabulary scores of MER-UniBench and the M-avg of the OV-MER paper.

    Args:
        gold: clip name -> label string or list of labels.
        predicted: the same; names that `gold` lacks are ignored.
        taxonomy: wheels and words; the official tables give the reference's numbers.

    Returns:
        `case1`, `case2` and `case3_wheelI_levelL`, each with `precision`, `recall`, `fscore` (F of means), `n_scored`
        and `n_skipped`; `mean5_level1` and `mean5_level2`, the plain means of these over the (five) wheels; `m_avg`,
        whose `fscore` is the mean F of all the cases. One NaN makes its means NaN.

    Raises:
        UserError: a gold name has no prediction, or a label string is not one.
    """
    golds, predictions = _paired_labels(gold, predicted)
    report: Report = {}

    def add(key: str, mapping: Callable[[list[str]], frozenset[str]]) -> None:
        scores = corpus_scores(map(mapping, golds), map(mapping, predictions))
        report[key] = dict(scores._asdict())

    add("case1", lambda words: _mapped(taxonomy.base, words))
    add("case2", lambda words: _mapped(taxonomy.label, words))
    for level in (1, 2):
        for index in range(len(taxonomy.wheels)):
            add(
                f"case3_wheel{index + 1}_level{level}",
                lambda words, index=index, level=level: taxonomy.categories(words, index, level),  # type: ignore[misc]
            )
    m_avg = _mean([entry["fscore"] for entry in report.values()])
    for level in (1, 2):
        entries = [entry for key, entry in report.items() if key.startswith("case3") and key.endswith(f"level{level}")]
        report[f"mean{len(entries)}_level{level}"] = _mean_entry(entries, ("fscore", "precision", "recall"))
    report["m_avg"] = {"fscore": m_avg}
    return report


def hit_rate_report(gold: Mapping[str, object], predicted: Mapping[str, object], taxonomy: Taxonomy) -> Report:
    """The discrete score of MER-UniBench: is the gold sector among the predicted ones?

    As in the reference, predicting many labels is not penalised, and a gold string that holds several categories can
    hit more than once. `mscore` (hits per predicted category of the data set's vocabulary) does penalise it; the
    reference computes it and reports 0.

    Returns:
        `wheel1` ... `wheel5` with `hitrate`, `mscore`, `n_scored` and `n_skipped`, and `mean5` with the means of the
        first two. NaN where a wheel has no gold word at all.

    Raises:
        UserError: a gold name has no prediction, or a label string is not one.
    """
    golds, predictions = _paired_labels(gold, predicted)
    # The reference looks the vocabulary up without lower-casing or trimming it first.
    vocabulary = [word for words in golds for word in words if word == word.lower().strip()]
    report: Report = {}
    for index in range(len(taxonomy.wheels)):
        candidates = taxonomy.categories(vocabulary, index)
        hits, mscores = [], []
        for gold_words, predicted_words in zip(golds, predictions, strict=True):
            gold_set = taxonomy.categories(gold_words, index)
            if not gold_set:
                continue
            predicted_set = taxonomy.categories(predicted_words, index)
            hits.append(float(len(gold_set & predicted_set)))
            in_vocabulary = len(predicted_set & candidates)
            mscores.append(hits[-1] / in_vocabulary if in_vocabulary else 0.0)
        counts = {"n_scored": len(hits), "n_skipped": len(golds) - len(hits)}
        report[f"wheel{index + 1}"] = {"hitrate": _mean(hits), "mscore": _mean(mscores), **counts}
    report[f"mean{len(report)}"] = _mean_entry(list(report.values()), ("hitrate", "mscore"))
    return report


def sentiment_report(gold: Mapping[str, object], predicted: Mapping[str, object]) -> dict[str, float]:
    """The sentiment score of MER-UniBench: two classes, positive (value > 0) and not.

    Items with gold value 0 are dropped. A reply counts as positive only where it is exactly "positive"; neutral and
    unreadable replies therefore count as negative, as in the reference.

    Args:
        gold: clip name -> sentiment value.
        predicted: clip name -> reply, one of "positive", "negative", "neutral".

    Returns:
        `waf` (weighted F1), `accuracy`, `n_scored`, `n_skipped`.

    Raises:
        UserError: a prediction is missing, a gold value is not a number, or every gold value is 0.
    """
    _require_names(gold, predicted)
    for name, value in gold.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise UserError(f"gold of {name!r}: expected a number (above 0 = positive), got {value!r:.80}")
    names = [name for name, value in gold.items() if value != 0]
    if not names:
        raise UserError(f"gold: all {len(gold)} sentiment values are 0 (neutral), so there is nothing to score")
    gold_classes = [float(gold[name]) > 0 for name in names]  # type: ignore[arg-type]
    predicted_classes = [predicted[name] == "positive" for name in names]
    return {
        "waf": weighted_f1(gold_classes, predicted_classes),
        "accuracy": accuracy(gold_classes, predicted_classes),
        "n_scored": len(names),
        "n_skipped": len(gold) - len(names),
    }


def accuracy(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Share of equal pairs, in [0, 1]; NaN for no pairs.

    >>> accuracy(["a", "b", "b", "b"], ["a", "b", "a", "b"])
    0.75
    """
    return _mean([float(left == right) for left, right in zip(gold, predicted, strict=True)])


def weighted_f1(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Weighted average F1 (WAF): F1 of each gold class, weighted by its gold count, in [0, 1]; NaN for no pairs.

    A class without a true positive has F1 = 0; a class that occurs only among the predictions has no weight.
    """
    pairs = list(zip(gold, predicted, strict=True))
    if not pairs:
        return math.nan
    weighted = 0.0
    for label in set(gold):
        n_gold = sum(left == label for left, _ in pairs)
        n_predicted = sum(right == label for _, right in pairs)
        n_both = sum(left == right == label for left, right in pairs)
        weighted += n_gold * 2 * n_both / (n_gold + n_predicted)
    return weighted / len(pairs)


def _mapped(mapping: Callable[[str], str | None], words: list[str]) -> frozenset[str]:
    return frozenset(target for word in words if (target := mapping(word)) is not None)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _mean_entry(entries: Sequence[Mapping[str, float]], keys: Iterable[str]) -> dict[str, float]:
    return {key: _mean([entry[key] for entry in entries]) for key in keys}


def _paired_labels(
    gold: Mapping[str, object], predicted: Mapping[str, object]
) -> tuple[list[list[str]], list[list[str]]]:
    _require_names(gold, predicted)
    return [_named(name, gold[name], "gold") for name in gold], [_named(n, predicted[n], "prediction") for n in gold]


def _named(name: str, labels: object, side: str) -> list[str]:
    try:
        return parse_labels(labels)
    except UserError as error:
        raise UserError(f"{side} of {name!r}: {error}") from error


def _require_names(gold: Mapping[str, object], predicted: Mapping[str, object]) -> None:
    for side, given in (("gold", gold), ("predictions", predicted)):
        if not isinstance(given, Mapping):
            raise UserError(f"{side}: expected a JSON object, clip name -> value, got {given!r:.60}")
    missing = [name for name in gold if name not in predicted]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(f"predictions: {len(missing)} of {len(gold)} gold names have none: {shown}")
