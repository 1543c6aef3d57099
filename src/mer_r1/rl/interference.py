"""Interference between two objectives: what the theory predicts, and what a batch of rollouts shows.

Within a group let z_R and z_P be the standardised recall and precision, sigma_R and sigma_P their spreads and rho their
correlation. Summing first and normalising once gives A = w_R z_R + w_P z_P with w_R = sigma_R / sigma_S, w_P = sigma_P
/ sigma_S and sigma_S^2 = sigma_R^2 + sigma_P^2 + 2 rho sigma_R sigma_P: the objective with the larger spread leads.
Normalising first gives weights 1 and 1. ``docs/theory.md`` derives this and what follows for the gradients.

Nothing here knows about emotions. Source: MER-R1 (arXiv 2606.27652), "variance-induced interference"; the formulas are
our reading (docs/paper_map.md, "Dual-objective disentanglement").
Shapes: B groups of G rollouts, R = B*G rows, K objectives.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mer_r1.rl.advantages import MIN_SPREAD, group_normalise, group_spread


def effective_weights(sigma_recall: Tensor, sigma_precision: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the standardised objectives when their rewards are summed and normalised once.

    Args:
        sigma_recall: spreads of the first objective, any shape.
        sigma_precision: spreads of the second, same shape.
        rho: their correlation in [-1, 1], same shape.

    Returns:
        sigma_R / sigma_S and sigma_P / sigma_S; NaN where the sum has no spread.

    >>> [round(weight.item(), 3) for weight in effective_weights(*torch.tensor([0.3, 0.1, 0.0]))]
    [0.949, 0.316]
    """
    total = (sigma_recall**2 + sigma_precision**2 + 2 * rho * sigma_recall * sigma_precision).clamp(min=0).sqrt()
    total = torch.where(total > MIN_SPREAD, total, torch.nan)
    return sigma_recall / total, sigma_precision / total


def group_correlation(first: Tensor, second: Tensor, num_generations: int) -> Tensor:
    """Correlation of two rewards within each group.

    Args:
        first: (R,) rewards, groups contiguous.
        second: (R,) rewards of the same rollouts for the other objective.
        num_generations: G.

    Returns:
        (B,) in [-1, 1]; NaN for a group in which one of them has no spread.
    """
    a, b = (group_normalise(values, num_generations).view(-1, num_generations) for values in (first, second))
    correlation = (a * b).sum(dim=1) / (num_generations - 1)
    flat = (a == 0).all(dim=1) | (b == 0).all(dim=1)
    return correlation.clamp(-1, 1).masked_fill(flat, torch.nan)


def alignment(weight_own: float, weight_other: float, rho: float) -> float:
    """Correlation of a combined advantage w z + w' z' with one of its objectives, z.

    It is also the cosine between the combined gradient and that objective's own, where the rollouts' score vectors are
    uncorrelated and equally long (docs/theory.md); the cosine of the two objectives' gradients is then rho itself.

    >>> round(alignment(1.0, 1.0, 0.0), 4)
    0.7071
    """
    length = (weight_own**2 + weight_other**2 + 2 * rho * weight_own * weight_other) ** 0.5
    return (weight_own + rho * weight_other) / length if length else float("nan")


def objective_statistics(
    rewards_per_func: Tensor, advantages: Tensor, objectives: Sequence[str], num_generations: int
) -> dict[str, float]:
    """Spreads, correlation and effective weights of recall and precision in one batch, predicted and measured.

    The prediction applies the formulas above to the spreads and correlations of this batch's groups. The measurement
    regresses the advantages of the update on z_R and z_P; these advantages contain format and calibration, which the
    formulas leave out.

    Args:
        rewards_per_func: (R, K) rewards, groups contiguous.
        advantages: (R,) advantages of the update.
        objectives: names of the K columns.
        num_generations: G.

    Returns:
        Means over the groups in which both objectives have a spread; empty without such a group or such objectives.
    """
    if not {"recall", "precision"} <= set(objectives):
        return {}
    recall, precision = (rewards_per_func[:, list(objectives).index(name)] for name in ("recall", "precision"))
    rho = group_correlation(recall, precision, num_generations)
    known = ~rho.isnan()
    if not bool(known.any()):
        return {}
    sigmas = [group_spread(values, num_generations)[::num_generations] for values in (recall, precision)]
    predicted = [weight[known].nanmean().item() for weight in effective_weights(sigmas[0], sigmas[1], rho)]
    rows = known.repeat_interleave(num_generations)
    standardised = [group_normalise(values, num_generations)[rows] for values in (recall, precision)]
    measured = regress(advantages[rows], torch.stack(standardised, dim=1))
    return {
        "sigma_recall": sigmas[0][known].mean().item(),
        "sigma_precision": sigmas[1][known].mean().item(),
        "rho": rho[known].mean().item(),
        "predicted_recall": predicted[0],
        "predicted_precision": predicted[1],
        "measured_recall": measured[0].item(),
        "measured_precision": measured[1].item(),
    }


def regress(values: Tensor, columns: Tensor) -> Tensor:
    """Least-squares coefficients of `values` (R,) on `columns` (R, K), without an intercept; (K,).

    Columns that carry the same information (recall and precision that move together) share the coefficient.
    """
    return torch.linalg.pinv(columns.double(), rtol=1e-6) @ values.double()


def cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Cosine of two gradients given as lists of tensors of the same shapes; NaN if one of them is zero."""
    dot = sum(float((a.double() * b.double()).sum()) for a, b in zip(first, second, strict=True))
    lengths = norm(first) * norm(second)
    return dot / lengths if lengths else float("nan")


def norm(gradient: Sequence[Tensor]) -> float:
    """Euclidean length of a gradient given as a list of tensors."""
    return sum(float((part.double() ** 2).sum()) for part in gradient) ** 0.5
