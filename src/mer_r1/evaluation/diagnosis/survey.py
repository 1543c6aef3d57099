"""The rounds of sampling behind a diagnosis, and what is measured of their completions.

Four rounds. G slow rollouts of every prompt, with the confidences that training would read; G fast answers; M answers
behind each of the policy's own reasonings; and as many behind its reasonings about another clip, which meet the media,
the words and the gold labels of this one.
Shapes: B prompts (clips), G rollouts each, R = B*G, M answers after each reasoning, A anchors, C categories over all
partitions (wheels).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mer_r1.emotions.thinking import FAST_PREFILL, answer_word_spans, parse
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.intervals import Array
from mer_r1.evaluation.summary import derange
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Omni
from mer_r1.model.prompts import Prompt
from mer_r1.rl.anchors import Categories, answer_tokens, at_first_word, category_tokens, gold_masks, terms_of
from mer_r1.rl.calibration import partition_mean
from mer_r1.rl.method import Method, method_advantages
from mer_r1.rl.rewards import reward_function, score_completion
from mer_r1.rl.rollout import Rollouts, fast_prompt, rollout

ANSWER_TOKENS = 64
"""Longest answer behind a given reasoning, in tokens."""
SLOW, FAST, OWN, OTHER = range(4)
"""Rounds of sampling; each draws random numbers of its own."""
OBJECTIVES = ("f1", "recall", "precision")
"""Scores of the answers behind a reasoning."""

Progress = Callable[[int, int], Any]
"""Called with (newly sampled completions, all of them)."""
SIDES = ("recall", "precision")
"""Sides of the advantage to which a calibration adds."""


@dataclass
class Slow:
    """The slow rollouts.

    Attributes:
        measures: those of `Survey.measured`, of `Survey.confidences` and of `Survey.calibration_terms`, and the rewards
            ("recall reward"), (B, G) each.
        rewards: (R, K) rewards in the order of the method's objectives.
        openings: tokens of each rollout before its answer, which end with the tag that opens it; None where a rollout
            has no reasoning or no answer.
    """

    measures: dict[str, Array]
    rewards: Tensor
    openings: list[list[int] | None]


@dataclass
class Survey:
    """The rounds of sampling; the fields are the arguments of `measure.diagnose`, of clips what is needed of them."""

    omni: Omni
    method: Method
    taxonomy: Taxonomy
    prompts: list[Prompt]
    gold: list[list[str]]
    absent: list[list[str]]
    group: int
    answers: int
    sampling: Sampling
    batch_size: int
    progress: Progress | None

    @property
    def seed(self) -> int:
        """Random seed, of the intervals too."""
        return self.sampling.seed or 0

    def by_group(self, values: Tensor | Sequence[float]) -> Array:
        """Numbers (R,) as an array (B, G)."""
        return torch.as_tensor(values, dtype=torch.float64).cpu().numpy().reshape(-1, self.group)

    def for_rollouts(self, of_clips: Sequence[list[str]]) -> list[list[str]]:
        """What belongs to each rollout, from what belongs to some clips: their labels or absent channels."""
        return [words for words in of_clips for _ in range(self.group)]

    def sample(
        self, kind: int, prompts: Sequence[Prompt], count: int, limit: int | None = None, **options: Any
    ) -> Iterator[tuple[int, Rollouts]]:
        """Rollouts of each batch of prompts, `count` of each, and the index of the batch's first prompt."""
        total = len(self.prompts) * self.group * (2 + 2 * self.answers)
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            seed = int(np.random.SeedSequence([self.seed, kind, start]).generate_state(1)[0])
            length = min(self.sampling.max_new_tokens, limit or self.sampling.max_new_tokens)
            sampling = replace(self.sampling, max_new_tokens=length, seed=seed)
            yield start, rollout(self.omni, batch, count, sampling, **options)
            if self.progress:
                self.progress(len(batch) * count, total)

    def slow_rollouts(self) -> Slow:
        """The first round."""
        categories = category_tokens(self.taxonomy, self.omni.tokenizer, self.method.confidence_level)
        found: defaultdict[str, list[float]] = defaultdict(list)
        texts: list[str] = []
        openings: list[list[int] | None] = []
        for start, sampled in self.sample(SLOW, self.prompts, self.group, tokens=categories[0], fast=True):
            gold = self.for_rollouts(self.gold[start : start + self.batch_size])
            written = list(map(self.text, sampled.completion_ids))
            read = self.confidences(sampled, gold, categories)
            for name, values in (read | self.calibration_terms(sampled, gold, categories)).items():
                found[name] += values.tolist()
            openings += map(self.opening, sampled.completion_ids)
            texts += written
        rewards = self.rewards(texts)
        rewarded = zip(self.method.objectives, rewards.unbind(dim=1), strict=True)
        measures = {name: self.by_group(values) for name, values in found.items()} | self.measured(texts)
        measures |= {f"{name} reward": self.by_group(values) for name, values in rewarded}
        return Slow(measures, rewards, openings)

    def fast_answers(self) -> dict[str, Array]:
        """The second round: measures (B, G)."""
        asked = [fast_prompt(self.omni, prompt) for prompt in self.prompts]
        drawn = self.sample(FAST, asked, self.group, prefilled=FAST_PREFILL)
        return self.measured([FAST_PREFILL + self.text(ids) for _, sampled in drawn for ids in sampled.completion_ids])

    def donors(self, openings: Sequence[list[int] | None]) -> dict[int, int]:
        """Clip -> another clip, among those with a reasoning.

        Raises:
            UserError: hardly any rollout has a reasoning and then an answer.
        """
        reasoned = [index for index, opening in enumerate(openings) if opening is not None]
        clips = sorted({index // self.group for index in reasoned})
        if len(clips) < 2:
            raise UserError(
                f"{len(reasoned)} of {len(openings)} slow rollouts have a reasoning and then an answer, too few to "
                f"exchange them: a model before its cold start, or are {self.sampling.max_new_tokens} tokens too few?"
            )
        chosen = derange([str(clip) for clip in clips], self.seed)
        return {int(clip): int(donor) for clip, donor in chosen.items()}

    def answers_behind(
        self, kind: int, openings: Sequence[list[int] | None], donors: dict[int, int]
    ) -> dict[str, Array]:
        """The third or fourth round: scores (B, G, M) of answers to each prompt behind its donor's G reasonings."""
        contexts = [
            (clip * self.group + place, openings[donor * self.group + place] or [])
            for clip, donor in donors.items()
            for place in range(self.group)
            if openings[donor * self.group + place]
        ]
        asked = [self.prompts[row // self.group].extended(opening) for row, opening in contexts]
        found = np.full((len(OBJECTIVES), len(openings), self.answers), np.nan)
        for start, sampled in self.sample(kind, asked, self.answers, ANSWER_TOKENS):
            for index, ids in enumerate(sampled.completion_ids):
                row, opening = contexts[start + index // self.answers]
                scores = score_completion(self.text([*opening, *ids]), self.gold[row // self.group], self.taxonomy)
                found[:, row, index % self.answers] = [getattr(scores, name) for name in OBJECTIVES]
        shape = (-1, self.group, self.answers)
        return {name: values.reshape(shape) for name, values in zip(OBJECTIVES, found, strict=True)}

    def text(self, ids: Sequence[int]) -> str:
        """A completion as rewards read it."""
        return str(self.omni.tokenizer.decode(ids, skip_special_tokens=True))

    def opening(self, ids: list[int]) -> list[int] | None:
        """The tokens of a completion up to its answer's opening tag; None without a reasoning or without an answer."""
        before = ids[: answer_tokens(ids, self.omni.tokenizer).start]
        text = self.text(before).rstrip()
        return before if text.endswith("<answer>") and parse(text).reasoning else None

    def measured(self, texts: Sequence[str]) -> dict[str, Array]:
        """Measures (B, G) of completions (R,), in the terms of `Diagnosis.answers`."""
        pairs = zip(texts, self.for_rollouts(self.gold), strict=True)
        rows = [self.measures_of(text, gold) for text, gold in pairs]
        return {name: self.by_group([row[name] for row in rows]) for name in rows[0]}

    def measures_of(self, text: str, gold: list[str]) -> dict[str, float]:
        """Measures of one completion."""
        parsed, words = parse(text), answer_word_spans(text)
        scores = score_completion(text, gold, self.taxonomy)
        return {
            **{name: getattr(scores, name) for name in OBJECTIVES},
            "well_formed": float(parsed.well_formed),
            "words": float(len(words)),
            "repeated": float(len(words) > len(parsed.labels)),
            "unplaced": float(not all(map(self.taxonomy.knows, parsed.labels))),
        }

    def rewards(self, texts: list[str]) -> Tensor:
        """(R, K) rewards as training would give them."""
        names, options = self.method.objectives, self.method.reward_options
        of_clips = {"labels": self.for_rollouts(self.gold), "absent": self.for_rollouts(self.absent)}
        functions = [reward_function(name, self.taxonomy, **options) for name in names]
        columns = [function(completions=texts, **of_clips) for function in functions]
        return torch.tensor([[float("nan") if one is None else one for one in column] for column in columns]).T

    def advantages(self, method: Method, slow: Slow) -> Array:
        """Advantages (B, G) by a method, with the terms if it calibrates."""
        nothing = np.full((len(self.prompts), self.group), np.nan)
        terms = [slow.measures.get(f"{side} term", nothing) for side in SIDES] if method.calibrates else []
        plus, minus = [torch.from_numpy(term).to(slow.rewards.dtype).flatten() for term in terms] or (None, None)
        found = method_advantages(method, slow.rewards, self.group, plus, minus)
        return self.by_group(found.tokens if found.reasoning is None else found.tokens + found.reasoning)

    def calibration_terms(self, sampled: Rollouts, gold: list[list[str]], categories: Categories) -> dict[str, Tensor]:
        """The terms of a batch's rollouts, (rows,) each, of the sides that the method uses."""
        # The policy itself stands for the starting policy of "hinge".
        fast = None if sampled.fast is None else at_first_word(sampled.fast, self.taxonomy, categories, sampled)
        terms = zip(SIDES, terms_of(self.method, self.taxonomy, categories, gold, sampled, fast), strict=True)
        return {
            f"{side} term": term for side, term in terms if term is not None and self.method.sides in ("both", side)
        }

    def confidences(self, sampled: Rollouts, gold: list[list[str]], categories: Categories) -> dict[str, Tensor]:
        """Measures (rows,) of the confidence at each answer's first word that a wheel places; NaN without one."""
        correct, known, partition = gold_masks(gold, self.taxonomy, categories)
        slow, fast = (
            conditional(at_first_word(values.cpu().double(), self.taxonomy, categories, sampled), partition)
            for values in (sampled.slow, sampled.fast)
            if values is not None
        )
        found = {
            f"{mode} {side}": partition_mean(values, mask, partition)
            for mode, values in (("slow", slow), ("fast", fast))
            for side, mask in (("correct", correct & known), ("incorrect", ~correct & known))
        }
        missing = slow.isnan().any(dim=1)
        below = partition_mean((slow < fast).double(), correct & known, partition).masked_fill(missing, torch.nan)
        sizes = torch.bincount(partition).double()[partition]
        sharpness = partition_mean(torch.xlogy(slow, slow) * sizes, known, partition)  # sums within a wheel
        return found | {"below": below, "sharpness": sharpness}


def conditional(probabilities: Tensor, partition: Tensor) -> Tensor:
    """C(k) / sum of C(j) over the categories j of k's partition, from (N, C); NaN where the sum is 0."""
    sums = probabilities.new_zeros(len(probabilities), int(partition.max()) + 1)
    return probabilities / sums.index_add(1, partition, probabilities)[:, partition]
