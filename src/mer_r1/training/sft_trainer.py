"""The trainer of the supervised stages: TRL's SFTTrainer with media in the batches, and packed rows if asked for.

Labels are a set, but a small model repeats them: nothing in the likelihood of a text says what must not follow. So the
loss may have a second term, unlikelihood (Welleck et al. 2020, arXiv 1908.04319): -log(1 - p(words already said)) at
each further word of an answer.

Shapes: B rows of L tokens, plain (`prompts.collate`) or packed (`packing.pack`).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

from mer_r1.model.checkpoints import WholeCheckpoints
from mer_r1.model.generation import lm_head
from mer_r1.model.omni import Omni, thinker
from mer_r1.model.prompts import IGNORE
from mer_r1.model.shared_prefix.attention import packed_inputs
from mer_r1.model.shared_prefix.continuation import backbone
from mer_r1.model.tower_outputs import media_embedded
from mer_r1.rl.anchors import answer_tokens

LEAST = 1e-4
"""Least probability of not repeating a word that the loss tells apart."""


class MERSFTTrainer(WholeCheckpoints, SFTTrainer):
    """SFTTrainer whose batches carry media beside token ids, and branches if they are packed.

    Loss, accuracy and entropy of a packed batch equal those of the plain batch; `num_tokens` counts the computed
    tokens, a shared prefix once.
    """

    def __init__(self, omni: Omni, **kwargs: Any) -> None:
        self.omni = omni
        super().__init__(processing_class=omni.processor, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """SFTTrainer's loss, with the media embedded at their placeholders, and the unlikelihood if it has a weight."""
        inputs = dict(inputs)
        media, branches = inputs.pop("media"), inputs.pop("branches", None)
        policy = thinker(self.accelerator.unwrap_model(model))
        packed = {} if branches is None else packed_inputs(policy, inputs | {"branches": branches})

        def forward(**kwargs: Any) -> Any:
            labels = {} if "labels" in kwargs else {"labels": None}
            return model(**(kwargs | packed | labels))

        weight = getattr(self.args, "unlikelihood", 0.0) if self.model.training else 0.0
        kept: AbstractContextManager[list[Tensor]] = _states(policy) if weight else nullcontext([])
        with media_embedded(policy, media), kept as states:
            loss = super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)
        if not weight:
            return loss
        items = (inputs["labels"][:, 1:] != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch
        shared = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        term = weight * shared * unlikelihood(policy, states[0], inputs["labels"], self.omni.tokenizer) / items
        return (loss[0] + term, *loss[1:]) if isinstance(loss, tuple) else loss + term


def unlikelihood(policy: Any, states: Tensor, labels: Tensor, tokenizer: Any) -> Tensor:
    """Sum over the further words of all answers of -log(1 - p), p the probability of beginning a word said before.

    Args:
        policy: model with the language-model head.
        states: (B, L, D) last hidden states.
        labels: (B, L) tokens to learn, `IGNORE` between the rows' targets.
        tokenizer: tokenizer of the policy.
    """
    places = [(row, *place) for row, tokens in enumerate(labels.tolist()) for place in _repeatable(tokens, tokenizer)]
    if not places:
        return states.sum() * 0.0
    rows, columns, said = zip(*places, strict=True)
    chances = lm_head(policy, states[list(rows), list(columns)]).float().softmax(dim=-1)
    repeated = torch.stack([chance[list(tokens)].sum() for chance, tokens in zip(chances, said, strict=True)])
    return -(1 - repeated).clamp(min=LEAST).log().sum()


def _repeatable(labels: list[int], tokenizer: Any) -> Iterator[tuple[int, list[int]]]:
    # For each word of an answer but its first: the place whose state predicts it, and how the earlier words begin.
    start = 0
    for learned, run in groupby(labels, lambda token: token != IGNORE):
        target = list(run)
        anchors = answer_tokens(target, tokenizer).anchors if learned else []
        for number, anchor in enumerate(anchors[1:], 1):
            yield start + anchor - 1, sorted({target[place] for place in anchors[:number]})
        start += len(target)


@contextmanager
def _states(policy: Any) -> Iterator[list[Tensor]]:
    # Keeps the last hidden states (B, L, D) of a forward pass: TRL's fused head hands out the loss only.
    states: list[Tensor] = []
    handle = backbone(policy).register_forward_hook(lambda _, __, output: states.append(output.last_hidden_state))
    try:
        yield states
    finally:
        handle.remove()
