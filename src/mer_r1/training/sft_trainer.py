"""The trainer of supervised stages: TRL's, with clips in the batches, and rows of one clip in one if asked.

Shapes: B rows of L tokens, plain (`prompts.collate`) or packed (`packing.pack`).
"""

from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel
from trl import SFTTrainer

from mer_r1.model.absent_towers import made_like, whole_state
from mer_r1.model.omni import Omni, write_settings
from mer_r1.model.prompts import embedded
from mer_r1.model.shared_prefix.attention import packed_inputs


class WholeCheckpoints:
    """Checkpoints of a thinker that are loadable by themselves, and that a resumed run really loads."""

    omni: Omni

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # self.model, wrapped or not, is the thinker; of an adapter only its own weights are saved.
        if isinstance(model := self.accelerator.unwrap_model(self.model), PreTrainedModel):  # type: ignore[attr-defined]
            state_dict = whole_state(model, state_dict)
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        if self.args.should_save:  # type: ignore[attr-defined]  # of several processes, the one that writes the rest
            write_settings(output_dir or self.args.output_dir, self.omni.settings)  # type: ignore[attr-defined]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # The library saves a thinker under the hub's names, and its trainer loads them by the module's own: nothing
        # would match, and the run would go on from where it began.
        target = model or self.model  # type: ignore[attr-defined]
        if isinstance(target, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        with made_like(target):
            saved = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype)
        target.load_state_dict(saved.state_dict())

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A run that was killed behind its last step has nothing left to train; the library would take one step more.
        if self.state.global_step >= self.state.max_steps:  # type: ignore[attr-defined]
            self.control.should_training_stop = True  # type: ignore[attr-defined]
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]


class MERSFTTrainer(WholeCheckpoints, SFTTrainer):
    """SFTTrainer whose batches carry media beside token ids, and branches if they are packed.

    Of packed batches the loss, the accuracy and the entropy are those of the plain batch; `num_tokens` counts the
    tokens that were computed, a shared prefix once.
    """

    def __init__(self, omni: Omni, **kwargs: Any) -> None:
        self.omni = omni
        super().__init__(processing_class=omni.processor, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """SFTTrainer's loss, the media at their placeholders."""
        inputs = dict(inputs)
        media, branches = inputs.pop("media"), inputs.pop("branches", None)
        policy = thinker(self.accelerator.unwrap_model(model))
        packed = {} if branches is None else packed_inputs(policy, inputs | {"branches": branches})

        def forward(**kwargs: Any) -> Any:
            labels = {} if "labels" in kwargs else {"labels": None}
            return model(**(kwargs | packed | labels))

        with embedded(policy, media):
            return super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)


def thinker(model: Any) -> Any:
    """The thinker itself, under an adapter or not."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
