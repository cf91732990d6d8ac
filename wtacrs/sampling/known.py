"""What the layers of a forward pass share whose rows are alike: made once, not in each layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wtacrs.sampling.batch import ForwardPass, Rows
from wtacrs.sampling.centre import class_shares, row_classes
from wtacrs.sampling.grad_norms import GradNorms
from wtacrs.sampling.weights import even_floor

LEAST_ESTIMATE = 1e-15  # of the largest


class Known(NamedTuple):
    """Of n rows, in float32; ``estimates`` (l, n) and ``squares`` (l, n, 1) of the inputs that have
    a history, each scaled to at most 1. Rows that do not count have 0 in all of them."""

    valid: Tensor  # (n,), 1 for rows that count
    even: Tensor  # (n,), see ``even_floor``
    classes: Tensor  # (n, c), see ``row_classes``; one class where nothing is centred
    estimates: Tensor | None
    squares: Tensor | None
    shares: Tensor | None  # (l, n, c), see ``class_shares``

    def norms(self, place: int | None) -> Tensor:
        """Estimates (n,) of ||dY_n|| for the input at ``place``; all alike where there are none."""
        return self.valid if place is None or self.estimates is None else self.estimates[place]

    def squared_norms(self, place: int | None) -> Tensor:
        """Their squares, (n, 1), where inputs are centred."""
        if place is None or self.squares is None:
            return self.valid[:, None]
        return self.squares[place]

    def class_shares(self, place: int | None) -> Tensor | None:
        """Shares (n, c) of rows in the means of their classes; None where it is not known."""
        return None if place is None or self.shares is None else self.shares[place]


def known_rows(
    of: ForwardPass,
    rows: Rows,
    device: torch.device,
    grad_norms: GradNorms,
    floor: float,
    centred: bool,
) -> Known:
    """What is known of ``rows``; kept with the forward pass until the model returns."""
    key = id(rows.mask), rows.b, rows.t, device
    if key not in of.known:
        of.known[key] = find_known(rows, device, grad_norms, floor, centred)
    return of.known[key]


def find_known(
    rows: Rows,
    device: torch.device,
    grad_norms: GradNorms,
    floor: float,
    centred: bool,
    source: str | None = None,
) -> Known:
    """What is known of ``rows``.

    Args:
        centred: classes and squares are needed too.
        source: of the gradient norms, as in ``GradNorms.estimate``.
    """
    n = rows.b * rows.t
    if rows.mask is None:
        valid = torch.ones((), device=device).expand(n)  # one number
    else:
        valid = rows.mask.reshape(-1).to(device, torch.float32)
    squares, estimates = None, grad_norms.estimate(rows.b, rows.t, rows.sample_ids, device, source)
    if estimates is not None:
        estimates = estimates.reshape(len(estimates), n) * valid  # (l, n)
        largest = estimates.amax(1, keepdim=True).clamp(min=torch.finfo(estimates.dtype).tiny)
        # Where all are zero, rows that count must not be.
        estimates = torch.addcdiv(LEAST_ESTIMATE * valid, estimates, largest)
        squares = estimates.square()[..., None] if centred else None
    classes = row_classes(rows, valid) if centred else valid[:, None]
    shares = None if squares is None else class_shares(classes, squares)
    return Known(valid, even_floor(valid, floor), classes, estimates, squares, shares)
