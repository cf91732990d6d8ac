"""The expected squared error of each estimator in closed form: theory to hold measurements against.

The product is G = A^T B = sum_n G_n with G_n = A_n (x) B_n. An estimate sum_n c_n G_n misses it by
e = sum_n (c_n - 1) G_n, so every error is a quadratic form in the Gram matrix of the G_n,

    K_nm = <G_n, G_m> = <A_n, A_m> <B_n, B_m>,      ||e||_F^2 = (c - 1)^T K (c - 1),

which is formed once (``outer_gram``) and serves every estimator, budget and weighting. Of centred
rows (``centre.py``) only the rest is drawn: give its Gram matrix, its weights and its k.

Source: arXiv 2305.15265, Eq. 3 (CRS), Eq. 7 and Theorem 2 (WTA-CRS); Horvitz, Thompson 1952 and
Hajek 1964 (pps).
"""

from __future__ import annotations

import torch
from torch import Tensor

from wtacrs.sampling.estimators import count_winners, inclusion_probabilities
from wtacrs.sampling.select import normalise


def outer_gram(a: Tensor, b: Tensor) -> Tensor:
    """K, (n, n) float64, for a (n, i) and b (n, o)."""
    a, b = a.double(), b.double()
    return (a @ a.T) * (b @ b.T)


def _tail_mass(weights: Tensor, k: int) -> Tensor:
    """(k,) mass outside the c = k-1..0 most probable rows."""
    return normalise(weights.double()).sort().values.cumsum(0)[-k:]


def optimal_winners(weights: Tensor, k: int, power: int = 1) -> int:
    """c*, the number of winners that minimises (1 - P_c)^power / (k - c). Paper, Theorem 2."""
    return k - int(count_winners(_tail_mass(weights, k), power)[0])


def theorem2_holds(weights: Tensor, k: int) -> bool:
    """Whether P_c > c / k for c = c* > 0: then WTA-CRS varies less than CRS. Paper, Theorem 2."""
    c = optimal_winners(weights, k)
    return c > 0 and bool(1 - _tail_mass(weights, k)[k - 1 - c] > c / k)


def winner_mass(weights: Tensor) -> Tensor:
    """P_c for c = 1..n, (n,): probability mass of the c largest rows."""
    return normalise(weights.double()).sort(descending=True).values.cumsum(0)


def expected_squared_error(estimator: str, gram: Tensor, weights: Tensor, k: int) -> float:
    """E||G_hat - G||_F^2 (for the biased ``deterministic``, its squared bias).

    Args:
        estimator: full, uniform, crs, deterministic, wtacrs, wtacrs_exact or pps. That of pps is
            Hajek's approximation, close from about ten drawn rows on.
        gram: (n, n), from ``outer_gram``.
        weights: (n,) finite and >= 0.
        k: rows kept of n.

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
    if estimator in ("wtacrs", "wtacrs_exact"):
        c = optimal_winners(p, k, power=1 if estimator == "wtacrs" else 2)
        # The tail is CRS by itself, over k - c slots, with the probabilities p_n / (1 - P_c).
        return _with_replacement(gram, normalise(p.index_fill(0, largest[:c], 0.0)), k - c)
    if estimator == "pps":
        return _without_replacement(gram, inclusion_probabilities(p, k))
    raise ValueError(
        f"estimator={estimator!r} has no closed form here; choose full, uniform, crs, "
        "deterministic, wtacrs, wtacrs_exact or pps"
    )


def _with_replacement(gram: Tensor, p: Tensor, k: int) -> float:
    """(sum_n ||G_n||^2 / p_n - ||G||^2) / k over the rows with p_n > 0. Paper, Eq. 3."""
    drawn = (p > 0).to(gram.dtype)
    ratios = torch.where(p > 0, gram.diagonal() / p, 0.0)
    return float((ratios.sum() - drawn @ gram @ drawn) / k)


def _without_replacement(gram: Tensor, inclusion: Tensor) -> float:
    """sum_n v_n ||G_n / pi_n - B||^2, with v_n = pi_n (1 - pi_n) m / (m - 1) over the m rows that
    may or may not be kept, and B the mean of G_n / pi_n by v. Exact where all pi_n are equal."""
    tail = (inclusion > 0) & (inclusion < 1)
    m = tail.sum().clamp(min=2)
    v = torch.where(tail, inclusion * (1 - inclusion) * m / (m - 1), 0.0)
    share = torch.where(tail, v / inclusion, 0.0)
    squares = torch.where(tail, share / inclusion * gram.diagonal(), 0.0).sum()
    return float(squares - share @ gram @ share / v.sum().clamp(min=1e-300))
