"""Anchors: where the words of an answer begin, in tokens, and which tokens can begin a word of which category.

The calibration reads the policy's next-token probabilities where each emotion word of the answer begins. This file ties
the words (`emotions.wheels`, `emotions.thinking`) to a tokenizer; the numbers are computed in `calibration`.
Source: the authors' fork (docs/paper_map.md, "Slow-fast confidence calibration").
Shapes: R rollouts (B*G), C categories over all partitions (wheels).
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mer_r1.emotions.thinking import TAG, answer_word_spans
from mer_r1.emotions.wheels import Taxonomy, parse_labels
from mer_r1.rl.calibration import (
    CategoryTokens,
    answer_terms,
    calibration_terms,
    conditional,
    confidence,
    hinge_terms,
    known_categories,
    reasoning_term,
)
from mer_r1.rl.method import Method

_PIECES: WeakKeyDictionary[Any, dict[int, str]] = WeakKeyDictionary()
"""Tokenizer -> text of each token seen so far; decoding them again took half of the time of the calibration."""


@dataclass(frozen=True)
class AnswerTokens:
    """Position of a completion's answer, in tokens.

    Attributes:
        start: first token after the tag that opens the answer (0 if that tag was prefilled).
        anchors: first token of each emotion word, ascending; empty if the answer has none.
        words: the emotion word of each anchor, as written.
    """

    start: int
    anchors: list[int]
    words: list[str] = field(default_factory=list)


def answer_tokens(completion_ids: Sequence[int], tokenizer: Any, prefilled: str = "") -> AnswerTokens:
    """Find the answer and its words among the tokens of a completion.

    Args:
        completion_ids: sampled tokens.
        tokenizer: tokenizer of the policy.
        prefilled: text that the completion continues (`thinking.prefill`), not part of its tokens.
    """
    # Without special tokens, as rewards and records read it: the end token of an empty answer is not a word.
    text = tokenizer.decode(completion_ids, skip_special_tokens=True)
    spans = [(start - len(prefilled), end - len(prefilled)) for start, end in answer_word_spans(prefilled + text)]
    spans = [span for span in spans if span[0] >= 0]
    if not spans:
        return AnswerTokens(0, [])
    ends = _token_ends(completion_ids, text, tokenizer)
    words = {bisect_right(ends, start): text[start:end] for start, end in reversed(spans)}
    anchors = sorted(words)
    # The answer begins after the last tag before its first word, well-formed or not, so it contains no reasoning.
    tags = [tag.end() for tag in TAG.finditer(text, 0, spans[0][0])]
    start = bisect_right(ends, tags[-1] - 1) + 1 if tags else 0
    return AnswerTokens(min(start, anchors[0]), anchors, [words[anchor] for anchor in anchors])


def _token_ends(completion_ids: Sequence[int], text: str, tokenizer: Any) -> list[int]:
    # Character offset at which each token ends. Where tokens split a character, the pieces do not add up to the text;
    # then each prefix is decoded, which is always right but slow.
    known = _PIECES.setdefault(tokenizer, {})
    if new := [token for token in dict.fromkeys(completion_ids) if token not in known]:
        pieces = tokenizer.batch_decode([[token] for token in new], skip_special_tokens=True)
        known.update(zip(new, pieces, strict=True))
    pieces = [known[token] for token in completion_ids]
    if "".join(pieces) == text:
        return list(accumulate(len(piece) for piece in pieces))
    return [len(tokenizer.decode(completion_ids[: i + 1], skip_special_tokens=True)) for i in range(len(pieces))]


def category_tokens(
    taxonomy: Taxonomy, tokenizer: Any, level: str = "category"
) -> tuple[CategoryTokens, list[tuple[str, str]]]:
    """The tokens that begin any word of each category; a token of several categories of one wheel is left out.

    Args:
        taxonomy: wheels and word forms.
        tokenizer: tokenizer of the policy.
        level: "category" has one partition per wheel with its level-1 sectors; "word" one partition with a category per
            base word (variant A1: word-level confidence).

    Returns:
        The token sets, and the (partition, category) name of each of the C columns.
    """
    partitions = _words_of_categories(taxonomy, level)
    words = {word for _, members in partitions for forms in members.values() for word in forms}
    begins = _first_tokens(words, tokenizer)
    names = [(partition, category) for partition, members in partitions for category in members]
    token_ids: list[int] = []
    category: list[int] = []
    partition: list[int] = []
    for index, (_, members) in enumerate(partitions):
        owners = _sole_owners([set().union(*(begins[word] for word in forms)) for forms in members.values()])
        token_ids += owners
        category += [len(partition) + owner for owner in owners.values()]
        partition += [index] * len(members)
    tensors = (torch.tensor(values, dtype=torch.long) for values in (token_ids, category, partition))
    return CategoryTokens(*tensors), names


def _sole_owners(token_sets: Sequence[set[int]]) -> dict[int, int]:
    # Token, ascending -> index of the only set that has it; tokens of several sets are left out.
    counts = Counter(token for tokens in token_sets for token in tokens)
    owners = {token: index for index, tokens in enumerate(token_sets) for token in tokens if counts[token] == 1}
    return dict(sorted(owners.items()))


def _words_of_categories(taxonomy: Taxonomy, level: str) -> list[tuple[str, dict[str, list[str]]]]:
    # Each partition's name and, of each of its categories, the words.
    if level == "word":
        by_base = defaultdict(list)
        for form in sorted(taxonomy.forms):
            by_base[taxonomy.base(form)].append(form)
        return [("words", {base: forms for base, forms in by_base.items() if base})]
    return [
        (wheel.name, {sector: list(taxonomy.forms_of(wheel, sector)) for sector in taxonomy.sectors(wheel)})
        for wheel in taxonomy.wheels
    ]


def _first_tokens(words: set[str], tokenizer: Any) -> dict[str, set[int]]:
    # First tokens of each word: with and without a leading space, as is and capitalised. One call of the tokenizer for
    # all words, of which there are thousands.
    spellings = {word: {prefix + form for form in (word, word.capitalize()) for prefix in ("", " ")} for word in words}
    texts = sorted(set().union(*spellings.values()))
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    first = {text: ids[0] for text, ids in zip(texts, encoded, strict=True) if ids}
    return {word: {first[text] for text in forms if text in first} for word, forms in spellings.items()}


Categories = tuple[CategoryTokens, Sequence[tuple[str, str]]]
"""Tokens and (partition, category) names of the C categories, from `category_tokens`."""


def category_mask(labels: Sequence[str], taxonomy: Taxonomy, names: Sequence[tuple[str, str]]) -> list[bool]:
    """Which of the C columns of `category_tokens` hold one of the labels."""
    bases = {taxonomy.base(label.strip().lower()) for label in labels}
    sectors = {wheel.name: taxonomy.categories(labels, wheel) for wheel in taxonomy.wheels}
    return [name in (bases if partition == "words" else sectors[partition]) for partition, name in names]


def gold_masks(
    gold: Sequence[object], taxonomy: Taxonomy, categories: Categories, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Which categories are correct and which count, for each of R gold label lists or label strings.

    Returns:
        correct (R, C) bool, known (R, C) bool (`calibration.known_categories`), and the partition (C,) of each
        category, all on the device.
    """
    tokens, names = categories
    partition = tokens.partition.to(device)
    masks = [category_mask(list(parse_labels(labels)), taxonomy, names) for labels in gold]
    correct = torch.tensor(masks, device=device)
    return correct, known_categories(correct, partition), partition


