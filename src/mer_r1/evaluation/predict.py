"""Ask a model about clips, slowly or fast; one record a clip and mode.

A record says all that scoring and reporting need (see `records.Record`), so that nothing is ever predicted twice. A
clip that cannot be read becomes a record with its error and does not stop the others.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest
from mer_r1.data.media.read import read_media
from mer_r1.emotions.metrics import wheel_scores
from mer_r1.emotions.thinking import ThinkingMode, question
from mer_r1.emotions.two_answers import read_completion
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.emotions.wheels import load as load_wheels
from mer_r1.errors import UserError
from mer_r1.evaluation.answer import answer, trimmed
from mer_r1.evaluation.records import Record, append_record, commit, done_keys, versions
from mer_r1.evaluation.summary import derange
from mer_r1.model.features import FeatureCache, Progress
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Omni, load
from mer_r1.model.prompts import Prompt, encode_prompt, media_tensors
from mer_r1.model.tower_outputs import encode_media
from mer_r1.rl.anchors import category_tokens
from mer_r1.rl.calibration import CategoryTokens
from mer_r1.rl.rollout import Rollouts

RECORDS_FILE = "records.jsonl"

Tensors = Callable[[Clip], dict[str, Tensor]]
"""Gives a clip's tower outputs, from a cache or made on the spot."""

Ask = Callable[[Clip], str]
"""Gives the user's question about a clip, for benchmarks that ask other things than `thinking.question`."""


def predict(
    omni: Omni,
    clips: Sequence[Clip],
    modes: Sequence[ThinkingMode],
    taxonomy: Taxonomy,
    sampling: Sampling,
    batch_size: int = 16,
    tensors: Tensors | None = None,
    name: str = "",
    ask: Ask | None = None,
    categories: tuple[CategoryTokens, list[tuple[str, str]]] | None = None,
) -> Iterator[Record]:
    """Records of the clips, batch by batch, in order; every mode of a clip in turn.

    Args:
        omni: the model.
        clips: what to ask about.
        modes: slow, fast, or both.
        taxonomy: wheels for categories, confidences and scores.
        sampling: length, temperature (0: greedy), seed.
        batch_size: clips sampled together.
        tensors: where tower outputs come from; by default they are made on the spot.
        name: the model's name in the records.
        ask: the question about each clip; the model's own emotion question if None.
        categories: of `anchors.category_tokens`, for callers that ask again and again; made here if None.
    """
    tokens, names = categories or category_tokens(taxonomy, omni.tokenizer)
    get = tensors or (lambda clip: encode_clip(omni, clip))
    stamp = {"model": name, "seed": sampling.seed or 0, "versions": versions(), "commit": commit()}
    for start in range(0, len(clips), batch_size):
        batch = clips[start : start + batch_size]
        found = [_prompt_or_error(omni, clip, get, ask) for clip in batch]
        read = [clip for clip, prompt in zip(batch, found, strict=True) if not isinstance(prompt, str)]
        prompts = [prompt for prompt in found if not isinstance(prompt, str)]
        for mode in modes:
            answered = _predict_batch(omni, read, prompts, mode, taxonomy, sampling, (tokens, names), stamp)
            for clip, prompt in zip(batch, found, strict=True):
                yield _broken_record(clip, mode, prompt, stamp) if isinstance(prompt, str) else next(answered)


def _prompt_or_error(omni: Omni, clip: Clip, get: Tensors, ask: Ask | None) -> Prompt | str:
    try:
        text = ask(clip) if ask else question(clip.subtitle, omni.settings.question)
        return encode_prompt(omni, text, get(clip))
    except UserError as error:
        return str(error)


def encode_clip(omni: Omni, clip: Clip) -> dict[str, Tensor]:
    """Decode a clip and run it through the towers, here and now.

    Raises:
        UserError: if its media cannot be read.
    """
    raw = media_tensors(omni, read_media(clip.video, clip.audio, omni.settings.limits()))
    return encode_media(omni.model, [raw])[0]


def exchanged(get: Tensors, clips: Sequence[Clip], donors: Mapping[str, str], channel: str) -> Tensors:
    """Tower outputs with one channel taken from another clip: does the model use that sense?

    Args:
        get: gives a clip's own tensors.
        clips: all clips.
        donors: clip id -> id of the clip whose channel it gets.
        channel: "audio" or "video".
    """
    by_id = {clip.id: clip for clip in clips}
    keys = {"audio": ("audio", "mel_frames"), "video": ("video", "video_grid_thw", "video_second_per_grid")}[channel]

    def mixed(clip: Clip) -> dict[str, Tensor]:
        own, other = get(clip), get(by_id[donors[clip.id]])
        kept = {name: value for name, value in own.items() if name not in keys}
        return kept | {name: other[name] for name in keys if name in other}

    return mixed


