"""Column-row sampling: which k of n rows stand for the sum over all of them, and at what scale.

A matrix product is a sum of n outer products, A^T B = sum_n A_n (x) B_n. Each estimator below picks
k row indices and a scale for each, so that sum_j scale_j * A_[j] (x) B_[j] estimates that sum.
Every one but ``deterministic`` is unbiased for any probabilities, as long as every row with a
non-zero outer product has p_n > 0; the probabilities only move the variance.

Static in shape, free of host synchronisation: k comes from the shape, the number of winners stays a
tensor. Masses are summed in float64, from the smallest row upwards, because 1 - prefix loses all
digits just where winners are decided.

Source: WTA-CRS, arXiv 2305.15265 (Eq. 2-6); Drineas, Kannan, Mahoney 2006 for CRS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Selection(NamedTuple):
    """The rows that are kept: ``indices`` (k,) int64 and ``scales`` (k,) floating."""

    indices: Tensor
    scales: Tensor


# (probabilities (n,), summing to 1; k, with 1 <= k < n; generator) -> Selection
Estimator = Callable[[Tensor, int, torch.Generator], Selection]


def _draw_slots(cumulative: Tensor, mass: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k independent positions, each with probability proportional to its step in ``cumulative``.

    Inverse transform instead of ``torch.multinomial``, which stops the device to check its input.
    Positions of zero probability have no step and are never drawn.
    """
    uniform = torch.rand(k, dtype=cumulative.dtype, device=cumulative.device, generator=generator)
    # Without the last entry, no position leaves the range, whatever a rounding or a NaN does.
    return torch.searchsorted(cumulative[:-1], uniform * mass, right=True)


def uniform(probabilities: Tensor, k: int, generator: torch.Generator) -> Selection:
    """k rows with replacement, all m rows of positive probability alike; scale m / k."""
    positive = (probabilities > 0).double()
    m = positive.sum()
    indices = _draw_slots(positive.cumsum(0), m, k, generator)
    return Selection(indices, (m / k).to(probabilities.dtype).expand(k))


def crs(probabilities: Tensor, k: int, generator: torch.Generator) -> Selection:
    """k rows with replacement, row n with probability p_n; scale 1 / (k p_n). Paper, Eq. 2-3."""
    cumulative = probabilities.double().cumsum(0)
    indices = _draw_slots(cumulative, cumulative[-1], k, generator)
    scales = cumulative[-1] / (k * probabilities[indices].double())
    return Selection(indices, scales.to(probabilities.dtype))


def deterministic(probabilities: Tensor, k: int, generator: torch.Generator) -> Selection:
    """The k most probable rows at scale 1 (top-k). Biased: the paper's negative control."""
    top = torch.topk(probabilities, k, sorted=False)
    return Selection(top.indices, torch.ones_like(top.values))


deterministic.unbiased = False  # type: ignore[attr-defined]  # an estimator is, unless it says so


def _slots(k: int, device: torch.device) -> Tensor:
    """1..k, (k,) int64."""
    return torch.arange(1, k + 1, device=device)


