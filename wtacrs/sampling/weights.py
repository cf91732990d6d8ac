"""From activations and gradient norms to sampling probabilities.

The variance of every estimator is lowest for w_n = ||X_n|| * ||dY_n|| (paper, Eq. 4). The forward
pass knows ||X_n||; ||dY_n|| is an estimate (grad_norms.py). Norms and probabilities are computed in
float32 whatever the activations are, in float64 for float64 activations.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of the floor at least: with every weight zero the rows still count alike, and nothing is 0/0.
LEAST_FLOOR = 1e-30


def row_norms(rows: Tensor) -> Tensor:
    """L2 norm of each row of ``rows`` (n, i) -> (n,), in float32 or better."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return torch.linalg.vector_norm(rows, dim=1, dtype=dtype)


def scaled_row_norms(rows: Tensor) -> Tensor:
    """``row_norms`` over the largest |entry|, (n,): squares of tiny or huge rows stay in range."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    largest = rows.abs().amax().to(dtype)
    return row_norms(rows / torch.where(largest == 0, 1.0, largest))


def even_floor(valid: Tensor, floor: float) -> Tensor:
    """The share of the probability that is spread evenly over the rows that count.

    Args:
        valid: (n,) floating, 1 for rows that count, 0 for the others.
        floor: see ``SamplingConfig.floor``.
    """
    if valid.stride() == (0,):  # one number for all rows
        return (valid[:1] * (max(floor, LEAST_FLOOR) / len(valid))).expand(len(valid))
    return valid * (max(floor, LEAST_FLOOR) / valid.sum().clamp(min=1))


def floored(weights: Tensor, even: Tensor, floor: float) -> Tensor:
    """``probabilities_of`` times a number that does not matter, with fewer kernels: (n,).

    Where every weight is zero so are these.
    """
    return torch.addcmul(weights, even, weights.sum(), value=1 / (1 - floor))


def probabilities_of(weights: Tensor, even: Tensor, floor: float) -> Tensor:
    """Sampling probabilities (n,): (1 - floor) w_n / sum(w) + even_n, ``even`` of ``even_floor``.

    They sum to 1, or to the floor where every weight is zero, which the estimators take as well;
    to 0 where no row counts. Rows that do not count must have weight 0, or NaN: a NaN or inf in any
    weight makes every probability NaN, for it must reach dW.
    """
    total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return torch.addcdiv(even, weights, total, value=1 - floor)