class Readings(Protocol):
    """What the terms need of `rollout.Rollouts`: its attributes of these names."""

    answers: list[AnswerTokens]
    anchor_rollout: Tensor
    slow: Tensor | None
    fast: Tensor | None


def terms_of(
    method: Method,
    taxonomy: Taxonomy,
    categories: Categories,
    labels: Sequence[object],
    rollouts: Readings,
    reference_fast: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The calibration terms of R rollouts, by the method's formulation; the trainer and the plug-ins both call it.

    Args:
        method: its `calibration`, `conditional`, `anchors` and `confidence_clip` are used.
        taxonomy: wheels and word forms.
        categories: from `category_tokens`.
        labels: R gold label lists or label strings.
        rollouts: the answers and their confidences; `fast` only if ``method.needs_fast``.
        reference_fast: (R, C) fast probabilities of the starting policy (`rollout.fast_confidences`), for "hinge".

    Returns:
        T+ and T-, (R,) each, NaN for a rollout without a term; T- is None for "reasoning".

    Raises:
        ValueError: confidences that the formulation needs are missing.
    """
    device = None if rollouts.slow is None else rollouts.slow.device
    masks = correct, _, partition = gold_masks(labels, taxonomy, categories, device)
    if method.calibration == "noise":
        plus, minus = torch.randn(2, len(labels)).to(correct.device).masked_fill(~correct.any(dim=1), torch.nan)
        return plus, minus
    slow, fast, rows, counted = _read(method, taxonomy, categories, rollouts)
    if method.calibration == "answer":
        return answer_terms(slow, rows, counted, *masks)
    if method.calibration == "difference":
        scores = [confidence(values, rows, len(labels), counted) for values in (slow, fast)]
        return calibration_terms(scores[0], scores[1], *masks, method.confidence_clip)
    slow, fast = (_at_first(values, rows, counted, len(labels)) for values in (slow, fast))
    if method.calibration == "reasoning":
        return reasoning_term(slow, fast, *masks, method.confidence_clip), None
    if reference_fast is None:
        raise ValueError("calibration=hinge needs reference_fast, the fast confidences of the starting policy")
    reference = reference_fast.to(counted.device)
    reference = conditional(reference, partition) if method.conditional else reference
    return hinge_terms(slow, reference, *masks, method.confidence_clip)


def scores_of(
    method: Method, taxonomy: Taxonomy, categories: Categories, labels: Sequence[object], rollouts: Readings
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """The scores S(k) of slow and, if the method needs it, fast thinking, (R, C) each, and `gold_masks`."""
    slow, fast, rows, counted = _read(method, taxonomy, categories, rollouts)
    scores = [confidence(values, rows, len(labels), counted) for values in (slow, fast)]
    masks = gold_masks(labels, taxonomy, categories, slow.device)
    return scores[0], scores[1] if method.needs_fast else None, *masks


def _read(
    method: Method, taxonomy: Taxonomy, categories: Categories, rollouts: Readings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # The probabilities (A, C) that the method reads, slow and fast (slow again where it reads no fast ones), the
    # rollout (A,) of each anchor, and what counts (A, C).
    slow, fast = rollouts.slow, rollouts.fast if method.needs_fast else rollouts.slow
    if slow is None or fast is None:
        lacking = "slow" if slow is None else "fast"
        raise ValueError(f"calibration={method.calibration}: the rollouts carry no {lacking} confidences")
    counted = counted_anchors(method.anchors, taxonomy, categories, rollouts).to(slow.device)
    if method.conditional:
        slow, fast = (conditional(values, categories[0].partition) for values in (slow, fast))
    return slow, fast, rollouts.anchor_rollout.to(slow.device), counted


def counted_anchors(rule: str, taxonomy: Taxonomy, categories: Categories, rollouts: Readings) -> Tensor:
    """Which anchors count for which categories, (A, C) bool, by the rule of `Method.anchors`.

    "mentions": a word counts on each wheel (for all categories of it) where it names a category that no earlier word of
    the answer has named there. So a category counts once per wheel, and words that no wheel places never count.
    "first": the first word that some wheel places counts on all wheels. "all": every word does.

    Raises:
        ValueError: the rollouts do not carry the word of each anchor.
    """
    tokens, names = categories
    words, rollout = [word for answer in rollouts.answers for word in answer.words], rollouts.anchor_rollout.cpu()
    if len(words) != len(rollout):
        raise ValueError(f"expected the word of each of {len(rollout)} anchors in rollouts.answers, got {len(words)}")
    masks = {word: category_mask([word], taxonomy, names) for word in dict.fromkeys(words)}
    named = torch.tensor([masks[word] for word in words], dtype=torch.bool).view(len(words), len(names))
    if rule == "all":
        return torch.ones_like(named)
    if rule == "first":
        return _not_before(named.any(dim=1, keepdim=True), rollout).expand_as(named)
    return known_categories(_not_before(named, rollout), tokens.partition.cpu())


def _not_before(found: Tensor, rollout: Tensor) -> Tensor:
    # Found (A, N) at an anchor, and at no earlier anchor of the same rollout; rollout (A,) ascending.
    before = found.long().cumsum(dim=0) - found.long()
    return found & (before == before[torch.searchsorted(rollout, rollout)])


def _at_first(probabilities: Tensor, rollout: Tensor, counted: Tensor, num_rollouts: int) -> Tensor:
    # Probabilities (R, C) at the first anchor of each rollout that counts anywhere; NaN without one.
    first = _not_before(counted.any(dim=1, keepdim=True), rollout)[:, 0]
    found = probabilities.new_full((num_rollouts, probabilities.shape[1]), torch.nan)
    found[rollout[first]] = probabilities[first]
    return found


def at_first_word(values: Tensor, taxonomy: Taxonomy, categories: Categories, rollouts: Readings) -> Tensor:
    """The entry (R, C) of values (A, C) at each answer's first word that a wheel places; NaN without one."""
    counted = counted_anchors("first", taxonomy, categories, rollouts).to(values.device)
    return _at_first(values, rollouts.anchor_rollout.to(values.device), counted, len(rollouts.answers))
