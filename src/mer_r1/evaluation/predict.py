"""Ask a model about clips, slow or fast; one record per clip and mode.

A record holds everything that scoring and reporting need (see `records.Record`), so that nothing is predicted twice. A
clip that cannot be read becomes a record with its error and does not stop the others.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mer_r1.data.check import Progress
from mer_r1.data.claim import clear, item_keys, weights_digest
from mer_r1.data.clip import Clip
from mer_r1.data.media.read import read_clip
from mer_r1.emotions.set_task import SetTask
from mer_r1.emotions.thinking import ThinkingMode, question
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers.answer import answer_in_modes, trimmed
from mer_r1.evaluation.answerers.base import ask_groups
from mer_r1.evaluation.answerers.spread import Answers, spread
from mer_r1.evaluation.records import (
    RECORDS_FILE,
    Record,
    State,
    append_record,
    claim_records,
    is_news,
    kept_states,
    provenance,
    record_of_answer,
    record_of_error,
    states_of,
    versions,
)
from mer_r1.evaluation.summary import SUMMARY_FILE, clips_of, donors_of

if TYPE_CHECKING:
    from torch import Tensor

    from mer_r1.evaluation.answerers.base import ClipModel
    from mer_r1.model.generation import Sampling
    from mer_r1.model.omni import Omni
    from mer_r1.model.prompts import Prompt
    from mer_r1.rl.calibration import CategoryTokens
    from mer_r1.rl.rollout import Rollouts

Tensors = Callable[[Clip], "dict[str, Tensor]"]
"""Gives a clip's tower outputs, from a cache or computed on the spot."""

Found = Callable[[], "dict[str, Tensor]"]
"""Gives the tower outputs of one clip, or raises why there are none."""

Ask = Callable[[Clip], str]
"""Gives the user's question about a clip, for benchmarks that ask other things than `thinking.question`."""

Categories = tuple["CategoryTokens", list[tuple[str, str]]]
"""Tokens and (wheel, sector) names of the categories, from `anchors.category_tokens`."""

DRAW_SEEDS = 1_000_003
"""Difference between the seeds of two draws of an answer."""

RESULTS = (RECORDS_FILE, SUMMARY_FILE)
_QUESTIONS = [question(""), question("", "short")]

CHANNELS = {"audio": ("audio", "mel_frames"), "video": ("video", "video_grid_thw", "video_second_per_grid")}
"""Channel -> its keys among a clip's tower outputs."""


def predict(
    omni: "Omni",
    clips: Sequence[Clip],
    modes: Sequence[ThinkingMode] = tuple(ThinkingMode),
    taxonomy: Taxonomy | None = None,
    sampling: "Sampling | None" = None,
    batch_size: int = 16,
    tensors: Tensors | None = None,
    name: str = "",
    ask: Ask | None = None,
    categories: Categories | None = None,
    prepare: Callable[[Sequence[Clip]], object] | None = None,
) -> Iterator[Record]:
    """Predict the clips, batch by batch and in order: all of a batch in the first mode, then in the next.

    The modes are sampled together, on one pass over the prompts; a record's seconds are its share of the tokens.

    Args:
        omni: the model.
        clips: clips to ask about.
        modes: slow, fast, or both.
        taxonomy: categories, for confidences and scores; None takes those of the model's task.
        sampling: length, temperature (0: greedy), seed; None decodes greedily.
        batch_size: clips sampled together.
        tensors: source of the tower outputs; None computes them, while threads decode the next batch.
        name: the model's name in the records.
        ask: the question about each clip; None takes the question of the model's task.
        categories: result of `anchors.category_tokens`, for repeated calls; None computes it here.
        prepare: called with the clips of each batch before `tensors` is; for example fills the feature cache.
    """
    from mer_r1.model.generation import Sampling
    from mer_r1.rl.anchors import category_tokens

    taxonomy, sampling = taxonomy or omni.settings.taxonomy(), sampling or Sampling(max_new_tokens=512, temperature=0)
    categories = categories or category_tokens(taxonomy, omni.tokenizer)
    source = provenance(name, sampling.seed, versions())
    for batch, media in _with_media(omni, clips, batch_size, tensors):
        if prepare:
            prepare(batch)
        found = [(clip, _prompt_or_error(omni, clip, get, ask)) for clip, get in zip(batch, media, strict=True)]
        readable = [(clip, prompt) for clip, prompt in found if not isinstance(prompt, str)]
        answered = _predict_batch(omni, readable, modes, taxonomy, sampling, categories, source)
        for mode, (clip, prompt) in product(modes, found):
            yield record_of_error(clip, mode, prompt, source) if isinstance(prompt, str) else next(answered)