def count_winners(
    tail_mass: Tensor, power: int = 1, slots: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """How many of the k slots are drawn, and the step (1 - P_c) / (k - c). Paper, Theorem 2.

    The number of winners c in 0..k-1 minimises (1 - P_c)^power / (k - c). The paper's power of 1
    bounds the variance; 2 is the variance itself where p_n is proportional to the norm of row n.

    Args:
        tail_mass: (k,), entry j is the mass 1 - P_c outside the c = k - 1 - j most probable rows.
        slots: 1..k, where the caller has them.

    Returns:
        k - c, a tensor () of int64, and the step, a tensor ().
    """
    slots = _slots(tail_mass.numel(), tail_mass.device) if slots is None else slots
    # The minimum comes with its place: indexing by a 0-d tensor would stop to read it on the host.
    least, place = torch.min(tail_mass**power / slots if power > 1 else tail_mass / slots, dim=0)
    drawn = place + 1
    return drawn, least if power == 1 else (least * drawn) ** (1 / power) / drawn


def wtacrs(probabilities: Tensor, k: int, generator: torch.Generator, power: int = 1) -> Selection:
    """Winner-take-all: c winners at scale 1, k - c rows drawn from the rest. Paper, Eq. 5-6.

    Tail rows are drawn with replacement with probability p_n / (1 - P_c) and get the scale
    (1 - P_c) / ((k - c) p_n). Where k rows are all that have p_n > 0 the tail has no mass or one
    row, and the result is exact; spare slots get the scale 0.
    """
    n = probabilities.numel()
    ascending, order = probabilities.sort()
    cumulative = ascending.cumsum(0, dtype=torch.float64)  # entry n-1-c: mass outside c winners
    slots = _slots(k, order.device)
    drawn, step = count_winners(cumulative[n - k :], power, slots)
    positions = _draw_slots(cumulative, step * drawn, k, generator)
    places = slots + (n - k - 1)  # of the k most probable rows
    is_winner = slots > drawn
    positions = torch.where(is_winner, places, positions)
    p = ascending[positions]
    scales = (step / p).masked_fill_(is_winner, 1.0).masked_fill_(p == 0, 0.0)
    return Selection(order[positions], scales)


def wtacrs_exact(probabilities: Tensor, k: int, generator: torch.Generator) -> Selection:
    """``wtacrs`` with the number of winners that minimises the variance, not the paper's bound."""
    return wtacrs(probabilities, k, generator, power=2)


def inclusion_probabilities(
    probabilities: Tensor, k: int, order: Tensor | None = None, slots: Tensor | None = None
) -> Tensor:
    """pi_n = min(1, p_n / tau) with tau such that they sum to k, (n,), in ``order`` if given.

    tau is the step of ``count_winners``: the c that minimises (1 - P_c) / (k - c) is also the
    smallest one for which no row outside the winners is larger than that quotient. Where k rows or
    fewer have p_n > 0, these have pi_n = 1.
    """
    slots = _slots(k, probabilities.device) if slots is None else slots
    cumulative = probabilities.sort().values.cumsum(0, dtype=torch.float64)
    tau = (cumulative[-k:] / slots).amin()
    tau = tau.clamp(min=torch.finfo(probabilities.dtype).tiny)
    p = probabilities if order is None else probabilities[order]
    return (p / tau).clamp(max=1.0)


def pps(probabilities: Tensor, k: int, generator: torch.Generator) -> Selection:
    """Fixed-size sampling with probability proportional to size, without replacement.

    Row n is kept with probability pi_n = min(1, p_n / tau) and gets the scale 1 / pi_n
    (Horvitz-Thompson 1952). One uniform number and equal steps of 1 along the cumulated pi
    (systematic sampling, Madow 1949): a step cannot jump over a row with pi_n = 1, so winners need
    no treatment of their own, and no row is drawn twice. The rows are cumulated in random order
    (Goodman, Kish 1950): in token order, rows that repeat with the period of the steps would be
    kept together or not at all.
    """
    n, device = probabilities.numel(), probabilities.device
    slots = _slots(k, device)
    order = torch.randperm(n, device=device, generator=generator)
    inclusion = inclusion_probabilities(probabilities, k, order, slots)
    cumulative = inclusion.cumsum(0, dtype=torch.float64)
    start = torch.rand(1, dtype=torch.float64, device=device, generator=generator)
    # In (0, k]: the first row whose sum reaches a point is never one of probability zero.
    points = slots - start
    # Without the last entry, no position leaves the range, whatever a NaN does.
    places = torch.searchsorted(cumulative[:-1], points)
    # Beyond the sum lie spare slots, where fewer than k rows count, and at most a rounding error.
    spare = points > cumulative[-1]
    scales = inclusion[places].reciprocal_().masked_fill_(spare, 0.0)
    return Selection(order[places], scales)


#: Name -> estimator. A user's own function joins by ``ESTIMATORS["name"] = function``.
ESTIMATORS: dict[str, Estimator] = {
    "uniform": uniform,
    "crs": crs,
    "deterministic": deterministic,
    "wtacrs": wtacrs,
    "wtacrs_exact": wtacrs_exact,
    "pps": pps,
}


def check_estimator(estimator: str) -> None:
    """Raise ValueError, with the list of names, unless ``estimator`` is known."""
    if estimator != "full" and estimator not in ESTIMATORS:
        known = ", ".join(["full", *ESTIMATORS])
        raise ValueError(f"estimator={estimator!r} is unknown; choose one of {known}")


def check_budget(budget: float) -> None:
    """Raise ValueError unless ``budget`` is in (0, 1]."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1:
        raise ValueError(
            f"budget={budget!r} is not a number in (0, 1]; "
            "it is the share of rows kept, for instance 0.3"
        )
