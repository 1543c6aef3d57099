"""Ask a model about one clip, and follow its answers while they are generated.

The fast answer comes first, since it is short; then the slow one. After the slow answer of a checkpoint, its words'
categories are scored once more without the reasoning in the context: that difference is what the calibration of MER-R1
looks at (`rl.calibration`).
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Protocol

from mer_r1.data.clip import Clip
from mer_r1.data.media.container import MediaLimits, open_container
from mer_r1.emotions.thinking import ThinkingMode, prefill
from mer_r1.emotions.two_answers import ONCE
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers.base import ClipModel
from mer_r1.evaluation.records import Record

logger = logging.getLogger(__name__)

MODES = (ThinkingMode.FAST, ThinkingMode.SLOW)
"""In the order of the questions."""
Effect = Mapping[str, Mapping[str, tuple[float, float]]]
"""Wheel -> sector -> probability at the slow answer's words with its reasoning in the context, and without it."""


@dataclass(frozen=True)
class Answers:
    """What is known so far.

    Attributes:
        texts: mode -> text generated so far, prefilled part included.
        records: mode -> record of a finished answer.
        effect: what the reasoning changes; empty until it is known, and where it cannot be measured.
        problem: why there is no answer; None if there is one.
        finished: whether nothing more follows.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    records: Mapping[str, Record] = field(default_factory=dict)
    effect: Effect = field(default_factory=dict)
    problem: str | None = None
    finished: bool = False


class Source(Protocol):
    """Answers questions about one clip at a time."""

    name: str

    def ask(self, clip: Clip) -> Iterator[Answers]:
        """The answers as far as they are known, each more complete than the one before; the last one is finished."""


class InProcess:
    """A checkpoint in this process.

    Args:
        model: folder, hub name, or name of a shipped model.
        taxonomy: wheels for categories and confidences.
        sampling: length, temperature, seed (`model.generation.Sampling`).
        device: torch device; None takes a GPU if there is one.
        limits: fields of `ClipLimits` that replace the model's own.
        four_bit: whether the language model is held in 4 bits.
    """

    def __init__(
        self,
        model: str,
        taxonomy: Taxonomy,
        sampling: Any,
        device: str | None,
        limits: Mapping[str, Any],
        four_bit: bool = False,
    ) -> None:
        from mer_r1.evaluation.predict import answering

        self.name, self.sampling = model, sampling
        self._predict = answering(model, taxonomy, 1, None, device, limits, four_bit)
        self._omni, self._categories = self._predict.args[0], self._predict.keywords["categories"]
        self._turn = Lock()

    def ask(self, clip: Clip) -> Iterator[Answers]:
        """See `Source.ask`; a reader that is slower than the model gets the newest state only."""
        states: SimpleQueue[Answers] = SimpleQueue()
        Thread(target=self._work, args=(clip, states.put), daemon=True).start()
        while True:
            state = states.get()
            while not states.empty():
                state = states.get()
            yield state
            if state.finished:
                return

    def _work(self, clip: Clip, tell: Callable[[Answers], object]) -> None:
        last = Answers()

        def keep(state: Answers) -> None:
            nonlocal last
            last = state
            tell(state)

        problem = None
        try:
            with self._turn:
                self._answer(clip, keep)
        except UserError as error:
            problem = str(error)
        except Exception as error:  # the page must not wait for ever
            logger.exception("asking about a clip failed")
            problem = f"the model failed ({type(error).__name__}): see the program's output"
        tell(replace(last, problem=problem or last.problem, finished=True))

    def _answer(self, clip: Clip, tell: Callable[[Answers], object]) -> None:
        from mer_r1.model.generation import followed

        state, ids = Answers(), {mode: list[int]() for mode in MODES}
        media = lru_cache(1)(lambda _: self._encode(clip))  # for the answers and the comparison

        def drawn(tokens: list[int]) -> None:
            nonlocal state
            mode = MODES[len(state.records)]
            ids[mode].append(tokens[0])
            opening = prefill(mode) if self._omni.settings.form == ONCE else ""
            text = opening + self._omni.tokenizer.decode(ids[mode], skip_special_tokens=True)
            state = replace(state, texts={**state.texts, mode.value: text})
            tell(state)

        with followed(drawn):
            for mode in MODES:  # one at a time, so that the fast answer is shown first
                (record,) = self._predict([clip], [mode], sampling=self.sampling, tensors=lambda _: media(clip.id))
                state = with_record(state, record)
                tell(state)
        slow = state.records[ThinkingMode.SLOW.value]
        if slow.labels and self._omni.settings.form == ONCE:
            tell(replace(state, effect=self._effect(clip, ids[ThinkingMode.SLOW], media(clip.id))))

    def _encode(self, clip: Clip) -> Any:
        from mer_r1.evaluation.predict import encode_clip

        return encode_clip(self._omni, clip)

    def _effect(self, clip: Clip, ids: list[int], media: Any) -> Effect:
        """The slow answer's words with their reasoning and without it, as the trainer scores them."""
        from mer_r1.model.prompts import encode_prompt
        from mer_r1.rl.rollout import find_answers, rescore

        omni, (tokens, names) = self._omni, self._categories
        prompt = encode_prompt(omni, omni.settings.asked(clip.subtitle), media)
        answers = find_answers(omni, [ids], "", 1, fast=True)
        slow, fast = rescore(omni, [prompt], answers, [ids], tokens, fast=True)
        assert fast is not None  # asked for
        effect: dict[str, dict[str, tuple[float, float]]] = {}
        for (wheel, sector), *pair in zip(names, slow.mean(dim=0).tolist(), fast.mean(dim=0).tolist(), strict=True):
            effect.setdefault(wheel, {})[sector] = (pair[0], pair[1])
        return effect


class Asked:
    """Any other model that answers clips, such as one behind a server: each answer arrives as a whole.

    Args:
        model: answers the questions; it gives no probabilities of categories.
    """

    def __init__(self, model: ClipModel) -> None:
        self.model, self.name = model, model.name

    def ask(self, clip: Clip) -> Iterator[Answers]:
        """See `Source.ask`."""
        state = Answers()
        try:
            for mode in MODES:
                for record in self.model.answer([clip], [mode]):
                    state = with_record(state, record)
                    yield state
        except UserError as error:
            state = replace(state, problem=str(error))
        yield replace(state, finished=True)


def with_record(state: Answers, record: Record) -> Answers:
    """The answers with one more that is finished."""
    texts = {**state.texts, record.mode: record.completion}
    return replace(state, texts=texts, records={**state.records, record.mode: record}, problem=record.error)


def refuse_long(clip: Clip, most_seconds: float) -> None:
    """Refuse a recording that is longer than the page takes, before anything of it is decoded.

    Raises:
        UserError: it is longer, or its files cannot be opened.
    """
    for file in filter(None, (clip.video, clip.audio)):
        with open_container(file, MediaLimits().max_pixels) as container:
            seconds = (container.duration or 0) / 1e6
        if seconds > most_seconds:
            raise UserError(f"{file.name}: lasts {seconds:.0f} s, and this page takes at most {most_seconds:.0f} s")