def _with_media(
    omni: "Omni", clips: Sequence[Clip], batch_size: int, tensors: Tensors | None
) -> "Iterator[tuple[Sequence[Clip], list[Found]]]":
    batches = [clips[start : start + batch_size] for start in range(0, len(clips), batch_size)]
    if tensors:
        return ((batch, [partial(tensors, clip) for clip in batch]) for batch in batches)
    return zip(batches, _decoded_ahead(omni, batches), strict=True)


def _decoded_ahead(omni: "Omni", batches: Sequence[Sequence[Clip]]) -> "Iterator[list[Found]]":
    # What gives the tower outputs of each clip, batch by batch; threads decode the next batch meanwhile.
    from mer_r1.model.tower_outputs import encode_media

    pool, waiting = ThreadPoolExecutor(min(8, os.cpu_count() or 1)), deque[list[Future[Any]]]()
    try:
        for batch in [*batches, []]:
            waiting.append([pool.submit(decode_clip, omni, clip) for clip in batch])
            if len(waiting) > 1:
                decoded = waiting.popleft()
                whole = [one for one in decoded if one.exception() is None]
                encoded = iter(encode_media(omni.model, [one.result() for one in whole]) if whole else [])
                yield [one.result if one.exception() else partial(dict, next(encoded)) for one in decoded]
    finally:
        pool.shutdown(cancel_futures=True)


def _prompt_or_error(omni: "Omni", clip: Clip, get: Found, ask: Ask | None) -> "Prompt | str":
    from mer_r1.model.prompts import encode_prompt

    try:
        text = ask(clip) if ask else omni.settings.asked(clip.subtitle)
        return encode_prompt(omni, text, get())
    except UserError as error:
        return str(error)


def encode_clip(omni: "Omni", clip: Clip) -> "dict[str, Tensor]":
    """Decode a clip and run it through the towers.

    Raises:
        UserError: if its media cannot be read.
    """
    from mer_r1.model.tower_outputs import encode_media

    return encode_media(omni.model, [decode_clip(omni, clip)])[0]


def decode_clip(omni: "Omni", clip: Clip) -> "dict[str, Tensor]":
    """Decode a clip into the towers' inputs.

    Raises:
        UserError: if its media cannot be read.
    """
    from mer_r1.model.prompts import media_tensors

    return media_tensors(omni, read_clip(clip, omni.settings.limits()))


def exchanged(get: Tensors, clips: Sequence[Clip], donors: Mapping[str, str], channel: str) -> Tensors:
    """Tower outputs with one channel ("audio" or "video") taken from another clip: does the model use that channel?

    `donors` maps the id of each of the clips to the id of the clip whose channel it gets.
    """
    from mer_r1.model.prompts import notes_of, notes_tensor

    by_id = {clip.id: clip for clip in clips}
    keys = CHANNELS[channel]

    def mixed(clip: Clip) -> "dict[str, Tensor]":
        own, other = get(clip), get(by_id[donors[clip.id]])
        kept = {name: value for name, value in own.items() if name not in keys}
        notes = [*notes_of(own), *(f"{channel} of clip {donors[clip.id]}: {note}" for note in notes_of(other))]
        return kept | {name: other[name] for name in keys if name in other} | notes_tensor(notes)

    return mixed


