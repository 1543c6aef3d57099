"""Interference between recall and precision: the angles between their gradients on the same rollouts.

The policy samples G rollouts per prompt; the gradient of the policy-gradient loss is computed four times on the same
rollouts: with the normalised recall as the advantage, with the normalised precision, with their sum normalised once
(RD) and with each normalised before the sum (AD). The cosine between the first two is the conflict; the cosines of RD
and AD with each show which objective a combined update follows. Each is compared with the prediction of
``docs/theory.md``, which needs only standard deviations and correlation and assumes that score vectors of different
rollouts are uncorrelated, across prompts too (its section 6 treats the other case). Format and calibration are left
out, as in the formulas.

Shapes: B prompts, G rollouts each, R = B*G rows.
"""

import math
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from mer_r1.data.clip import Clip
from mer_r1.emotions.wheels import builtin
from mer_r1.model.features import FeatureCache
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Omni, load
from mer_r1.model.prompts import IGNORE, Prompt, collate, encode_prompt
from mer_r1.model.tower_outputs import embed
from mer_r1.rl.advantages import normalise_each, normalise_then_sum, sum_then_normalise
from mer_r1.rl.interference import alignment, cosine, norm, objective_statistics
from mer_r1.rl.rewards import reward_function
from mer_r1.rl.rollout import rollout
from mer_r1.training.recipe_files import select_clips
from mer_r1.training.recipes import DataFields
from mer_r1.training.stage import features_folder

BATCHES, PROMPTS, GENERATIONS, NEW_TOKENS, CHUNK = 4, 8, 8, 72, 16
"""Batches per model; as in training, prompts per batch, rollouts per prompt, token limit; rows per backward pass."""
KINDS = ("recall", "precision", "rd", "ad")


def measure(
    model: str, manifest: str, seed: int, clips: str | None = None, batches: int = BATCHES
) -> dict[str, float | None]:
    """Means of `batch_geometry` over batches of training clips of a manifest; `clips` is a slice such as "600:"."""
    data = DataFields(manifest=manifest, clips=clips)
    chosen, omni = select_clips(data), load(model)
    omni.freeze_towers()
    cache = FeatureCache(omni, features_folder(data))
    generator = torch.Generator().manual_seed(seed)
    entries = []
    for batch in range(batches):
        drawn = [chosen[i] for i in torch.randperm(len(chosen), generator=generator)[:PROMPTS].tolist()]
        prompts = [encode_prompt(omni, omni.settings.asked(c.subtitle), cache.get(c)) for c in drawn]
        entries.append(batch_geometry(omni, drawn, prompts, seed * batches + batch))
    known = {key: [e[key] for e in entries if not math.isnan(e.get(key, math.nan))] for key in entries[0]}
    return {key: fmean(values) if values else None for key, values in known.items()}


def batch_geometry(omni: Omni, clips: Sequence[Clip], prompts: Sequence[Prompt], seed: int) -> dict[str, float]:
    """Cosines and norms of the objectives' gradients on one batch of rollouts, with their predictions.

    The gradients cover every weight that is not frozen; `prompts` are those of the B `clips`, which have gold labels.

    Returns:
        `cos_X_Y` (measured) and `predicted_X_Y` for pairs of `KINDS`, `length_X`, and the statistics of
        `interference.objective_statistics`.
    """
    omni.model.eval()
    sampled = rollout(omni, prompts, GENERATIONS, Sampling(NEW_TOKENS, seed=seed))
    texts = [omni.tokenizer.decode(ids, skip_special_tokens=True) for ids in sampled.completion_ids]
    gold = [list(clip.labels or ()) for clip in clips for _ in range(GENERATIONS)]
    columns = [reward_function(name, builtin())(completions=texts, labels=gold) for name in KINDS[:2]]
    rewards = torch.tensor([[float("nan") if v is None else v for v in column] for column in columns]).T
    weights = torch.ones(2)
    each = normalise_each(rewards, GENERATIONS)
    advantages = {"recall": each[:, 0], "precision": each[:, 1]}
    advantages["rd"] = sum_then_normalise(rewards, weights, GENERATIONS)
    advantages["ad"] = normalise_then_sum(rewards, weights, GENERATIONS)
    gradients = _gradients(omni, [p for p in prompts for _ in range(GENERATIONS)], sampled.completion_ids, advantages)
    statistics = objective_statistics(rewards, advantages["rd"], KINDS[:2], GENERATIONS)
    result = {f"length_{name}": norm(gradient) for name, gradient in gradients.items()}
    for one, other in (("recall", "precision"), *((a, b) for a in ("rd", "ad") for b in KINDS[:2])):
        result[f"cos_{one}_{other}"] = cosine(gradients[one], gradients[other])
    return result | statistics | _predictions(statistics)


def _predictions(statistics: dict[str, float]) -> dict[str, float]:
    if not statistics:
        return {}
    rho, recall, precision = (statistics[key] for key in ("rho", "predicted_recall", "predicted_precision"))
    return {
        "predicted_recall_precision": rho,
        "predicted_rd_recall": alignment(recall, precision, rho),
        "predicted_rd_precision": alignment(precision, recall, rho),
        "predicted_ad_recall": alignment(1.0, 1.0, rho),
        "predicted_ad_precision": alignment(1.0, 1.0, rho),
    }


def _gradients(
    omni: Omni, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], advantages: dict[str, Tensor]
) -> dict[str, list[Tensor]]:
    # GRPO's loss at the sampling policy (ratio 1): -mean over rows of (advantage * mean log-probability).
    weights = [weight for weight in omni.model.parameters() if weight.requires_grad]
    sums = {name: [torch.zeros_like(weight) for weight in weights] for name in advantages}
    for start in range(0, len(prompts), CHUNK):
        rows = slice(start, start + CHUNK)
        scores = _mean_logps(omni, prompts[rows], completions[rows])
        for place, (name, advantage) in enumerate(advantages.items()):
            loss = -(advantage[rows].to(scores) * scores).sum() / len(prompts)
            keep = place + 1 < len(advantages)
            parts = torch.autograd.grad(loss, weights, retain_graph=keep, allow_unused=True)
            for total, part in zip(sums[name], parts, strict=True):
                if part is not None:
                    total += part
    return sums


def _mean_logps(omni: Omni, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]]) -> Tensor:
    # (rows,) mean log-probability of each completion's tokens.
    batch = collate(prompts, completions, omni.tokenizer.pad_token_id)
    output = omni.model(
        inputs_embeds=embed(omni.model, batch["input_ids"], batch["media"]),
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
    )
    labels = batch["labels"][:, 1:]
    known = labels != IGNORE
    logps = output.logits[:, :-1].float().log_softmax(dim=-1)
    chosen = logps.gather(2, labels.masked_fill(~known, 0).unsqueeze(2)).squeeze(2)
    return (chosen * known).sum(dim=1) / known.sum(dim=1)
