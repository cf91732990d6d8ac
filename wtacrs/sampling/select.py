"""From weights to a selection by any estimator: normalised, checked, exact where it can be."""

from __future__ import annotations

import torch
from torch import Tensor

from wtacrs.randomness import fresh_generator
from wtacrs.sampling.estimators import (
    ESTIMATORS,
    Selection,
    Slots,
    check_estimator,
    pps,
    wtacrs,
    wtacrs_exact,
)

# Right for weights of any sum, and exact by themselves where k rows are all that count.
SELF_CONTAINED = frozenset({wtacrs, wtacrs_exact, pps})


def rows_kept(n: int, budget: float) -> int:
    """k, the number of rows that ``budget`` keeps of n: rounded, at least one."""
    return max(1, round(budget * n))


def normalise(weights: Tensor) -> Tensor:
    """Weights (n,) -> probabilities (n,). All-zero weights stay zero; NaN and inf become NaN."""
    total = weights.double().sum()
    total = torch.where(total == 0, torch.ones_like(total), total)
    return (weights.double() / total).to(weights.dtype)


def draw(
    estimator: str,
    weights: Tensor,
    k: int,
    generator: torch.Generator,
    slots: Slots | None = None,
) -> Selection:
    """``select`` without its checks: no synchronisation, and NaN passes through to the scales.

    Where k reaches the number of rows of weight > 0, any estimator keeps just those, at scale 1,
    and gives the spare slots the scale 0: the result is then exact.
    """
    n = weights.numel()
    if estimator == "full" or k >= n:
        indices = torch.arange(n, device=weights.device)
        return Selection(indices, torch.ones_like(weights) + 0 * weights.sum())
    function = ESTIMATORS[estimator]
    # Sums of float32 numbers are exact in float64; of float64 they are not, and ties may break.
    if function in SELF_CONTAINED and (function is pps or weights.dtype != torch.float64):
        return function(weights, k, generator, slots)
    probabilities = normalise(weights)
    drawn = function(probabilities, k, generator)
    top = torch.topk(probabilities, k, sorted=False)
    exact = (probabilities > 0).sum() <= k
    indices = torch.where(exact, top.indices, drawn.indices)
    scales = torch.where(exact, (top.values > 0).to(drawn.scales.dtype), drawn.scales)
    return Selection(indices, scales + 0 * probabilities.sum())


def select(
    estimator: str, weights: Tensor, k: int, *, generator: torch.Generator | None = None
) -> Selection:
    """Pick k of n rows, and their scales, by importance.

    Args:
        estimator: "full" (all rows, k is not used) or a key of ``ESTIMATORS``.
        weights: (n,) finite and >= 0, not necessarily normalised. Rows of weight zero are never
            kept while another is left; if all are zero, all rows count alike.
        k: rows to keep, 1 <= k <= n.
        generator: source of randomness, on the device of ``weights``. Without one, a fresh
            generator seeded by the operating system: torch's global generator is never read.

    Returns:
        Selection: ``indices`` (k,) int64, ``scales`` (k,) in float32 or better.

    Raises:
        ValueError: unknown estimator, k out of range, weights of a wrong shape or value.
    """
    check_estimator(estimator)
    if weights.dim() != 1 or not weights.is_floating_point():
        raise ValueError(
            f"weights have shape {tuple(weights.shape)} and dtype {weights.dtype}; "
            "give one floating-point weight for each row, shape (n,)"
        )
    if not 1 <= k <= weights.numel():
        raise ValueError(
            f"k={k} is outside 1..{weights.numel()}, the number of rows; "
            "k = budget * n, at least one row"
        )
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise ValueError(
            f"weights hold a negative or non-finite value (minimum {weights.min().item()}, "
            f"maximum {weights.max().item()}); weights are importances, finite and >= 0"
        )
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    weights = torch.where(weights.sum() == 0, torch.ones_like(weights), weights)
    if generator is None:
        generator = fresh_generator(weights.device)
    return draw(estimator, normalise(weights), k, generator)
