"""The official arithmetic: from the text a judge wrote to the numbers of the leaderboard.

A judge answers `<score>Step 1: 1/1, Step 2: 0/1</score>`. The last rating found is the item's recognition, the mean of
the others its reasoning (0 where there is only one), and their number its step count. A task's scores are means over
the items whose text could be read; CoT mixes the two means. The overall score pools the items of all tasks.

Everything here follows the reference (FunAudioLLM/MME-Emotion, commit 0c265d8) in every oddity: only the first tag pair
counts and only within one line; six tasks see no rating but `: d/1` with one blank, so that `1/2` is skipped and the
rating before it becomes the recognition; numbers above 1 are accepted; and an item that cannot be read leaves the
denominator, so that failures do not lower a score. `scores.audit` shows what that hides.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mer_r1.benchmarks.mme_emotion.tasks import Task, grouped
from mer_r1.errors import UserError

ALPHA = 0.5
"""Weight of recognition in CoT, as in the reference."""

_BLOCK = re.compile("<score>(.*?)</score>")  # without DOTALL: a line break inside hides the block
_BINARY = re.compile(r": (\d)/1")
_FRACTION = re.compile(r":\s*(\d+)/(\d+)")


class ItemScores(NamedTuple):
    """Scores of one item: recognition, reasoning (both usually in [0, 1]; neither is clipped) and number of ratings."""

    recognition: float
    reasoning: float
    steps: int

    def cot(self, alpha: float = ALPHA) -> float:
        """Mixed as alpha x recognition + (1 - alpha) x reasoning; its mean over items is the task's CoT score."""
        return alpha * self.recognition + (1 - alpha) * self.reasoning


@dataclass(frozen=True)
class Totals:
    """Scores over items: count and sums, their means (0 without items), and CoT from the means."""

    count: int
    sum_recognition: float
    sum_reasoning: float
    sum_steps: int
    recognition: float
    reasoning: float
    cot: float
    avg_step: float


def parse_ratings(field: object, fraction: bool) -> list[float] | None:
    """The ratings in a `score` field, in order.

    Args:
        field: value in the judged file: a text, null, or anything else, which is read as Python prints it.
        fraction: True reads every `a/b` (0 where b is 0), False reads `d/1` of one digit after exactly one blank.

    Returns:
        The ratings, [] for a block without any; None without a readable block. Values are not clipped to [0, 1].

    >>> parse_ratings("<score>Step 1: 1/1, Step 2: 2/3</score>", fraction=True)
    [1.0, 0.6666666666666666]
    >>> parse_ratings("<score>Step 1: 1/1, Step 2: 2/3</score>", fraction=False)
    [1]
    """
    block = _BLOCK.search(str(field))
    if block is None:
        return None
    if not fraction:
        return [int(digit) for digit in _BINARY.findall(block.group(1))]
    pairs = _FRACTION.findall(block.group(1))
    try:
        return [int(top) / int(bottom) if int(bottom) else 0.0 for top, bottom in pairs]
    except (ValueError, OverflowError):  # thousands of digits: the reference stops with an error here
        return None


def item_scores(ratings: Sequence[float] | None) -> ItemScores | None:
    """Scores of one item; None where there is no rating, so that the item leaves every sum and the count.

    >>> item_scores([1, 0, 1])
    ItemScores(recognition=1, reasoning=0.5, steps=3)
    """
    if not ratings:
        return None
    *before, last = ratings
    return ItemScores(last, sum(before) / len(before) if before else 0.0, len(ratings))


def score_field(field: object, fraction: bool) -> ItemScores | None:
    """Scores of one judged item; None if it cannot be read."""
    return item_scores(parse_ratings(field, fraction))


def totals(items: Iterable[ItemScores | None], alpha: float = ALPHA) -> Totals:
    """Sums and means over the items that could be read; all 0 without any.

    Raises:
        UserError: `alpha`, the weight of recognition in CoT, lies outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha: got {alpha}, expected a weight from 0 to 1")
    read = [item for item in items if item is not None]
    recognition = sum(item.recognition for item in read)
    reasoning = sum(item.reasoning for item in read)
    steps = sum(item.steps for item in read)
    count = len(read)
    means = [value / count if count else 0.0 for value in (recognition, reasoning, steps)]
    cot = alpha * means[0] + (1 - alpha) * means[1]
    return Totals(count, recognition, reasoning, steps, means[0], means[1], cot, means[2])


def category_totals(
    rows: Iterable[tuple[object, ItemScores | None]], task: Task, alpha: float = ALPHA
) -> dict[str, Totals]:
    """`totals` of each gold label, by name; labels that the task spells in two ways are merged (ER-Wild).

    Categories without a readable item are left out.
    """
    groups = grouped((row for row in rows if row[1] is not None), lambda row: category(row[0], task))
    return {name: totals((scores for _, scores in groups[name]), alpha) for name in sorted(groups)}


def category(gold: object, task: Task) -> str:
    """The category that a gold label counts under: its text, with the task's two spellings merged."""
    name = gold if isinstance(gold, str) else ",".join(map(str, gold)) if isinstance(gold, list) else str(gold)
    return task.merged.get(name, name)
