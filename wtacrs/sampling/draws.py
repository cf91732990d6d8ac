"""The rows of one input that are kept: weights, then probabilities, then a draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from wtacrs.sampling.batch import Reported
from wtacrs.sampling.centre import Split, features
from wtacrs.sampling.select import draw
from wtacrs.sampling.weights import probabilities_of, row_norms


class Kept(NamedTuple):
    """What says which rows of X are kept, and how they are centred: None for not at all."""

    indices: Tensor  # (k,)
    scales: Tensor  # (k,)
    classes: Tensor | None  # (n, c)
    coordinates: Tensor | None  # (n, r); None too where r = 0
    basis: Tensor | None  # G, (c + r, i), where it does not stand below the kept rows


@dataclass
class Draw:
    """The rows kept of one input, for every layer that reads it.

    ``rows`` is held weakly: its owner is the autograd graph, and hooks that move saved tensors
    elsewhere (checkpointing, offloading) must be able to free it.
    """

    version: int  # of the input: an in-place change makes it another input
    dtype: torch.dtype  # of the products
    kept: Kept
    reported: Reported
    readers: set[str] = field(default_factory=set)
    rows: TensorWeakRef | None = None

    def serves(self, x: Tensor, dtype: torch.dtype, name: str) -> bool:
        """Whether layer ``name`` may share it. A layer that reads an input for the second time is
        in another forward pass, and draws anew."""
        return self.version == x._version and self.dtype == dtype and name not in self.readers


def choose(
    estimator: str,
    x: Tensor,
    split: Split | None,
    norms: Tensor,
    even: Tensor,
    floor: float,
    k: int,
    generator: torch.Generator,
) -> tuple[Kept, Tensor]:
    """Draw k rows of ``x`` (n, i), or of what ``split`` leaves of it: R (n, i), given too.

    Args:
        norms: (n,), estimates of ||dY_n||, 0 for rows that do not count.
        even: (n,), see ``even_floor``.
    """
    classes, coordinates, basis, rest = (None, None, None, x) if split is None else split
    probabilities = probabilities_of(row_norms(rest) * norms, even, floor)
    indices, scales = draw(estimator, probabilities, k, generator)
    return Kept(indices, scales, classes, coordinates, basis), rest


def gather(x: Tensor, kept: Kept, dtype: torch.dtype, rest: Tensor | None = None) -> Tensor:
    """[R_[j]; G] (k + q, i) of X (n, i), or X_[j] (k, i), in ``dtype``; R made anew if need be."""
    if kept.classes is None or kept.basis is None:
        return x.index_select(0, kept.indices).to(dtype)
    if rest is not None:
        rows = rest.index_select(0, kept.indices)
    else:
        f = features(kept.classes, kept.coordinates, x.dtype).index_select(0, kept.indices)
        rows = x.index_select(0, kept.indices)
        rows = torch.addmm(rows, f, kept.basis.to(x.dtype), alpha=-1)
    return torch.cat([rows.to(dtype), kept.basis])


def blank(x: Tensor, k: int, classes: Tensor | None, r: int, dtype: torch.dtype) -> Kept:
    """What ``choose`` gives, in shape and dtype alone: of one number each."""
    indices = _blank(x, torch.int64, [k])
    scales = _blank(x, torch.promote_types(x.dtype, torch.float32), [k])
    if classes is None:
        return Kept(indices, scales, None, None, None)
    coordinates = _blank(x, dtype, [len(x), r]) if r > 0 else None
    basis = _blank(x, dtype, [classes.shape[1] + r, x.shape[1]])
    return Kept(indices, scales, classes, coordinates, basis)


def blank_rows(x: Tensor, kept: Kept, dtype: torch.dtype) -> Tensor:
    """What ``gather`` gives, in shape and dtype alone."""
    rows = len(kept.indices) + (0 if kept.basis is None else len(kept.basis))
    return _blank(x, dtype, [rows, x.shape[1]])


def _blank(x: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    return torch.zeros((), dtype=dtype, device=x.device).expand(shape)
