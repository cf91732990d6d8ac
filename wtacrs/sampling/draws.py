"""The rows of one input that are kept: weights, then probabilities, then a draw."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from wtacrs.sampling.batch import ForwardPass, Reported, Rows
from wtacrs.sampling.centre import Centring, Split, features, row_classes
from wtacrs.sampling.estimators import Slots, SlotTables
from wtacrs.sampling.grad_norms import GradNorms
from wtacrs.sampling.known import known_rows
from wtacrs.sampling.select import draw, rows_kept
from wtacrs.sampling.weights import floored, row_norms

if TYPE_CHECKING:
    from wtacrs.config import SamplingConfig


class Kept(NamedTuple):
    """Which rows of X are kept, and the features F by which they are centred: None for not at
    all."""

    indices: Tensor  # (k,)
    scales: Tensor  # (k,)
    classes: Tensor | None  # (n, c)
    coordinates: Tensor | None  # (n, r); None too where r = 0


@dataclass
class Draw:
    """The rows kept of one input, for every layer that reads it.

    ``rows`` is held weakly: its owner is the autograd graph, and hooks that move saved tensors
    elsewhere (checkpointing, offloading) must be able to free it.
    """

    version: int  # of the input: an in-place change makes it another input
    dtype: torch.dtype  # of the products
    kept: Kept
    rows: TensorWeakRef
    basis: Tensor | None  # G, to find the rows again
    reported: Reported
    readers: set[str] = field(default_factory=set)

    def serves(self, x: Tensor, dtype: torch.dtype, name: str) -> bool:
        """Whether layer ``name`` may share it. A layer that reads an input for the second time is
        in another forward pass, and draws anew."""
        return self.version == x._version and self.dtype == dtype and name not in self.readers

    def rows_of(self, x: Tensor) -> Tensor:
        """What was kept of ``x`` (n, i), picked again if whoever had it has let it go."""
        if (rows := self.rows()) is None:
            rows = x.index_select(0, self.kept.indices)
            if self.kept.classes is not None and self.basis is not None:
                f = features(self.kept.classes, self.kept.coordinates, x.dtype)
                f = f.index_select(0, self.kept.indices)
                rows = torch.addmm(rows, f, self.basis.to(x.dtype), alpha=-1)
                rows = torch.cat([rows.to(self.dtype), self.basis])
            rows = rows.to(self.dtype)
            self.rows = TensorWeakRef(rows)
        return rows


def choose(
    estimator: str,
    x: Tensor,
    split: Split | None,
    norms: Tensor,
    even: Tensor | None,
    floor: float,
    k: int,
    dtype: torch.dtype,
    generator: torch.Generator,
    slots: SlotTables | None,
) -> tuple[Kept, Tensor]:
    """Draw k rows of ``x`` (n, i), or of what ``split`` leaves of it.

    Args:
        norms: (n,), ||dY_n|| or estimates of it, 0 for rows that do not count.
        even: (n,), see ``even_floor``; None where the norms are exact, which need no floor.
        dtype: of the products in the backward pass.
        slots: what draws of a pass share; None for a draw that shares nothing.

    Returns:
        Which rows, and the rows themselves in ``dtype``: X_[j] (k, i), or [R_[j]; G] (k + q, i).
    """
    rest = x if split is None else split.rest
    weights = row_norms(rest) * norms
    if even is not None:
        weights = floored(weights, even, floor)
    of_size = _slots(slots, len(weights), k, x.device)
    indices, scales = draw(estimator, weights, k, generator, of_size)
    rows = rest.index_select(0, indices).to(dtype)
    if split is None:
        return Kept(indices, scales, None, None), rows
    rows = torch.cat([rows, split.basis])
    return Kept(indices, scales, split.classes, split.coordinates), rows


def _slots(tables: SlotTables | None, n: int, k: int, device: torch.device) -> Slots | None:
    return None if tables is None else tables.of(n, k, device)


class EarlyPick(NamedTuple):
    """Picks rows of an input in the forward pass, by what is known of them then."""

    config: SamplingConfig
    centring: Centring
    grad_norms: GradNorms
    generator: torch.Generator

    def __call__(
        self, name: str, x: Tensor, dtype: torch.dtype, facts: Rows, of: ForwardPass
    ) -> tuple[Kept, Tensor | None, Tensor]:
        """Which rows of ``x`` (..., i) are kept for layers filed under ``name``, G, and the rows.

        Args:
            dtype: of the products in the backward pass.
            facts: what is known of the rows.
            of: the forward pass they belong to.
        """
        x = x.reshape(-1, x.shape[-1])  # (n, i)
        floor, centred = self.config.floor, self.centring.kind != "none"
        known = known_rows(of, facts, x.device, self.grad_norms, floor, centred)
        (n, i), c, place = x.shape, known.classes.shape[1], self.grad_norms.place(name)
        k, split, basis = rows_kept(n, self.config.budget), None, None
        q = self.centring.size(n, i, c, k)
        k -= self.centring.cost(n, i, q)
        if q > 0:
            squares, shares = known.squared_norms(place), known.class_shares(place)
            split = self.centring.split(name, x, known.classes, squares, dtype, shares=shares)
            basis = split.basis
        by = known.norms(place), known.even, floor
        drawn_by = self.config.estimator, x, split, *by, k, dtype, self.generator, of.slots
        kept, rows = choose(*drawn_by)
        return kept, basis, rows


class LatePick(NamedTuple):
    """Picks rows of one layer's input in the backward pass, from X and dY alone."""

    config: SamplingConfig
    centring: Centring
    generator: torch.Generator
    slots: SlotTables | None
    name: str  # of the layer
    t: int  # rows to a sample
    dtype: torch.dtype  # of the products

    def rows(self, weights: Tensor) -> Kept | None:
        """k of n rows by their ``weights`` (n,), uncentred; None for all rows."""
        estimator, k = self.config.estimator, rows_kept(len(weights), self.config.budget)
        if estimator == "full" or k >= len(weights):
            return None
        slots = _slots(self.slots, len(weights), k, weights.device)
        return Kept(*draw(estimator, weights, k, self.generator, slots), None, None)

    @torch.no_grad()
    def __call__(self, x: Tensor, norms: Tensor) -> tuple[Kept, Tensor] | None:
        """What ``choose`` gives for X (n, i) and ||dY_n|| (n,); None for all rows."""
        (n, i), estimator = x.shape, self.config.estimator
        k, split = rows_kept(n, self.config.budget), None
        if estimator == "full" or k >= n:
            return None
        if self.centring.kind != "none":
            # A row without a gradient is padding, or as good as that.
            classes = row_classes(Rows(n // self.t, self.t), (norms > 0).to(norms.dtype))
            q = self.centring.size(n, i, classes.shape[1], k)
            k -= self.centring.cost(n, i, q)
            if q > 0:
                scaled = norms / norms.amax().clamp(min=torch.finfo(norms.dtype).tiny)
                squares = scaled.square()[:, None]
                split = self.centring.split(self.name, x, classes, squares, self.dtype)
        return choose(
            estimator, x, split, norms, None, 0, k, self.dtype, self.generator, self.slots
        )
