"""What the official number hides about words: skipped clips, unknown words, words in foreign sectors.

A hit rate measures one thing: whether the gold category is among the predicted ones. This module adds the number of
categories per prediction, precision, recall and F1, the share of words that each wheel knows, the gold words that make
a clip drop out, and the score of an answer that names every emotion.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mer_r1.benchmarks.mer_unibench.scores.tally import Tally, not_nan, word_tally
from mer_r1.benchmarks.mer_unibench.sets import Kind
from mer_r1.emotions.metrics import UNDEFINED, SetScores, label_scores, mean_scores
from mer_r1.emotions.official_wheels import normalise
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.evaluation.intervals import bootstraps, known_mean

WORDS_NAMED = 10
"""Length of a list of example words; their total is given, too."""


@dataclass(frozen=True)
class PlacedClips:
    """Clips with their words placed on the wheels (ring 1).

    Attributes:
        gold: the gold words of each clip.
        predicted: its predicted words.
        gold_sets: per wheel the gold categories of each clip.
        predicted_sets: likewise.
    """

    kind: Kind
    gold: Sequence[Sequence[str]]
    predicted: Sequence[Sequence[str]]
    gold_sets: Sequence[Sequence[frozenset[str]]]
    predicted_sets: Sequence[Sequence[frozenset[str]]]
    taxonomy: Taxonomy

    @classmethod
    def place(
        cls, kind: Kind, gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], taxonomy: Taxonomy
    ) -> "PlacedClips":
        """Place every word on the wheels."""
        return cls(kind, gold, predicted, _sets(gold, taxonomy), _sets(predicted, taxonomy), taxonomy)

    @cached_property
    def tally(self) -> Tally:
        """Per-clip counts of the headline number."""
        return word_tally(self.kind, self.gold_sets, self.predicted_sets)

    def unified(self) -> list[SetScores | None]:
        """Precision, recall and F1 of each clip, as the taxonomy compares words; by its wheels they are the paper's."""
        pairs = zip(self.gold, self.predicted, strict=True)
        return [label_scores(gold, predicted, self.taxonomy) for gold, predicted in pairs]


def audit_words(clips: PlacedClips, seed: int, resamples: int) -> dict[str, Any]:
    """What the headline number of a discrete or open-set data set hides, from its clips with a prediction.

    Returns:
        `guards` (replaced NaN), `n_without_labels`, `unified` (precision, recall, F1 and `matching`), `labels` and
        `categories` (their mean numbers), `skipped`, `coverage`, `everything` (the baseline that names every gold word
        of the set at once) and `strays`.
    """
    unified = clips.unified()
    values = [UNDEFINED if scores is None else scores for scores in unified]
    columns = {name: [scores[place] for scores in values] for place, name in enumerate(("precision", "recall", "f1"))}
    intervals = bootstraps(columns, seed=seed, resamples=resamples)
    counts = mean_scores(unified)
    return {
        "guards": _guards(clips),
        "n_without_labels": sum(not words for words in clips.predicted),
        "unified": {
            **intervals,
            "n_scored": counts.n_scored,
            "n_skipped": counts.n_skipped,
            "matching": clips.taxonomy.compared_by,
        },
        "labels": {"predicted": known_mean(map(len, clips.predicted)), "gold": known_mean(map(len, clips.gold))},
        "categories": _categories(clips),
        "skipped": _skipped(clips),
        "coverage": _coverage(clips),
        "everything": _everything(clips),
        "strays": _strays(clips),
    }


def stray_labels(taxonomy: Taxonomy, wheel: int, level: int = 1) -> dict[str, tuple[str, str | None]]:
    """Labels of a wheel that the look-up does not put into their own sector there.

    The official rule takes the alphabetically first of a word's candidate labels, regardless of its meaning: "fear"
    becomes happy on one of the official wheels.

    Args:
        taxonomy: wheels and words.
        wheel: 0-based place of the wheel.
        level: its ring.

    Returns:
        Label -> (its own sector, the one it is put into; None: dropped).
    """
    own = taxonomy.wheel(wheel).level(level)
    placed = {label: taxonomy.sector(label, wheel, level) for label in own}
    return {label: (sector, placed[label]) for label, sector in own.items() if placed[label] != sector}


