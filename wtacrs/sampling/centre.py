"""Centred rows: what a few exact directions hold of X is not sampled, only the rest is.

The difference estimator of survey sampling. Split X (n, i) = F G + R, with few features F (n, q)
and basis rows G (q, i) known before the draw. Then

    dW = dY^T X = (dY^T F) G + dY^T R,

the first product is exact, and only the second is estimated from k rows, with weights
||R_n|| * ||dY_n||. It is unbiased for any F and G that the draw does not touch. G holds

    classes   the mean of each class of rows: the first row of each sample, its last one, the
              others; one class where nothing is known of the rows;
    lowrank   beside them, r directions V of the rows less their means, F holding the coordinates.
              V is one power iteration on norm-weighted rows ahead of the last batch's.

It costs q rows and r numbers a row, which come out of the budget; the classes are kept once for all
layers, and do not count. Source: Cassel, Sarndal, Wretman
1976; ARCHITECTURE section 3 for the choice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from wtacrs.randomness import Randomness
from wtacrs.sampling.batch import Rows

CENTRES = ("none", "classes", "lowrank")
CLASSES = 3
LEAST_SHARE = 1e-15  # of the old directions in the new ones: never a norm of zero


class Split(NamedTuple):
    """X = [classes, coordinates] @ basis + rest.

    Attributes:
        classes: (n, c) indicators, shared by all inputs whose rows are alike.
        coordinates: (n, r) in the compute dtype, or None for r = 0.
        basis: G, (q, i) in the compute dtype, q = c + r.
        rest: R, (n, i).
    """

    classes: Tensor
    coordinates: Tensor | None
    basis: Tensor
    rest: Tensor


def features(classes: Tensor, coordinates: Tensor | None, dtype: torch.dtype) -> Tensor:
    """F (n, q) in ``dtype``."""
    classes = classes.to(dtype)
    return classes if coordinates is None else torch.cat([classes, coordinates.to(dtype)], 1)


def row_classes(rows: Rows, valid: Tensor) -> Tensor:
    """Which class each row belongs to, as indicators (n, classes) in the dtype of ``valid`` (n,).

    Rows that do not count belong to none. The first and the last row of a sample are those of its
    valid rows, so padding may lie on either side.
    """
    if rows.t < CLASSES:
        return valid[:, None]
    counts = valid.view(rows.b, rows.t)
    seen = counts.cumsum(1)  # (b, t)
    first = counts * (seen == 1)
    last = counts * (seen == seen[:, -1:]) * (1 - first)
    return torch.stack([first, last, counts - first - last], dim=-1).view(-1, CLASSES)


def class_shares(classes: Tensor, squares: Tensor) -> Tensor:
    """Of each row in the mean of each class, (..., n, c): of classes (n, c) and ||dY_n||^2 up to a
    factor, (..., n, 1). A class without a gradient has no shares."""
    weighted = classes * squares
    return weighted / weighted.sum(-2, keepdim=True).clamp(min=torch.finfo(weighted.dtype).tiny)


class Centring:
    """Splits the inputs of a model's layers and remembers their directions.

    Args:
        kind: one of ``CENTRES``.
        rank: r, directions of "lowrank".
        randomness: for the first directions.
    """

    def __init__(self, kind: str, rank: int, randomness: Randomness) -> None:
        self.kind = kind
        self.rank = rank if kind == "lowrank" else 0
        self._randomness = randomness
        self._directions: dict[str, Tensor] = {}  # leader -> V (i, r), float32 or better

    def size(self, n: int, i: int, classes: int, k: int) -> int:
        """q, the features of an input (n, i) at a budget of k rows: 0 where they would take more
        than half of it."""
        q = 0 if self.kind == "none" else classes + self.rank
        return q if 2 * self.cost(n, i, q) <= k else 0

    def cost(self, n: int, i: int, q: int) -> int:
        """Rows of the budget that a split with q features takes: q, and r numbers a row."""
        return q + -(-n * self.rank // i) if q > 0 else 0

    def split(
        self,
        name: str,
        x: Tensor,
        classes: Tensor,
        squares: Tensor,
        dtype: torch.dtype,
        remember: bool = True,
        shares: Tensor | None = None,
    ) -> Split:
        """Split the input of the layers filed under ``name``.

        Args:
            x: X, (n, i).
            classes: (n, classes) indicators, see ``row_classes``.
            squares: (n, 1) estimates of ||dY_n||^2 up to a factor, 0 for rows that do not count.
            dtype: of the products in the backward pass; the rest is what F and G, rounded to it,
                leave, so that rounding them costs no bias.
            remember: move the directions on; else this is a look.
            shares: ``class_shares``, where the caller has them.
        """
        if x.dtype == torch.float16:  # whose sums over rows overflow
            x = x.float()
        shares = class_shares(classes, squares) if shares is None else shares
        basis, z = shares.to(x.dtype).T @ x, None  # the means, (c, i)
        if self.rank > 0:
            v = self._directions_of(name, x)  # (i, r)
            z = torch.addmm(x @ v, classes.to(x.dtype), basis @ v, alpha=-1)  # (n, r)
            basis = torch.cat([basis, v.T])
            if remember:
                self._directions[name] = _moved(v, x, z * squares.to(x.dtype))
            z = z.to(dtype)
        basis = basis.to(dtype)
        f = features(classes, z, x.dtype)
        rest = torch.addmm(x, f, basis.to(x.dtype), alpha=-1)
        return Split(classes, z, basis, rest)

    def _directions_of(self, name: str, x: Tensor) -> Tensor:
        shape = x.shape[1], self.rank
        if (v := self._directions.get(name)) is None or v.shape != shape:
            v = torch.randn(shape, device=x.device, generator=self._randomness.generator(x.device))
            v = torch.linalg.qr(v).Q
        return v.to(x.device, x.dtype)

    def state_dict(self) -> dict[str, Any]:
        vectors = {name: v.clone().cpu() for name, v in self._directions.items()}
        return {"vectors": vectors, "generators": self._randomness.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._directions = {name: v.clone() for name, v in state["vectors"].items()}
        self._randomness.load_state_dict(state["generators"])


def _moved(v: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """An orthonormal basis of X^T z (i, r), of v alone after a step without gradients; ``v``
    (i, r) as it is after one with numbers that are not finite."""
    moved = torch.addmm(v, x.T, z, beta=LEAST_SHARE).to(torch.promote_types(v.dtype, torch.float32))
    norm = torch.linalg.vector_norm(moved, dim=0, keepdim=True)  # (1, r)
    finite = norm < torch.inf
    moved = moved / norm
    if moved.shape[1] > 1:
        moved, finite = torch.linalg.qr(moved).Q, finite.all()
    return torch.where(finite, moved, v)
