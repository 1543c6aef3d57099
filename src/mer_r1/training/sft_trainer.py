"""The trainer of the supervised stages: TRL's SFTTrainer with media in the batches, and packed rows if asked for.

Shapes: B rows of L tokens, plain (`prompts.collate`) or packed (`packing.pack`).
"""

from typing import Any

from trl import SFTTrainer

from mer_r1.model.checkpoints import WholeCheckpoints
from mer_r1.model.omni import Omni, thinker
from mer_r1.model.shared_prefix.attention import packed_inputs
from mer_r1.model.tower_outputs import media_embedded


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
        """SFTTrainer's loss, with the media embedded at their placeholders."""
        inputs = dict(inputs)
        media, branches = inputs.pop("media"), inputs.pop("branches", None)
        policy = thinker(self.accelerator.unwrap_model(model))
        packed = {} if branches is None else packed_inputs(policy, inputs | {"branches": branches})

        def forward(**kwargs: Any) -> Any:
            labels = {} if "labels" in kwargs else {"labels": None}
            return model(**(kwargs | packed | labels))

        with media_embedded(policy, media):
            return super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)