def _predict_batch(
    omni: "Omni",
    asked: "Sequence[tuple[Clip, Prompt]]",
    modes: Sequence[ThinkingMode],
    taxonomy: Taxonomy,
    sampling: "Sampling",
    categories: Categories,
    source: Mapping[str, Any],
) -> Iterator[Record]:
    from mer_r1.model.prompts import notes_of

    began = time.perf_counter()
    found = answer_in_modes(omni, [prompt for _, prompt in asked], modes, sampling, categories[0])
    each = (time.perf_counter() - began) / sum(len(ids) for sampled, _ in found for ids in sampled.completion_ids)
    form = omni.settings.form
    ends = omni.eos_ids
    for mode, (sampled, opening) in zip(modes, found, strict=True):
        confidences = _confidences(sampled, categories[1], len(asked))
        drawn = zip(asked, sampled.completion_ids, sampled.logps, confidences, strict=True)
        for (clip, prompt), ids, logps, confidence in drawn:
            completion = trimmed(opening + omni.tokenizer.decode(ids, skip_special_tokens=True), mode, form)
            yield record_of_answer(
                clip,
                mode,
                completion,
                taxonomy,
                source,
                form,
                confidence=confidence,
                seconds=round(each * len(ids), 4),
                tokens=len(ids),
                finish_reason="length" if len(ids) >= sampling.max_new_tokens and ids[-1] not in ends else "stop",
                sureness=round(math.exp(sum(logps) / len(logps)), 4) if logps else None,
                notes=notes_of(prompt.media),
            )


def _confidences(sampled: "Rollouts", names: list[tuple[str, str]], rows: int) -> list[dict[str, dict[str, float]]]:
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


def evaluate_model(
    model: str,
    manifest: Path,
    out: Path,
    modes: Sequence[ThinkingMode],
    sampling: "Sampling",
    split: str = "test",
    wheels: Path | None = None,
    exchange: str | None = None,
    batch_size: int = 32,
    features_dir: Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    ask: Ask | None = None,
    only: Collection[str] | None = None,
    num_answers: int = 1,
    overwrite: bool = False,
    limits: Mapping[str, Any] | None = None,
    processes: int = 1,
    asked: "ClipModel | None" = None,
) -> Path:
    """Predict every clip that has no record yet; returns the file of records.

    Args:
        model: folder or hub name.
        manifest: JSONL manifest.
        out: folder of the records, which are kept.
        modes: slow, fast or both.
        sampling: length, temperature, seed.
        split: rows of this split, or "all".
        wheels: folder of the official wheels; None takes the built-in ones.
        exchange: "audio" or "video": each clip gets another clip's.
        batch_size: clips sampled together.
        features_dir: feature cache; None puts it beside the manifest.
        device: torch device; None takes a GPU if there is one.
        progress: callback called with (newly finished predictions, all of them).
        ask: the question about each clip; None takes the question of the model's task.
        only: ids of the clips to ask about; None asks about all.
        num_answers: sampled answers per clip and mode; scores are then means over a clip's answers.
        overwrite: delete the folder's records first.
        limits: as `omni.load`.
        processes: as `spread.spread`.
        asked: a model of another engine in place of `model`, with its own decoding, limits and `ask`.

    Raises:
        UserError: an option is wrong, or the folder's records are of another model, other settings or changed clips.
    """
    clips, task = clips_of(manifest, split), _task_of(model, ask, asked)
    facts = _settings(model, sampling, batch_size, exchange, num_answers, split, ask, limits, asked) | task.facts
    file, taxonomy, donors = out / RECORDS_FILE, task.taxonomy(wheels), donors_of(clips, exchange, sampling.seed)
    items, groups = item_keys(clips, ask, donors), _groups(clips, batch_size, only)
    kept = _kept(file, items, taxonomy, facts, overwrite)
    here = (model, taxonomy, batch_size, features_dir or manifest.parent / "features", device, limits)
    tell = partial(_tell, progress, sum(map(len, groups)) * len(modes) * num_answers)
    with spread(_source(asked, here, (clips, donors or {}, exchange) if exchange else None), processes) as answers:
        for draw in range(num_answers):
            how = answers if asked else partial(answers, ask=ask, sampling=_drawn(sampling, draw))
            _answer_all(file, groups, modes, draw, states_of(kept, draw), items, how, tell)
    return file


def _source(asked: "ClipModel | None", here: Any, exchange: Any) -> Callable[[], Any]:
    make: Any = answering  # how many arguments `here` holds is not known to the type checker
    return partial(getattr, asked, "answer") if asked else partial(make, *here, exchange=exchange)


def _task_of(model: str, ask: Ask | None, asked: "ClipModel | None") -> SetTask:
    """What is asked: the model's task; emotions where `ask` asks or a server answers."""
    from mer_r1.model.omni import task_of

    served = asked is not None and asked.settings["engine"] == "endpoint"
    return SetTask() if ask or served else task_of(model)


