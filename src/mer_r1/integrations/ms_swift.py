"""Plug-in for ms-swift's GRPO (`--external_plugins .../ms_swift.py`): rewards, advantages and calibration.

Rewards are entries of swift's registry `orms`: `mer_format`, `mer_recall`, `mer_precision`, `mer_f1`, and those of the
baselines of other papers. swift has no hook for advantages, so its trainer's `_compute_advantages` is replaced by one
that runs swift's own first, for its logs, and then returns the method's. With calibration, the policy reads each answer
twice, after its own reasoning and after an empty think block, through swift's template and collator; logits are
computed at the anchors only.

Written against ms-swift 4.6.0 (`swift/rewards/orm.py`, `swift/rlhf_trainers/grpo_trainer.py` and `utils.py`,
`swift/rl_core/data.py`); tests hold the signatures, and docs/engines.md says what was run inside ms-swift itself. Its
Megatron trainer computes advantages of its own and is refused.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mer_r1.emotions.thinking import ThinkingMode, prefill
from mer_r1.errors import UserError
from mer_r1.integrations.environment import chosen_method, chosen_taxonomy, gold_of
from mer_r1.rl.anchors import answer_tokens, category_tokens, terms_of
from mer_r1.rl.calibration import category_probabilities
from mer_r1.rl.method import OBJECTIVES as WEIGHTS
from mer_r1.rl.method import Method, method_advantages
from mer_r1.rl.rewards import reward_function

OBJECTIVES = {
    name: "Mer" + "".join(map(str.capitalize, name.split("_"))) for weights in WEIGHTS.values() for name in weights
}
"""Each objective's class in swift's registry, where it is `mer_<objective>`."""


class _Reward:
    """A reward for swift's registry: built with swift's arguments, called with completions and columns."""

    objective = "format"

    def __init__(self, args: Any = None, **_: Any) -> None:
        self.args = args
        self.score = reward_function(self.objective, chosen_taxonomy(), **swift_method().reward_options)

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float | None]:
        """One value in [0, 1] per completion; None, which swift leaves out, where the gold cannot be scored."""
        absent = columns.get("absent")
        if self.objective.endswith("format"):
            return self.score(completions=completions, absent=absent)
        return self.score(completions=completions, labels=gold_of(columns), absent=absent)


def reward_classes() -> dict[str, type[_Reward]]:
    """Entries for `orms`, by name."""
    return {
        f"mer_{objective}": type(name, (_Reward,), {"objective": objective}) for objective, name in OBJECTIVES.items()
    }


def advantages(trainer: Any, samples: Sequence[Any], rewards_per_func: Tensor) -> Tensor:
    """The method's advantages of a global batch.

    Args:
        trainer: swift's GRPOTrainer; the `num_generations` rollouts of a prompt are adjacent.
        samples: this process's samples (`GRPOSample`).
        rewards_per_func: (R, K) rewards of all processes, one column per entry of swift's `reward_func_names`.

    Returns:
        (R,) advantages.

    Raises:
        UserError: rewards are missing, or swift runs in a mode without fixed groups.
    """
    method = swift_method()
    if trainer.dynamic_num_samples:
        raise UserError("mer-r1 in ms-swift needs num_generations rollouts per prompt: no dynamic_num_samples")
    wanted = [OBJECTIVES[name] for name in method.objectives]
    if missing := [name for name in wanted if name not in trainer.reward_func_names]:
        funcs = " ".join(f"mer_{name}" for name in method.objectives)
        raise UserError(f"method {method.method} needs the rewards {', '.join(missing)}: give --reward_funcs {funcs}")
    rewards = rewards_per_func[:, [trainer.reward_func_names.index(name) for name in wanted]]
    group = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    terms = calibrated(trainer, samples, method) if method.calibrates else ()
    return method_advantages(method, rewards, group, *(trainer.accelerator.gather(term) for term in terms)).tokens


def calibrated(trainer: Any, samples: Sequence[Any], method: Method) -> tuple[Tensor | None, Tensor | None]:
    """T+ and T- of this process's samples, (N,) each: a forward pass without gradient, two if fast thinking counts."""
    tokenizer, taxonomy = trainer.template.tokenizer, chosen_taxonomy()
    categories = _categories(tokenizer, method.confidence_level)
    slow_ids = [_flat(sample.response_token_ids) for sample in samples]
    answers = [answer_tokens(ids, tokenizer) for ids in slow_ids]
    rows = torch.tensor([row for row, answer in enumerate(answers) for _ in answer.anchors], dtype=torch.long)
    logits = anchor_logits(trainer, samples, slow_ids, [answer.anchors for answer in answers])
    slow = category_probabilities(logits, categories[0])
    read: Any = SimpleNamespace(answers=answers, anchor_rollout=rows, slow=slow, fast=None)
    if method.needs_fast:
        head = tokenizer(prefill(ThinkingMode.FAST))["input_ids"]
        fast_ids = [head + ids[answer.start :] for ids, answer in zip(slow_ids, answers, strict=True)]
        places = [[anchor + len(head) - answer.start for anchor in answer.anchors] for answer in answers]
        read.fast = category_probabilities(anchor_logits(trainer, samples, fast_ids, places), categories[0])
    return terms_of(method, taxonomy, categories, [gold_of(sample.extra) for sample in samples], read)


