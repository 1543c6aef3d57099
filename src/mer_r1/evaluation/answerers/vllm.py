"""Answer clips with a vLLM engine in this process, through the same interface as checkpoints and endpoints."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mer_r1.data.claim import weights_digest
from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import ThinkingMode, prefill
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.evaluation.llm.chat import Decoding
from mer_r1.evaluation.records import Record, provenance, record_of_answer, record_of_error, versions


@dataclass(eq=False)
class EngineModel:
    """A checkpoint that runs in vLLM; the engine starts with the first question.

    Attributes:
        name: folder or hub name.
        taxonomy: wheels for categories and scores.
        decoding: how completions are sampled.
        batch_size: clips whose frames are held in memory, and passed to the engine, at a time.
        limits: fields of `ClipLimits` that replace the model's own.
        options: further arguments of `vllm.LLM`, about memory and length.
        ask: the question about each clip; None takes the model's own emotion question.
    """

    name: str
    taxonomy: Taxonomy
    decoding: Decoding
    batch_size: int = 64
    limits: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    ask: Callable[[Clip], str] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Model, decoding, limits, and the digest of the weights."""
        how = {"decoding": self.decoding.settings, "limits": dict(self.limits)}
        return {"engine": "vllm", "model": self.name, "weights": weights_digest(self.name), **how}

    def answer(self, clips: Sequence[Clip], modes: Sequence[ThinkingMode]) -> Iterator[Record]:
        """See `ClipModel.answer`.

        Raises:
            UserError: vLLM is not installed.
        """
        engine, parameters, requests, version = self._started
        source = provenance(self.name, self.decoding.seed, versions("mer-r1") | {"vllm": version})
        found = [requests.of(clip, self.ask) for clip in clips]
        for mode in modes:
            readable = [request[0] for request in found if not isinstance(request, str)]
            asked = [request | {"prompt": request["prompt"] + prefill(mode)} for request in readable]
            outputs = iter(engine.generate(asked, parameters, use_tqdm=False) if asked else ())
            for clip, request in zip(clips, found, strict=True):
                if isinstance(request, str):
                    yield record_of_error(clip, mode, request, source)
                    continue
                said = next(outputs).outputs[0]
                measured: dict[str, Any] = {
                    "tokens": len(said.token_ids),
                    "finish_reason": said.finish_reason or "stop",
                    "notes": request[1],
                }
                if measured["finish_reason"] not in ("stop", "length"):
                    yield record_of_error(clip, mode, f"{clip.id}: vLLM broke off ({said.finish_reason})", source)
                    continue
                yield record_of_answer(clip, mode, prefill(mode) + said.text, self.taxonomy, source, **measured)

    @cached_property
    def _started(self) -> tuple[Any, ...]:
        """The engine, its sampling parameters, the source of its requests, and vLLM's version."""
        from mer_r1.rl.vllm.engine import Requests, bad_words, start

        how = self.decoding
        vllm, engine = start(self.name, seed=how.seed or 0, **self.options)
        requests = Requests(self.name, self.limits)
        parameters = vllm.SamplingParams(
            temperature=how.temperature,
            top_p=1.0 if how.top_p is None else how.top_p,
            repetition_penalty=1.0 if how.repetition_penalty is None else how.repetition_penalty,
            max_tokens=how.max_tokens,
            seed=how.seed,
            bad_words=bad_words(requests.settings),
        )
        return engine, parameters, requests, str(vllm.__version__)
