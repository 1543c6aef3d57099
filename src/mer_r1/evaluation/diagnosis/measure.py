"""Measure a policy: sample slow and fast answers, answer again behind each reasoning, read confidences, ask the gate.

Four rounds of sampling. G slow rollouts of every prompt, with the confidences that training would read; G fast answers;
M answers behind each of the policy's own reasonings; and as many behind its reasonings about another clip, which meet
the media, the words and the gold labels of this one.
Shapes: B prompts (clips), G rollouts each, R = B*G, M answers after each reasoning, A anchors, C categories over all
partitions (wheels).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mer_r1.data.clip import Clip
from mer_r1.emotions.metrics import wheel_scores
from mer_r1.emotions.thinking import FAST_PREFILL, answer_word_spans, parse, question
from mer_r1.emotions.two_answers import ONCE
from mer_r1.emotions.wheels import Taxonomy, builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.diagnosis import statistics
from mer_r1.evaluation.diagnosis.gate import Diagnosis, judge, verdict
from mer_r1.evaluation.intervals import Array, Interval, bootstrap
from mer_r1.evaluation.predict import Tensors, encode_clip
from mer_r1.evaluation.summary import derange
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Omni
from mer_r1.model.prompts import Prompt, encode_prompt
from mer_r1.rl.anchors import Categories, answer_tokens, category_tokens, gold_masks, terms_of
from mer_r1.rl.calibration import confidence, partition_mean
from mer_r1.rl.method import Method, method_advantages
from mer_r1.rl.rewards import reward_function, score_completion
from mer_r1.rl.rollout import Rollouts, fast_prompt, rollout

MIN_CLIPS = 5
"""Fewest clips that are accepted; intervals worth reading need about a hundred."""
ANSWER_TOKENS = 64
"""Longest answer behind a given reasoning, in tokens."""
SLOW, FAST, OWN, OTHER = range(4)
"""Rounds of sampling; each draws random numbers of its own."""
OBJECTIVES = ("f1", "recall", "precision")
"""Scores of the answers behind a reasoning."""

Progress = Callable[[int, int], Any]
"""Called with (newly sampled completions, all of them)."""


def diagnose(
    omni: Omni,
    clips: Sequence[Clip],
    method: Method | None = None,
    taxonomy: Taxonomy | None = None,
    num_generations: int = 8,
    num_answers: int = 8,
    sampling: Sampling | None = None,
    batch_size: int = 16,
    tensors: Tensors | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Find out whether a calibration can act on a policy.

    Nothing is trained, and torch's global random state is not used, so that a run can be diagnosed before and after.

    Args:
        omni: the policy, at any stage of training.
        clips: clips with gold labels, best about a hundred that the policy was not trained on; those without a label
            that a wheel can place are left out.
        method: the calibration to judge; None takes MER-R1's defaults.
        taxonomy: wheels and words; None takes the built-in ones.
        num_generations: G, slow rollouts and fast answers per prompt, at least 2.
        num_answers: M, answers behind each reasoning, at least 2.
        sampling: length, temperature (positive), seed; None samples 512 tokens at temperature 1 with seed 0.
        batch_size: prompts sampled together, each G or M times.
        tensors: source of the tower outputs; None computes them on the spot.
        progress: callback.

    Raises:
        UserError: too few clips with gold labels, a policy that answers twice or does not reason, a method without
            calibration, or settings outside of their ranges.
    """
    began = time.perf_counter()
    # A recipe is a method too; copies of it would be checked as a whole.
    method = Method(**{item.name: getattr(method or Method(), item.name) for item in fields(Method)})
    taxonomy, sampling = taxonomy or builtin(), sampling or Sampling(512, seed=0)
    _check(omni, method, num_generations, num_answers, sampling)
    kept = labelled(clips, taxonomy)
    get = tensors or (lambda clip: encode_clip(omni, clip))
    prompts = [encode_prompt(omni, question(clip.subtitle, omni.settings.question), get(clip)) for clip in kept]
    gold = [list(clip.labels or ()) for clip in kept]
    survey = _Survey(
        omni, method, taxonomy, prompts, gold, num_generations, num_answers, sampling, batch_size, progress
    )
    diagnosis = survey.diagnosis(left_out=len(clips) - len(kept))
    return replace(diagnosis, seconds=round(time.perf_counter() - began, 1))


def labelled(clips: Sequence[Clip], taxonomy: Taxonomy) -> list[Clip]:
    """The clips with at least one gold label that a wheel can place.

    Raises:
        UserError: they are fewer than `MIN_CLIPS`.
    """
    kept = [clip for clip in clips if clip.labels and wheel_scores(clip.labels, clip.labels, taxonomy)]
    if not kept:
        raise UserError(f"no gold labels: none of the {len(clips)} clips has a label that a wheel can place")
    if len(kept) < MIN_CLIPS:
        raise UserError(f"too few clips: {len(kept)} with gold labels, expected at least {MIN_CLIPS}, better 100")
    return kept


