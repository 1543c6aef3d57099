"""A vLLM engine in this process as a `ClipModel`: the fast way to evaluate a large checkpoint on one machine.

A request is the *unexpanded* prompt text, one placeholder a channel, beside the frames and the waveform: vLLM expands
the placeholders itself, and a prompt that was expanded before would be expanded twice. Frames are sampled here, once,
as for training, and their true rate goes along: the processor would assume two frames a second otherwise and put them
at wrong moments. Fast thinking is the same request with the empty think block at its end.

vLLM is no dependency of ours: it is imported when the engine starts, and a test holds what we use of it against its
published signatures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mer_r1.chat import Decoding
from mer_r1.clip_models import answered, fingerprint, stamp_of, unanswered
from mer_r1.clips import Clip
from mer_r1.data import conversation
from mer_r1.errors import UserError
from mer_r1.media import Media, read_media
from mer_r1.records import Record
from mer_r1.taxonomy import Taxonomy
from mer_r1.thinking import ThinkingMode, prefill


class EngineModel:
    """A checkpoint that vLLM runs here, started when it is first asked.

    Args:
        model: folder or hub name.
        taxonomy: wheels for the categories in the records.
        decoding: how completions are sampled.
        batch_size: clips whose frames are held in memory, and handed to the engine, at a time.
    """

    def __init__(self, model: str, taxonomy: Taxonomy, decoding: Decoding, batch_size: int = 64) -> None:
        self.name = model
        self.batch_size = batch_size
        self.taxonomy = taxonomy
        self.decoding = decoding
        self._started: tuple[Any, ...] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Model, decoding, and the fingerprint of a local folder."""
        decoding = asdict(self.decoding)
        return {"engine": "vllm", "model": self.name, "weights": fingerprint(self.name), "decoding": decoding}

    def answer(self, clips: Sequence[Clip], modes: Sequence[ThinkingMode]) -> Iterator[Record]:
        """See `ClipModel.answer`.

        Raises:
            UserError: vLLM is not installed.
        """
        engine, parameters, requests, version = self._start()
        stamp = stamp_of(self.name, self.decoding, vllm=version)
        found = [requests.of(clip) for clip in clips]
        for mode in modes:
            asked = [
                {**request, "prompt": request["prompt"] + prefill(mode)}
                for request in found
                if not isinstance(request, str)
            ]
            outputs = iter(engine.generate(asked, parameters, use_tqdm=False) if asked else ())
            for clip, request in zip(clips, found, strict=True):
                if isinstance(request, str):
                    yield unanswered(clip, mode, request, stamp)
                    continue
                said = next(outputs).outputs[0]
                tokens = len(said.token_ids)
                yield answered(clip, mode, prefill(mode) + said.text, self.taxonomy, stamp, tokens=tokens)

    def _start(self) -> tuple[Any, ...]:
        if self._started is None:
            try:
                vllm = import_module("vllm")
            except ImportError as error:
                raise UserError(f"--engine vllm needs the package vllm ({error}): pip install vllm") from error
            how = self.decoding
            engine = vllm.LLM(
                model=self.name,
                limit_mm_per_prompt={"audio": 1, "video": 1},
                enable_prefix_caching=True,
                seed=how.seed or 0,
            )
            parameters = vllm.SamplingParams(
                temperature=how.temperature,
                top_p=1.0 if how.top_p is None else how.top_p,
                repetition_penalty=1.0 if how.repetition_penalty is None else how.repetition_penalty,
                max_tokens=how.max_tokens,
                seed=how.seed,
            )
            self._started = engine, parameters, Requests(self.name), str(vllm.__version__)
        return self._started


class Requests:
    """Makes the requests about clips: the checkpoint's chat template, our question, frames and waveform.

    Args:
        model: folder or hub name, for its processor and its settings.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoProcessor

        from mer_r1.model import read_settings

        self.processor = AutoProcessor.from_pretrained(model)
        self.settings = read_settings(Path(model))

    def of(self, clip: Clip) -> dict[str, Any] | str:
        """The request about a clip (vLLM's `TextPrompt`), or why there is none."""
        try:
            media = read_media(clip.video, clip.audio, self.settings.limits())
        except UserError as error:
            return f"clip {clip.id}: {error}"
        turns = conversation(
            clip,
            self.settings.question,
            has_picture=media.frames is not None,
            has_sound=media.waveform is not None,
        )
        prompt = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return {"prompt": prompt, **media_of(media)}


def media_of(media: Media) -> dict[str, Any]:
    """The media of a request.

    Returns:
        `multi_modal_data` with `video` (F, H, W, 3) uint8 and `audio` (waveform, sampling rate), each where the clip
        has it; with a video `mm_processor_kwargs` with the true rate of its frames. Nothing for a text-only clip.
    """
    data: dict[str, Any] = {}
    request: dict[str, Any] = {}
    if media.frames is not None:
        data["video"] = np.ascontiguousarray(media.frames.transpose(0, 2, 3, 1))
        # A single frame spans the clip.
        request["mm_processor_kwargs"] = {"fps": media.fps or 1.0 / max(media.seconds, 0.04)}
    if media.waveform is not None:
        data["audio"] = (media.waveform, media.sampling_rate)
    return request | {"multi_modal_data": data} if data else request
