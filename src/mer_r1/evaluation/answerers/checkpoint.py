"""Answer clips with a checkpoint in this process, with PyTorch (see `predict`)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.evaluation.answerers.base import fingerprint
from mer_r1.evaluation.llm.chat import Decoding
from mer_r1.evaluation.records import Record


class Checkpoint:
    """A local or hub checkpoint; it is loaded with the first question.

    Args:
        model: folder or hub name.
        taxonomy: wheels for categories, confidences and scores.
        decoding: how completions are sampled; `repetition_penalty` is ignored.
        batch_size: clips sampled together.
        features_dir: feature cache, shared by models with the same towers; None keeps no features.
        device: torch device; None is the CPU.
    """

    def __init__(
        self,
        model: str,
        taxonomy: Taxonomy,
        decoding: Decoding,
        batch_size: int = 16,
        features_dir: Path | None = None,
        device: str | None = None,
    ) -> None:
        self.name = model
        self.batch_size = batch_size
        self.taxonomy = taxonomy
        self.decoding = decoding
        self.features_dir = features_dir
        self.device = device
        self._loaded: tuple[Any, ...] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Model, decoding, and the fingerprint of the weights."""
        decoding = asdict(self.decoding)
        return {"engine": "checkpoint", "model": self.name, "weights": fingerprint(self.name), "decoding": decoding}

    def answer(self, clips: Sequence[Clip], modes: Sequence[ThinkingMode]) -> Iterator[Record]:
        """See `ClipModel.answer`; both modes share one pass of the towers."""
        from mer_r1.evaluation.predict import predict
        from mer_r1.model.generation import Sampling

        omni, tensors, categories = self._load()
        how = self.decoding
        sampling = Sampling(how.max_tokens, how.temperature, how.top_p or 1.0, how.seed)
        yield from predict(
            omni, clips, modes, self.taxonomy, sampling, len(clips), tensors, self.name, categories=categories
        )

    def _load(self) -> tuple[Any, ...]:
        """The model, the source of its tower outputs, and the category tokens."""
        from mer_r1.model.features import FeatureCache
        from mer_r1.model.omni import load
        from mer_r1.rl.anchors import category_tokens

        if self._loaded is None:
            omni = load(self.name, device=self.device)
            cache = FeatureCache(omni, self.features_dir) if self.features_dir else None
            self._loaded = omni, cache and cache.get, category_tokens(self.taxonomy, omni.tokenizer)
        return self._loaded
