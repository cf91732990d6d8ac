"""The expected squared error of each estimator in closed form: theory to hold measurements against.

The product is G = A^T B = sum_n G_n with G_n = A_n (x) B_n. An estimate sum_n c_n G_n misses it by
e = sum_n (c_n - 1) G_n, so every error is a quadratic form in the Gram matrix of the G_n,

    K_nm = <G_n, G_m> = <A_n, A_m> <B_n, B_m>,      ||e||_F^2 = (c - 1)^T K (c - 1),

which is formed once (``outer_gram``) and serves every estimator, budget and weighting.

Source: arXiv 2305.15265, Eq. 3 (CRS), Eq. 7 and Theorem 2 (WTA-CRS); Horvitz-Thompson 1952 (pps).
"""

from __future__ import annotations

import torch
from torch import Tensor

from wtacrs.sampling.estimators import count_winners, inclusion_probabilities, normalise


def outer_gram(a: Tensor, b: Tensor) -> Tensor:
    """K, (n, n) float64, for a (n, i) and b (n, o)."""
    a, b = a.double(), b.double()
    return (a @ a.T) * (b @ b.T)


def _tail_mass(weights: Tensor, k: int) -> Tensor:
    """(k,) mass outside the c = 0..k-1 most probable rows."""
    return normalise(weights.double()).sort().values.cumsum(0)[-k:].flip(0)


def optimal_winners(weights: Tensor, k: int) -> int:
    """c*, the number of winners that minimises (1 - P_c) / (k - c). Paper, Theorem 2."""
    return int(count_winners(_tail_mass(weights, k), k)[0])


def theorem2_holds(weights: Tensor, k: int) -> bool:
    """Whether P_c > c / k for c = c* > 0: then WTA-CRS varies less than CRS. Paper, Theorem 2."""
    c = optimal_winners(weights, k)
    return c > 0 and bool(1 - _tail_mass(weights, k)[c] > c / k)


def winner_mass(weights: Tensor) -> Tensor:
    """P_c for c = 1..n, (n,): probability mass of the c largest rows."""
    return normalise(weights.double()).sort(descending=True).values.cumsum(0)


def expected_squared_error(
    estimator: str, gram: Tensor, weights: Tensor, k: int, *, starts: int | None = None
) -> float:
    """E||G_hat - G||_F^2 (for the biased ``deterministic``, its squared bias).

    Args:
        estimator: full, uniform, crs, deterministic, wtacrs or pps.
        gram: (n, n), from ``outer_gram``.
        weights: (n,) finite and >= 0.
        k: rows kept of n.
        starts: for pps, evaluate so many evenly spaced starts instead of all of the at most n + 1
            different draws; None is exact.

    Raises:
        ValueError: an estimator without a closed form here.
    """
    p = normalise(weights.double())
    if estimator == "full" or k >= int((p > 0).sum()):
        return 0.0
    largest = p.argsort(descending=True)
    if estimator == "uniform":
        return _with_replacement(gram, (p > 0).double() / (p > 0).sum(), k)
    if estimator == "crs":
        return _with_replacement(gram, p, k)
    if estimator == "deterministic":
        left_out = torch.zeros_like(p).index_fill_(0, largest[k:], 1.0)
        return float(left_out @ gram @ left_out)
    if estimator == "wtacrs":
        c = optimal_winners(p, k)
        # The tail is CRS by itself, over k - c slots, with the probabilities p_n / (1 - P_c).
        return _with_replacement(gram, normalise(p.index_fill(0, largest[:c], 0.0)), k - c)
    if estimator == "pps":
        return _systematic(gram, p, k, starts)
    raise ValueError(
        f"estimator={estimator!r} has no closed form here; choose full, uniform, crs, "
        "deterministic, wtacrs or pps"
    )


def pps_bound(gram: Tensor, weights: Tensor, k: int) -> float:
    """A conservative value for pps, cheap for any n: its tail drawn with replacement.

    That is WTA-CRS's error, for both have the same winners and the same tail. Drawing without
    replacement is better on average over orders of the rows, not for each single one.
    """
    return expected_squared_error("wtacrs", gram, weights, k)


def _with_replacement(gram: Tensor, p: Tensor, k: int) -> float:
    """(sum_n ||G_n||^2 / p_n - ||G||^2) / k over the rows with p_n > 0. Paper, Eq. 3."""
    drawn = (p > 0).to(gram.dtype)
    ratios = torch.where(p > 0, gram.diagonal() / p, 0.0)
    return float((ratios.sum() - drawn @ gram @ drawn) / k)


def _systematic(gram: Tensor, p: Tensor, k: int, starts: int | None) -> float:
    """Mean over the uniform start; the draw is constant between breakpoints of the start."""
    inclusion = inclusion_probabilities(p, k)
    cumulative = inclusion.cumsum(0)
    cumulative = cumulative * (k / cumulative[-1])
    if starts is None:
        ends = torch.cat([cumulative % 1.0, cumulative.new_tensor([0.0, 1.0])]).unique()
    else:
        ends = torch.linspace(0, 1, starts + 1, dtype=cumulative.dtype)
    middles, lengths = (ends[1:] + ends[:-1]) / 2, ends.diff()  # (u,)
    points = middles[:, None] + torch.arange(k, dtype=cumulative.dtype)  # (u, k)
    indices = torch.searchsorted(cumulative, points, right=True).clamp(max=len(p) - 1)
    misses = torch.full((len(middles), len(p)), -1.0, dtype=gram.dtype)  # (u, n), c - 1
    misses.scatter_add_(1, indices, (1.0 / inclusion)[indices])
    return float((lengths * ((misses @ gram) * misses).sum(1)).sum())
