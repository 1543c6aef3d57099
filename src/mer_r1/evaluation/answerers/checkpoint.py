"""Answer clips with a checkpoint in this process, with PyTorch (see `predict`)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mer_r1.data.claim import weights_digest
from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.evaluation.llm.chat import Decoding
from mer_r1.evaluation.records import Record


@dataclass(eq=False)
class Checkpoint:
    """A local or hub checkpoint; it is loaded with the first question.

    Attributes:
        name: folder or hub name.
        taxonomy: wheels for categories, confidences and scores.
        decoding: how completions are sampled; `repetition_penalty` is ignored.
        batch_size: clips sampled together.
        features_dir: feature cache, shared by models with the same towers; None keeps no features.
        device: torch device; None takes a GPU if there is one.
        limits: fields of `ClipLimits` that replace the model's own.
        four_bit: whether the language model is held in 4 bits.
    """

    name: str
    taxonomy: Taxonomy
    decoding: Decoding
    batch_size: int = 16
    features_dir: Path | None = None
    device: str | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    four_bit: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Model, decoding, limits, and the digest of the weights."""
        # Sampling in a batch depends on the batch's other clips.
        decoding = self.decoding.settings | {"batch_size": self.batch_size if self.decoding.temperature else None}
        how: dict[str, Any] = {"decoding": decoding, "limits": dict(self.limits)}
        how |= {"four_bit": True} if self.four_bit else {}
        return {"engine": "checkpoint", "model": self.name, "weights": weights_digest(self.name), **how}

    def answer(self, clips: Sequence[Clip], modes: Sequence[ThinkingMode]) -> Iterator[Record]:
        """See `ClipModel.answer`; both modes share one pass of the towers."""
        from mer_r1.model.generation import Sampling

        how = self.decoding
        sampling = Sampling(how.max_tokens, how.temperature, how.top_p or 1.0, how.seed)
        yield from self._loaded(clips, modes, sampling=sampling)

    @cached_property
    def _loaded(self) -> Callable[..., Iterator[Record]]:
        from mer_r1.evaluation.predict import answering

        how = (self.taxonomy, self.batch_size, self.features_dir, self.device, self.limits, self.four_bit)
        return answering(self.name, *how)
