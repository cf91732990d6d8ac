"""From activations and gradient norms to sampling probabilities.

The variance of every estimator is lowest for w_n = ||X_n|| * ||dY_n|| (paper, Eq. 4). The forward
pass knows ||X_n||; ||dY_n|| is an estimate (grad_norms.py). Norms and probabilities are computed in
float32 whatever the activations are, in float64 for float64 activations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wtacrs.sampling.estimators import normalise


def row_norms(rows: Tensor) -> Tensor:
    """L2 norm of each row of ``rows`` (n, i) -> (n,), in float32 or better."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return torch.linalg.vector_norm(rows, dim=1, dtype=dtype)


def row_probabilities(
    rows: Tensor, gradient_norms: Tensor | None, mask: Tensor | None, floor: float
) -> Tensor:
    """Sampling probabilities (n,) of the rows of an activation.

    Args:
        rows: X, (n, i).
        gradient_norms: (n,) estimate of ||dY_n||, or None for a flat one.
        mask: (n,) True or 1 for rows that count, None for all. Masked rows get exactly 0.
        floor: share spread evenly over the rows that count, see ``SamplingConfig.floor``.

    Returns:
        (n,), summing to 1; even over the valid rows when every weight is zero, so that a dead
        batch does not stop training; all zero when every row is masked. A NaN or inf anywhere in
        ``rows`` gives NaN: it must reach dW.
    """
    weights = row_norms(rows)
    if gradient_norms is not None:
        weights = weights * gradient_norms.to(weights.dtype)
    if mask is None:
        valid = torch.ones_like(weights)
    else:
        valid = mask.to(weights.dtype)
        weights = weights * valid  # a product, not `where`: NaN in a masked row must survive
    even = valid / valid.sum().clamp(min=1)
    mixed = (1 - floor) * normalise(weights) + floor * even
    return torch.where(weights.sum() == 0, even, mixed)
