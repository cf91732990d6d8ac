"""The estimate of a matrix product on its own, for tests, figures and the curious."""

from __future__ import annotations

import torch
from torch import Tensor

from wtacrs.randomness import fresh_generator
from wtacrs.sampling.estimators import check_budget, check_estimator
from wtacrs.sampling.select import draw, normalise, rows_kept, select
from wtacrs.sampling.weights import scaled_row_norms


def estimate_matmul(
    a: Tensor,
    b: Tensor,
    *,
    estimator: str = "wtacrs",
    budget: float = 0.3,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate ``a.T @ b`` from k = budget * n of its n rows (paper, Eq. 2).

    Args:
        a: (n, i).
        b: (n, o).
        estimator: "full" or a key of ``ESTIMATORS``.
        budget: share of rows kept, in (0, 1].
        weights: (n,) importance of each row, finite and >= 0. By default ||a_n|| * ||b_n||, the
            best there is; a NaN or inf in ``a`` or ``b`` then shows up in the result, as it would
            in the product itself.
        generator: source of randomness; see ``select``.

    Returns:
        (i, o), in the dtype of ``a.T @ b``.

    Raises:
        ValueError: a value or shape outside its rule.
    """
    check_estimator(estimator)
    check_budget(budget)
    _check_shapes(a, b, weights)
    k = rows_kept(a.shape[0], budget)
    if weights is not None:
        indices, scales = select(estimator, weights, k, generator=generator)
    else:
        generator = generator or fresh_generator(a.device)
        product = scaled_row_norms(a).double() * scaled_row_norms(b).double()
        probabilities = normalise(product).to(torch.promote_types(a.dtype, torch.float32))
        indices, scales = draw(estimator, probabilities, k, generator)
    share = scales.sqrt()[:, None]  # to each side its root: in float16 a scale alone may overflow
    return (share * a[indices]).to(a.dtype).T @ (share * b[indices]).to(b.dtype)


def _check_shapes(a: Tensor, b: Tensor, weights: Tensor | None) -> None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[0] or a.shape[0] == 0:
        raise ValueError(
            f"a {tuple(a.shape)} and b {tuple(b.shape)} do not share their rows; "
            "give a (n, i) and b (n, o) with the same n >= 1"
        )
    if weights is not None and weights.shape != a.shape[:1]:
        raise ValueError(
            f"weights have shape {tuple(weights.shape)}; "
            f"give one weight for each of the {a.shape[0]} rows"
        )