def _predict_batch(
    omni: Omni,
    clips: Sequence[Clip],
    prompts: Sequence[Prompt],
    mode: ThinkingMode,
    taxonomy: Taxonomy,
    sampling: Sampling,
    categories: tuple[CategoryTokens, list[tuple[str, str]]],
    stamp: dict[str, Any],
) -> Iterator[Record]:
    began = time.perf_counter()
    sampled, opening = answer(omni, prompts, mode, sampling, categories[0])
    seconds = (time.perf_counter() - began) / len(clips)
    confidences = _confidences(sampled, categories[1], len(clips))
    drawn = zip(clips, sampled.completion_ids, sampled.logps, confidences, strict=True)
    for clip, ids, logps, confidence in drawn:
        completion = trimmed(opening + omni.tokenizer.decode(ids, skip_special_tokens=True), mode, omni.settings.form)
        parsed = read_completion(completion, mode, omni.settings.form)
        gold = list(clip.labels) if clip.labels is not None else None
        scores = wheel_scores(gold, parsed.labels, taxonomy) if gold else None
        yield Record(
            id=clip.id,
            mode=mode.value,
            completion=completion,
            reasoning=parsed.reasoning,
            labels=list(parsed.labels),
            gold=gold,
            well_formed=parsed.well_formed,
            scores=scores._asdict() if scores else None,
            categories={wheel.name: sorted(taxonomy.categories(parsed.labels, wheel)) for wheel in taxonomy.wheels},
            confidence=confidence,
            seconds=round(seconds, 4),
            tokens=len(ids),
            sureness=round(math.exp(sum(logps) / len(logps)), 4) if logps else None,
            form=omni.settings.form,
            error=None,
            **stamp,
        )


def _confidences(sampled: Rollouts, names: list[tuple[str, str]], rows: int) -> list[dict[str, dict[str, float]]]:
    # Probability of each category at the answer's words, averaged over the words; empty for an answer without words.
    found: list[dict[str, dict[str, float]]] = []
    for row in range(rows):
        here = sampled.slow[sampled.anchor_rollout == row] if sampled.slow is not None else None
        wheels: dict[str, dict[str, float]] = {}
        if here is not None and len(here):
            for (wheel, sector), value in zip(names, here.mean(dim=0).tolist(), strict=True):
                wheels.setdefault(wheel, {})[sector] = round(value, 4)
        found.append(wheels)
    return found


def _broken_record(clip: Clip, mode: ThinkingMode, error: str, stamp: dict[str, Any]) -> Record:
    empty: dict[str, Any] = {"completion": "", "reasoning": "", "labels": [], "well_formed": False}
    nothing: dict[str, Any] = {"scores": None, "categories": {}, "confidence": {}, "seconds": 0.0, "tokens": 0}
    gold = list(clip.labels) if clip.labels is not None else None
    return Record(id=clip.id, mode=mode.value, gold=gold, error=error, **empty, **nothing, **stamp)


def evaluate_model(
    model: str,
    manifest: Path,
    out: Path,
    modes: Sequence[ThinkingMode],
    sampling: Sampling,
    split: str = "test",
    wheels: Path | None = None,
    exchange: str | None = None,
    batch_size: int = 32,
    features_dir: Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    ask: Ask | None = None,
    only: Collection[str] | None = None,
) -> Path:
    """Predict every clip that has no record yet; returns the file of records.

    Args:
        model: folder or hub name.
        manifest: JSONL manifest.
        out: folder of the records; records in it are kept and not made again.
        modes: slow, fast or both.
        sampling: length, temperature, seed.
        split: rows of this split, or "all".
        wheels: official wheels; built-in ones if None.
        exchange: "audio" or "video": each clip gets another clip's.
        batch_size: clips at a time.
        features_dir: feature cache; beside the manifest if None.
        device: where to run.
        progress: told of each clip.
        ask: the question about each clip; the model's own emotion question if None.
        only: ids of the clips to ask about; None asks about all.

    Raises:
        UserError: if no clip is left, or exchange is neither audio nor video.
    """
    if exchange not in (None, "audio", "video"):
        raise UserError(f"exchange must be audio or video, got {exchange!r}")
    clips = [clip for clip in read_manifest(manifest) if split in ("all", clip.split)]
    if not clips:
        raise UserError(f"{manifest} has no rows with split={split}")
    out.mkdir(parents=True, exist_ok=True)
    file = out / RECORDS_FILE
    done = done_keys(file)
    omni = load(model, device=device)
    cache = FeatureCache(omni, features_dir or manifest.parent / "features")
    get: Tensors = cache.get
    if exchange:
        get = exchanged(cache.get, clips, derange([clip.id for clip in clips], sampling.seed or 0), exchange)
    taxonomy = load_wheels(wheels)
    for mode in modes:
        wanted = [clip for clip in clips if only is None or clip.id in only]
        left = [clip for clip in wanted if (clip.id, mode.value) not in done]
        if progress:
            progress(len(wanted) - len(left))
        with file.open("a", encoding="utf-8") as sink:
            for record in predict(omni, left, [mode], taxonomy, sampling, batch_size, get, name=model, ask=ask):
                append_record(sink, record)
                if progress:
                    progress(1)
    return file
