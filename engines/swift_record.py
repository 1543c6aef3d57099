"""A second plug-in of ms-swift: writes down what ours made of each batch, and computes the same again, row by row.

`RECORD` names the file. Per batch: advantages, T+ and T-, and the largest differences of the logits at the anchors from
a full forward and from a second reading. Per loss: the advantages that swift's loss used.
"""

import json
import os
import sys

import torch
from swift.rlhf_trainers.grpo_trainer import GRPOTrainer
from swift.rlhf_trainers.utils import collate_to_grpo_micro_batch, encode_sample

ours = next(module for module in list(sys.modules.values()) if "swift_method" in getattr(module, "__dict__", ()))
held = {"full": [], "again": [], "terms": None}
_calibrated, _logits = ours.calibrated, ours.anchor_logits
_advantages, _loss = GRPOTrainer._compute_advantages, GRPOTrainer._compute_loss_and_metrics


def calibrated(trainer, samples, method):
    held["terms"] = _calibrated(trainer, samples, method)
    return held["terms"]


@torch.no_grad()
def anchor_logits(trainer, samples, texts, places):
    found = _logits(trainer, samples, texts, places)
    rows = []
    with ours.at_rest(trainer.model):
        for sample, ids, some in zip(samples, texts, places, strict=True):
            copy = ours._answered(sample, ids)
            with trainer._template_context(trainer.template):
                copy.encoded = encode_sample(copy, trainer.template)
                copy.encoded.pop("_extra_kwargs", None)
                inputs, _ = collate_to_grpo_micro_batch(
                    [copy], trainer.template, device=trainer.accelerator.device, use_logits_to_keep=True
                )
            first = int((inputs.pop("labels")[0] != -100).nonzero()[0, 0])
            logits = trainer.model(**inputs).logits[0]
            rows += [logits[first + place - 1] for place in some]
    if rows:
        held["full"].append(float((torch.stack(rows) - found).abs().max()))
        held["again"].append(float((_logits(trainer, samples, texts, places) - found).abs().max()))
    return found


def compute_advantages(self, samples, rewards_per_func, batch):
    held.update(full=[], again=[], terms=None)
    made = _advantages(self, samples, rewards_per_func, batch)
    terms = held["terms"] and [None if term is None else term.tolist() for term in held["terms"]]
    write(
        step=int(self.state.global_step), advantages=made.tolist(), rewards=rewards_per_func.tolist(), terms=terms,
        full=max(held["full"], default=None), again=max(held["again"], default=None),
    )  # fmt: skip
    return made


def compute_loss(self, model, model_inputs, batch):
    values, mask = batch.advantages, batch.completion_mask
    values = values if values.dim() == 2 else values[:, None].expand(mask.shape)
    write(used=[float(row[real.bool()][0]) for row, real in zip(values, mask, strict=True) if real.any()])
    return _loss(self, model, model_inputs, batch)


def write(**line):
    with open(os.environ["RECORD"], "a") as file:
        file.write(json.dumps(line) + "\n")


ours.calibrated, ours.anchor_logits = calibrated, anchor_logits
GRPOTrainer._compute_advantages, GRPOTrainer._compute_loss_and_metrics = compute_advantages, compute_loss