def _sets(clips: Sequence[Sequence[str]], taxonomy: Taxonomy) -> list[list[frozenset[str]]]:
    return [[taxonomy.categories(words, wheel) for words in clips] for wheel in taxonomy.wheels]


def _guards(clips: PlacedClips) -> list[str]:
    """Where the official number is NaN, and what stands in its place."""
    found = []
    for index, (gold, predicted) in enumerate(zip(clips.gold_sets, clips.predicted_sets, strict=True), start=1):
        if not any(gold):
            found.append(f"wheel{index} places no gold word: left out of the mean over wheels (officially NaN)")
        elif clips.kind == "open-set" and not any(g & p for g, p in zip(gold, predicted, strict=True)):
            found.append(f"wheel{index}: precision and recall are 0: F is 0 (officially NaN)")
    return found


def _categories(clips: PlacedClips) -> dict[str, Any]:
    """Mean number of categories per scored clip, predicted and gold, over the wheels: over-prediction shows here."""
    per_wheel: dict[str, dict[str, float | None]] = {}
    for index, (gold, predicted) in enumerate(zip(clips.gold_sets, clips.predicted_sets, strict=True), start=1):
        scored = [(len(g), len(p)) for g, p in zip(gold, predicted, strict=True) if g]
        per_wheel[f"wheel{index}"] = {
            "predicted": known_mean(p for _, p in scored),
            "gold": known_mean(g for g, _ in scored),
        }
    means = {side: known_mean(entry[side] for entry in per_wheel.values()) for side in ("predicted", "gold")}
    return {**means, **per_wheel}


def _skipped(clips: PlacedClips) -> dict[str, Any]:
    """Per wheel, how many clips are not scored because the wheel places none of their gold words, and which words."""
    found = {}
    for index, gold_sets in enumerate(clips.gold_sets, start=1):
        words: Counter[str] = Counter()
        dropped = [gold for gold, placed in zip(clips.gold, gold_sets, strict=True) if not placed]
        for gold in dropped:
            words.update(set(map(normalise, gold)) or {"(no gold word)"})
        found[f"wheel{index}"] = {"n": len(dropped), "words": dict(words.most_common(WORDS_NAMED))}
    return found


def _coverage(clips: PlacedClips) -> dict[str, Any]:
    """Per wheel, the share of all gold and of all predicted words that it can place; None where there are no words."""
    found = {}
    for index in range(len(clips.taxonomy.wheels)):
        placed = clips.taxonomy.placed(index)
        found[f"wheel{index + 1}"] = {
            side: known_mean(normalise(word) in placed for words in clip_words for word in words)
            for side, clip_words in (("gold", clips.gold), ("predicted", clips.predicted))
        }
    return found


def _everything(clips: PlacedClips) -> dict[str, Any]:
    """What an answer scores that names every gold word of the set for every clip."""
    words = sorted({normalise(word) for gold in clips.gold for word in gold})
    count = len(clips.gold)
    sets = [[clips.taxonomy.categories(words, wheel)] * count for wheel in clips.taxonomy.wheels]
    baseline = replace(clips, predicted=[words] * count, predicted_sets=sets)
    means = mean_scores(baseline.unified())
    return {
        "words": len(words),
        "score": not_nan(baseline.tally.value()),
        "precision": means.precision,
        "recall": means.recall,
        "f1": means.f1,
        "categories": _categories(baseline)["predicted"],
    }


def _strays(clips: PlacedClips) -> dict[str, Any]:
    """Per wheel, words of gold and predictions that are labels of the wheel and still land in another sector."""
    sides = {
        side: Counter(normalise(word) for words in clip_words for word in words)
        for side, clip_words in (("gold", clips.gold), ("predicted", clips.predicted))
    }
    found: dict[str, Any] = {}
    for index, wheel in enumerate(clips.taxonomy.wheels):
        stray = stray_labels(clips.taxonomy, index)
        entry: dict[str, Any] = {"labels": len(stray), "of": len(wheel.level1)}
        for side, counts in sides.items():
            hit = Counter({word: counts[word] for word in stray if word in counts})
            examples = [
                {"word": word, "own": stray[word][0], "placed": stray[word][1], "n": n}
                for word, n in hit.most_common(WORDS_NAMED)
            ]
            entry[side] = {"n": hit.total(), "words": examples}
        found[f"wheel{index + 1}"] = entry
    return found