@torch.no_grad()
def anchor_logits(
    trainer: Any, samples: Sequence[Any], texts: Sequence[list[int]], places: Sequence[list[int]]
) -> Tensor:
    """The policy's next-token logits before chosen tokens of other answers to the same prompts.

    Args:
        trainer: swift's trainer.
        samples: samples of the prompts, with their media.
        texts: tokens of the answers, in place of the samples' own.
        places: indices of the predicted tokens of each answer.

    Returns:
        (A, V) logits, in the order of `places`.

    Raises:
        UserError: swift's template changes the tokens of an answer, or packs rows.
    """
    from swift.rlhf_trainers.utils import collate_to_grpo_micro_batch, encode_sample

    template, device = trainer.template, trainer.accelerator.device
    if template.padding_free:
        raise UserError("mer-r1 in ms-swift reads confidences per row: no padding_free, no packing")
    step, found = trainer.args.per_device_train_batch_size, []
    for start in range(0, len(samples), step):
        part = slice(start, start + step)
        copies = [_answered(sample, ids) for sample, ids in zip(samples[part], texts[part], strict=True)]
        with trainer._template_context(template):
            for copy in copies:
                copy.encoded = encode_sample(copy, template)
                copy.encoded.pop("_extra_kwargs", None)
            inputs, _ = collate_to_grpo_micro_batch(copies, template, device=device, use_logits_to_keep=True)
        answered = [(row != -100).nonzero()[:, 0] for row in inputs.pop("labels")]
        for row, (where, ids) in enumerate(zip(answered, texts[part], strict=True)):
            if inputs["input_ids"][row, where[: len(ids)]].tolist() != ids:
                raise UserError("ms-swift's template changes the tokens of an answer: confidences need them as sampled")
        pairs = [(row, int(answered[row][place]) - 1) for row, some in enumerate(places[part]) for place in some]
        found.append(_logits_at(trainer, inputs, pairs))
    return torch.cat(found)


def _logits_at(trainer: Any, inputs: dict[str, Any], pairs: list[tuple[int, int]]) -> Tensor:
    # The head runs on the chosen hidden states only: logits of a vocabulary of 152,000 for every token would not fit.
    rows, columns = (torch.tensor([pair[axis] for pair in pairs], dtype=torch.long) for axis in (0, 1))
    # Without dropout: two readings of an answer would get different masks, and their difference would be noise.
    model = trainer.accelerator.unwrap_model(trainer.model)
    heads = [module for name, module in model.named_modules() if name.endswith("lm_head") and "talker" not in name]
    handle = heads[0].register_forward_pre_hook(lambda _, args: (args[0][rows, columns][None], *args[1:]))
    try:
        with at_rest(trainer.model):
            return trainer.model(**inputs).logits[0]
    finally:
        handle.remove()


@contextmanager
def at_rest(model: Any) -> Iterator[None]:
    """Context in which every module of a model is in evaluation mode."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def _answered(sample: Any, ids: list[int]) -> Any:
    messages = [*sample.messages[:-1], {"role": "assistant", "content": ""}]
    return replace(sample, messages=messages, response_token_ids=[ids], response_loss_mask=[], encoded=None)


def _flat(ids: Sequence[Any]) -> list[int]:
    # One list per turn; a single turn may be a plain list.
    return [token for turn in ids for token in turn] if ids and isinstance(ids[0], Sequence) else list(ids)


@lru_cache(maxsize=4)
def _categories(tokenizer: Any, level: str) -> Any:
    return category_tokens(chosen_taxonomy(), tokenizer, level)


def swift_method() -> Method:
    """The method of `MER_R1_METHOD`; the full method where it names none.

    Raises:
        UserError: it needs the starting policy, which swift does not offer.
    """
    method = chosen_method()
    if method.needs_reference:
        raise UserError("MER_R1_METHOD: calibration=hinge needs the starting policy; use mer-r1 rl for it")
    return method


def install() -> None:
    """Add the rewards to swift's registry and the advantages to its trainer; runs when swift imports this file.

    Raises:
        UserError: the method does not work in swift, or swift runs its Megatron trainer.
    """
    # swift puts the folder of a plug-in first on the path, where the files of ours would hide the packages verl and
    # lmms_eval.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    if "swift.megatron" in sys.modules:
        raise UserError("swift's Megatron trainer computes advantages of its own: use `swift rlhf` with this plug-in")
    from swift.rewards import orms
    from swift.rlhf_trainers.grpo_trainer import GRPOTrainer

    swift_method()  # a mistake in it fails before the model is loaded
    orms.update(reward_classes())
    theirs = GRPOTrainer._compute_advantages
    if getattr(theirs, "of_mer_r1", False):  # imported a second time, in a worker of a data loader
        return

    def _compute_advantages(self: Any, samples: Any, rewards_per_func: Tensor, batch_encoded_inputs: Any) -> Tensor:
        theirs(self, samples, rewards_per_func, batch_encoded_inputs)
        return advantages(self, samples, rewards_per_func)

    _compute_advantages.of_mer_r1 = True  # type: ignore[attr-defined]
    GRPOTrainer._compute_advantages = _compute_advantages


try:
    import swift  # noqa: F401
except ImportError:
    pass  # imported outside swift
else:
    install()
