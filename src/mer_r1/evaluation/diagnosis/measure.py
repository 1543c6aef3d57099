"""Diagnose a policy: sample it (`survey`), compare within prompts (`statistics`), and ask the gate (`gate`).

Shapes: B prompts (clips), G rollouts each, M answers after each reasoning.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace

import numpy as np

from mer_r1.data.clip import Clip
from mer_r1.emotions.metrics import wheel_scores
from mer_r1.emotions.two_answers import ONCE
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.diagnosis import statistics
from mer_r1.evaluation.diagnosis.gate import Diagnosis, judge, verdict
from mer_r1.evaluation.diagnosis.survey import OBJECTIVES, OTHER, OWN, SIDES, Progress, Survey
from mer_r1.evaluation.intervals import Array, Interval, bootstrap, bootstraps
from mer_r1.evaluation.predict import Tensors, encode_clip
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Omni
from mer_r1.model.prompts import absent_channels, encode_prompt
from mer_r1.rl.method import Method

MIN_CLIPS = 5
"""Fewest clips that are accepted; intervals worth reading need about a hundred."""


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
        taxonomy: categories of words; None takes those of the model's task.
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
    taxonomy, sampling = taxonomy or omni.settings.taxonomy(), sampling or Sampling(512, seed=0)
    check_settings(method, num_generations, num_answers, sampling)
    if omni.settings.form != ONCE:
        raise UserError(
            f"the model's completions have the form {omni.settings.form!r}, which has no fast thinking to compare "
            f"with: expected {ONCE!r}"
        )
    kept = labelled(clips, taxonomy)
    get = tensors or (lambda clip: encode_clip(omni, clip))
    prompts = [encode_prompt(omni, omni.settings.asked(clip.subtitle), get(clip)) for clip in kept]
    gold = [list(clip.labels or ()) for clip in kept]
    absent = [absent_channels(prompt.media, clip.subtitle) for prompt, clip in zip(prompts, kept, strict=True)]
    settings = num_generations, num_answers, sampling, batch_size, progress
    survey = Survey(omni, method, taxonomy, prompts, gold, absent, *settings)
    diagnosis = _conclude(survey, left_out=len(clips) - len(kept))
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


def check_settings(method: Method, num_generations: int, num_answers: int, sampling: Sampling) -> None:
    """Refuse settings that `diagnose` cannot use.

    Raises:
        UserError: with the setting, its value and what is expected.
    """
    if not method.calibrates:
        raise UserError(f"method={method.method} has no calibration to judge: expected method=mer-r1")
    for name, count in (("num_generations", num_generations), ("num_answers", num_answers)):
        if count < 2:
            raise UserError(f"{name}: expected at least 2, to compare answers with each other, got {count}")
    if sampling.temperature <= 0:
        raise UserError("temperature: expected a positive number; greedy rollouts of a prompt are all the same")


def _conclude(survey: Survey, left_out: int) -> Diagnosis:
    # Everything but the time: `seconds` is left at 0.
    slow, fast, seed = survey.slow_rollouts(), survey.fast_answers(), survey.seed
    own = survey.answers_behind(OWN, slow.openings, {index: index for index in range(len(survey.prompts))})
    other = survey.answers_behind(OTHER, slow.openings, survey.donors(slow.openings))
    measures = slow.measures | {"reasoning": own["f1"].mean(axis=2)}
    exchange = _compared(measures["reasoning"], other["f1"].mean(axis=2), "own", "other", seed)
    explained = {name: statistics.explained_share(own[name], seed) for name in OBJECTIVES}
    ceiling = statistics.ceiling(own["f1"], seed)
    terms = {side: _correlations(measures[f"{side} term"], measures) for side in SIDES if f"{side} term" in measures}
    plain = survey.advantages(replace(survey.method, method="ad"), slow)
    calibrated = survey.advantages(survey.method, slow)
    cosine = statistics.cosine(calibrated, plain, seed)
    checks = judge(exchange["difference"], explained["f1"], ceiling, terms, cosine)
    confidence = {
        side: _compared(measures[f"slow {side}"], measures[f"fast {side}"], "slow", "fast", seed)
        for side in ("correct", "incorrect")
    }
    return Diagnosis(
        settings={
            "clips": len(survey.prompts),
            "num_generations": survey.group,
            "num_answers": survey.answers,
            "sampling": asdict(survey.sampling),
            "method": asdict(survey.method),
        },
        left_out=left_out,
        reasoned=sum(opening is not None for opening in slow.openings) / len(slow.openings),
        answers={name: _compared(measures[name], fast[name], "slow", "fast", seed) for name in fast},
        exchange=exchange,
        explained=explained,
        ceiling=ceiling,
        confidence=confidence,
        below=bootstrap(_clip_means(measures["below"]), seed=seed),
        terms=terms,
        cosine=cosine,
        weight=statistics.added_share(calibrated, plain, seed),
        checks=checks,
        verdict=verdict(checks),
        seconds=0.0,
    )


def _compared(first: Array, second: Array, one: str, other: str, seed: int) -> dict[str, Interval]:
    # Two measures (B, G) and their difference, over the clips that have both.
    parts = {one: _clip_means(first), other: _clip_means(second)}
    parts["difference"] = parts[one] - parts[other]
    both = ~np.isnan(parts["difference"])
    return bootstraps({name: values[both] for name, values in parts.items()}, seed=seed)


def _correlations(term: Array, measures: dict[str, Array]) -> dict[str, statistics.Correlation]:
    names = {"recall": "recall reward", "precision": "precision reward"}
    names |= {name: name for name in ("words", "reasoning", "sharpness")}
    return {name: statistics.within_groups(term, measures[key]) for name, key in names.items()}


def _clip_means(values: Array) -> Array:
    # (B,) means over the rollouts with a number; NaN without one.
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)
