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
Estimator = Callable[..., Selection]


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


TINY = torch.finfo(torch.float32).tiny


class Slots(NamedTuple):
    """The k slots for kept rows, in constants (k,): they depend on n and k alone.

    Attributes:
        number: 1..k, float64.
        before: 0..k-1.
        place: n-k..n-1, of the k most probable rows in ascending order.
        nudge: nothing in float32, over ``number``: of equal quotients, the one with the fewest
            winners is then the smallest.
        least: the same of the smallest number in float32.
    """

    number: Tensor
    before: Tensor
    place: Tensor
    nudge: Tensor
    least: Tensor

    @staticmethod
    def of(n: int, k: int, device: torch.device) -> Slots:
        number = torch.arange(1, k + 1, dtype=torch.float64, device=device)
        before = torch.arange(k, device=device)
        return Slots(number, before, before + (n - k), 1e-300 / number, k * TINY / number)


class SlotTables(dict[tuple[int, int, torch.device], Slots]):
    """The slots of all sizes that come up in a forward pass, each made once."""

    def of(self, n: int, k: int, device: torch.device) -> Slots | None:
        """Those for k of ``n`` rows; None for all rows."""
        if k < n and (n, k, device) not in self:
            self[n, k, device] = Slots.of(n, k, device)
        return self.get((n, k, device))


def count_winners(tail_mass: Tensor, power: int = 1) -> tuple[Tensor, Tensor]:
    """How many of the k slots are drawn, and the step (1 - P_c) / (k - c). Paper, Theorem 2.

    The number of winners c in 0..k-1 minimises (1 - P_c)^power / (k - c). The paper's power of 1
    bounds the variance; 2 is the variance itself where p_n is proportional to the norm of row n.

    Args:
        tail_mass: (k,), entry j is the mass 1 - P_c outside the c = k - 1 - j most probable rows.

    Returns:
        k - c, a tensor () of int64, and the step, a tensor ().
    """
    k = tail_mass.numel()
    place, _, step = _winners(tail_mass.double(), power, Slots.of(k, k, tail_mass.device))
    return place[0] + 1, step


def _winners(tail: Tensor, power: int, slots: Slots) -> tuple[Tensor, Tensor, Tensor]:
    """Of the tail masses (k,): the place (1,) of the best one, itself (1,), and the step ()."""
    mass = tail**power if power > 1 else tail
    # The minimum comes with its place: indexing by a 0-d tensor would stop to read it on the host.
    least, place = torch.addcdiv(slots.nudge, mass, slots.number).min(dim=0, keepdim=True)
    mass = tail.index_select(0, place)
    step = least if power == 1 else mass / slots.number.index_select(0, place)
    return place, mass, step[0]


def wtacrs(
    probabilities: Tensor,
    k: int,
    generator: torch.Generator,
    slots: Slots | None = None,
    power: int = 1,
) -> Selection:
    """Winner-take-all: c winners at scale 1, k - c rows drawn from the rest. Paper, Eq. 5-6.

    Tail rows are drawn with replacement with probability p_n / (1 - P_c) and get the scale
    (1 - P_c) / ((k - c) p_n). Where k rows are all that have p_n > 0 the tail has no mass, and the
    result is exact; spare slots get the scale 0.
    """
    n = probabilities.numel()
    slots = slots or Slots.of(n, k, probabilities.device)
    ascending, order = probabilities.sort()
    cumulative = ascending.cumsum(0, dtype=torch.float64)  # entry n-1-c: mass outside c winners
    place, mass, step = _winners(cumulative[n - k :], power, slots)
    positions = _draw_slots(cumulative, mass, k, generator)
    is_winner = slots.before > place
    positions = torch.where(is_winner, slots.place, positions)
    p = ascending[positions].clamp(min=TINY)  # 0 / 0 is a spare slot
    scales = (step / p).masked_fill_(is_winner, 1.0)
    return Selection(order[positions], scales)


def wtacrs_exact(
    probabilities: Tensor, k: int, generator: torch.Generator, slots: Slots | None = None
) -> Selection:
    """``wtacrs`` with the number of winners that minimises the variance, not the paper's bound."""
    return wtacrs(probabilities, k, generator, slots, power=2)


def _threshold(probabilities: Tensor, slots: Slots) -> Tensor:
    """tau with which min(1, p_n / tau) sum to k, () float64.

    It is the step of ``count_winners``: the c that minimises (1 - P_c) / (k - c) is also the
    smallest one for which no row outside the winners is larger than that quotient.
    """
    cumulative = probabilities.sort().values.cumsum(0, dtype=torch.float64)
    tail = cumulative[-len(slots.number) :]
    return torch.addcdiv(slots.least, tail, slots.number).amin()


def inclusion_probabilities(probabilities: Tensor, k: int) -> Tensor:
    """pi_n = min(1, p_n / tau) with tau such that they sum to k, (n,). Where k rows or fewer have
    p_n > 0, these have pi_n = 1."""
    tau = _threshold(probabilities, Slots.of(len(probabilities), k, probabilities.device))
    return (probabilities / tau).clamp(max=1.0)


def pps(
    probabilities: Tensor, k: int, generator: torch.Generator, slots: Slots | None = None
) -> Selection:
    """Fixed-size sampling with probability proportional to size, without replacement.

    Row n is kept with probability pi_n = min(1, p_n / tau) and gets the scale 1 / pi_n
    (Horvitz-Thompson 1952). One uniform number and equal steps of 1 along the cumulated pi
    (systematic sampling, Madow 1949): a step cannot jump over a row with pi_n = 1, so winners need
    no treatment of their own, and no row is drawn twice. The rows are cumulated in random order
    (Goodman, Kish 1950): in token order, rows that repeat with the period of the steps would be
    kept together or not at all.
    """
    n, device = probabilities.numel(), probabilities.device
    slots = slots or Slots.of(n, k, device)
    order = torch.randperm(n, device=device, generator=generator)
    ratios = probabilities[order] / _threshold(probabilities, slots)
    inclusion = ratios.clamp(min=TINY, max=1.0)  # no step ends at the least ones; no 0 / 0
    cumulative = inclusion.cumsum(0, dtype=torch.float64)
    start = torch.rand(1, dtype=torch.float64, device=device, generator=generator)
    # In (0, k]: the first row whose sum reaches a point is never one of probability zero.
    points = slots.number - start
    # Without the last entry, no position leaves the range, whatever a NaN does.
    places = torch.searchsorted(cumulative[:-1], points)
    # Beyond the sum lie spare slots, where fewer than k rows count, and at most a rounding error.
    scales = (points <= cumulative[-1]) / inclusion[places]
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