def _kept(
    file: Path, items: Mapping[str, str], taxonomy: Taxonomy, facts: dict[str, Any], overwrite: bool
) -> list[State]:
    """Claim the folder; the states of the records there are. Refuses changed clips, before the model is loaded."""
    clear(file.parent, RESULTS if overwrite else ())
    claim_records(file.parent, taxonomy, facts, RESULTS)
    return kept_states(file, items)


def _tell(progress: Progress | None, total: int, more: int) -> None:
    if progress:
        progress(more, total)


def _drawn(sampling: "Sampling", draw: int) -> "Sampling":
    return replace(sampling, seed=(sampling.seed or 0) + draw * DRAW_SEEDS)


def _answer_all(
    file: Path,
    groups: Sequence[Sequence[Clip]],
    modes: Sequence[ThinkingMode],
    draw: int,
    known: Mapping[tuple[str, str], str | None],
    items: Mapping[str, str],
    answers: Answers,
    tell: Callable[[int], Any],
) -> None:
    """Append the missing records of one draw; `tell` gets the number of those there are, then each new one."""
    tell(sum(known.get((clip.id, mode.value), "") is None for group in groups for clip in group for mode in modes))
    with file.open("a", encoding="utf-8") as sink:
        for record in ask_groups(groups, modes, known, answers, items):
            if is_news(record, known):
                append_record(sink, replace(record, draw=draw))
            tell(1)


def answering(
    model: str,
    taxonomy: Taxonomy,
    batch_size: int,
    features_dir: Path | None,
    device: str | None,
    limits: Mapping[str, Any] | None,
    four_bit: bool = False,
    exchange: tuple[Sequence[Clip], Mapping[str, str], str] | None = None,
) -> "partial[Iterator[Record]]":
    """Load a checkpoint; returns `predict` with all but its clips, modes and sampling.

    The arguments are those of `evaluate_model`; without `features_dir` no features are kept. `exchange` holds the last
    three arguments of `exchanged`.
    """
    from mer_r1.model.features import FeatureCache
    from mer_r1.model.omni import choose_device, load
    from mer_r1.rl.anchors import category_tokens

    omni = load(model, device=choose_device(device), limits=limits, four_bit=four_bit)
    cache = FeatureCache(omni, features_dir) if features_dir else None
    get: Any = cache.get if cache else None
    get = exchanged(get, *exchange) if exchange else get
    workers = min(8, (os.cpu_count() or 1) - 1)  # with fewer than two, handing tensors over costs more than it spares
    fill = partial(cache.build, workers=workers * (workers > 1), broken=[]) if cache else None
    categories = category_tokens(taxonomy, omni.tokenizer)
    how: dict[str, Any] = {"taxonomy": taxonomy, "categories": categories, "tensors": get, "prepare": fill}
    return partial(predict, omni, batch_size=batch_size, name=model, **how)


def _groups(clips: Sequence[Clip], size: int, only: Collection[str] | None) -> list[list[Clip]]:
    """The clips in groups, which do not depend on the chosen ones; then only the chosen ones."""
    groups = [clips[start : start + size] for start in range(0, len(clips), size)]
    return [[clip for clip in group if only is None or clip.id in only] for group in groups]


def _settings(
    model: str,
    sampling: "Sampling",
    batch_size: int,
    exchange: str | None,
    num_answers: int,
    split: str,
    ask: Ask | None,
    limits: Mapping[str, Any] | None,
    asked: "ClipModel | None",
) -> dict[str, Any]:
    """What the folder is claimed for, checked."""
    what: dict[str, Any] = {"split": split, "question": None if ask else _QUESTIONS}
    if asked is not None:
        if exchange is not None or num_answers > 1:
            raise UserError("exchange and several answers are for a checkpoint in PyTorch: leave the other engine out")
        return asked.settings | {"exchange": None} | what
    if exchange is not None and exchange not in CHANNELS:
        raise UserError(f"exchange must be audio or video, got {exchange!r}")
    if num_answers > 1 and sampling.temperature == 0:
        raise UserError(f"{num_answers} greedy answers to a question are equal: expected a temperature above 0")
    # Sampling in a batch depends on the batch's other clips.
    together = batch_size if sampling.temperature else None
    return {"model": model, "weights": weights_digest(model), "sampling": asdict(sampling), "batch_size": together} | {
        "answers": num_answers,
        "exchange": exchange,
        "limits": dict(limits or {}),
        **what,
    }