def _check(omni: Omni, method: Method, num_generations: int, num_answers: int, sampling: Sampling) -> None:
    if not method.calibrates:
        raise UserError(f"method={method.method} has no calibration to judge: expected method=mer-r1")
    if omni.settings.form != ONCE:
        raise UserError(
            f"the model's completions have the form {omni.settings.form!r}, which has no fast thinking to compare "
            f"with: expected {ONCE!r}"
        )
    for name, count in (("num_generations", num_generations), ("num_answers", num_answers)):
        if count < 2:
            raise UserError(f"{name}: expected at least 2, to compare answers with each other, got {count}")
    if sampling.temperature <= 0:
        raise UserError("temperature: expected a positive number; greedy rollouts of a prompt are all the same")


@dataclass
class _Slow:
    """The slow rollouts: measures (B, G), rewards (R, K), terms (R,), and the tokens before each answer.

    The tokens before an answer end with the tag that opens it; None where a rollout has no reasoning or no answer.
    """

    measures: dict[str, Array]
    rewards: Tensor
    terms: dict[str, Tensor]
    openings: list[list[int] | None] = field(default_factory=list)


@dataclass
class _Survey:
    """The four rounds of sampling, and what is made of them; the fields are the arguments of `diagnose`."""

    omni: Omni
    method: Method
    taxonomy: Taxonomy
    prompts: list[Prompt]
    gold: list[list[str]]
    group: int
    answers: int
    sampling: Sampling
    batch_size: int
    progress: Progress | None

    def diagnosis(self, left_out: int) -> Diagnosis:
        """Sample, measure and judge; `seconds` is left at 0."""
        slow, fast = self.slow_rollouts(), self.fast_answers()
        own = self.answers_behind(OWN, slow.openings, {index: index for index in range(len(self.prompts))})
        other = self.answers_behind(OTHER, slow.openings, self.donors(slow.openings))
        measures = slow.measures | {"reasoning": own["f1"].mean(axis=2)}
        exchange = self.compared(measures["reasoning"], other["f1"].mean(axis=2), "own", "other")
        explained = {name: statistics.explained_share(own[name], self.seed) for name in OBJECTIVES}
        ceiling = statistics.ceiling(own["f1"], self.seed)
        terms = {side: _correlations(self.by_group(term), measures) for side, term in slow.terms.items()}
        plain = self.by_group(self.advantages(replace(self.method, method="ad"), slow))
        calibrated = self.by_group(self.advantages(self.method, slow))
        cosine = statistics.cosine(calibrated, plain, self.seed)
        checks = judge(exchange["difference"], explained["f1"], ceiling, terms, cosine)
        return Diagnosis(
            settings={
                "clips": len(self.prompts),
                "num_generations": self.group,
                "num_answers": self.answers,
                "sampling": asdict(self.sampling),
                "method": asdict(self.method),
            },
            left_out=left_out,
            reasoned=sum(opening is not None for opening in slow.openings) / len(slow.openings),
            answers={name: self.compared(measures[name], fast[name], "slow", "fast") for name in fast},
            exchange=exchange,
            explained=explained,
            ceiling=ceiling,
            confidence={
                side: self.compared(measures[f"slow {side}"], measures[f"fast {side}"], "slow", "fast")
                for side in ("correct", "incorrect")
            },
            below=bootstrap(_clip_means(measures["below"]), seed=self.seed),
            terms=terms,
            cosine=cosine,
            weight=statistics.added_share(calibrated, plain, self.seed),
            checks=checks,
            verdict=verdict(checks),
            seconds=0.0,
        )

    @property
    def seed(self) -> int:
        """Random seed, of the intervals too."""
        return self.sampling.seed or 0

    def by_group(self, values: Tensor | Sequence[float]) -> Array:
        """Numbers (R,) as an array (B, G)."""
        return torch.as_tensor(values, dtype=torch.float64).cpu().numpy().reshape(-1, self.group)

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

    def slow_rollouts(self) -> _Slow:
        """The first round."""
        categories = category_tokens(self.taxonomy, self.omni.tokenizer, self.method.confidence_level)
        found: defaultdict[str, list[float]] = defaultdict(list)
        terms: dict[str, list[Tensor]] = {"recall": [], "precision": []}
        texts: list[str] = []
        openings: list[list[int] | None] = []
        for start, sampled in self.sample(SLOW, self.prompts, self.group, tokens=categories[0], fast=True):
            gold = [labels for labels in self.gold[start : start + self.batch_size] for _ in range(self.group)]
            written = [self.text(ids) for ids in sampled.completion_ids]
            for name, values in self.confidences(sampled, written, gold, categories).items():
                found[name] += values.tolist()
            for side, term in zip(terms, self.calibration_terms(sampled, gold, categories), strict=True):
                if term is not None and self.method.sides in ("both", side):
                    terms[side].append(term.cpu())
            openings += [self.opening(ids) for ids in sampled.completion_ids]
            texts += written
        gold = [labels for labels in self.gold for _ in range(self.group)]
        rewards = self.rewards(texts, gold)
        measures = {name: self.by_group(values) for name, values in found.items()}
        measures |= self.measured(texts)
        for column, name in enumerate(self.method.objectives):
            measures[f"rewarded {name}"] = self.by_group(rewards[:, column])
        return _Slow(measures, rewards, {side: torch.cat(parts) for side, parts in terms.items() if parts}, openings)

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
        golds = (labels for labels in self.gold for _ in range(self.group))
        rows = [self.measures_of(text, gold) for text, gold in zip(texts, golds, strict=True)]
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

    def rewards(self, texts: list[str], gold: list[list[str]]) -> Tensor:
        """(R, K) rewards as training would give them."""
        functions = [
            reward_function(name, self.taxonomy, self.method.distinct_words) for name in self.method.objectives
        ]
        columns = [function(completions=texts, labels=gold) for function in functions]
        return torch.tensor([[float("nan") if one is None else one for one in column] for column in columns]).T

    def advantages(self, method: Method, slow: _Slow) -> Tensor:
        """(R,) advantages by a method, with the terms if it calibrates."""
        nothing = torch.full_like(slow.rewards[:, 0], torch.nan)
        sides = [slow.terms.get(side, nothing) for side in ("recall", "precision")] if method.calibrates else []
        return method_advantages(method, slow.rewards, self.group, *sides)

    def calibration_terms(
        self, sampled: Rollouts, gold: list[list[str]], categories: Categories
    ) -> tuple[Tensor | None, Tensor | None]:
        """The terms of a batch's rollouts for the recall side and for the precision side, (rows,) each."""
        slow, fast = (
            confidence(values.cpu(), sampled.anchor_rollout, len(gold), self.method.anchors)
            for values in (sampled.slow, sampled.fast)
            if values is not None
        )
        return terms_of(self.method, self.taxonomy, categories, gold, slow, fast)

    def confidences(
        self, sampled: Rollouts, texts: Sequence[str], gold: list[list[str]], categories: Categories
    ) -> dict[str, Tensor]:
        """Measures (rows,) of the confidence at each answer's first word that a wheel places; NaN without one."""
        correct, known, partition = gold_masks(gold, self.taxonomy, categories)
        slow, fast = (
            conditional(self.at_first_word(values.cpu().double(), sampled.anchor_rollout, texts), partition)
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

    def at_first_word(self, values: Tensor, anchor_rollout: Tensor, texts: Sequence[str]) -> Tensor:
        """(rows, C) the entry of (A, C) at the first word of each answer that a wheel places; NaN without one."""
        counts = torch.bincount(anchor_rollout, minlength=len(texts)).tolist()
        found = torch.full((len(texts), values.shape[1]), torch.nan, dtype=values.dtype)
        first = 0
        for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
            placed = [self.taxonomy.knows(text[start:end]) for start, end in answer_word_spans(text)]
            if count and any(placed):
                found[row] = values[first + (placed.index(True) if len(placed) == count else 0)]
            first += count
        return found

    def compared(self, first: Array, second: Array, one: str, other: str) -> dict[str, Interval]:
        """Two measures (B, G) and their difference, over the clips that have both."""
        difference = _clip_means(first) - _clip_means(second)
        both = ~np.isnan(difference)
        parts = {one: _clip_means(first), other: _clip_means(second), "difference": difference}
        return {name: bootstrap(values[both], seed=self.seed) for name, values in parts.items()}


def conditional(probabilities: Tensor, partition: Tensor) -> Tensor:
    """C(k) / sum of C(j) over the categories j of k's partition, from (N, C); NaN where the sum is 0."""
    sums = probabilities.new_zeros(len(probabilities), int(partition.max()) + 1)
    return probabilities / sums.index_add(1, partition, probabilities)[:, partition]


def _correlations(term: Array, measures: dict[str, Array]) -> dict[str, statistics.Correlation]:
    names = {"recall": "rewarded recall", "precision": "rewarded precision"}
    names |= {name: name for name in ("words", "reasoning", "sharpness")}
    return {name: statistics.within_groups(term, measures[key]) for name, key in names.items()}


def _clip_means(values: Array) -> Array:
    # (B,) means over the rollouts with a number; NaN without one.
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)
