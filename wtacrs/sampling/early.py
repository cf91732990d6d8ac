"""A linear layer that keeps k sampled rows of its input instead of all n.

Training a linear layer takes three matrix products, with X (n, i), W (o, i), dY (n, o):

    Y  = X W^T          forward, exact
    dX = dY W           backward, exact
    dW = dY^T X         backward, estimated: sum_j scale_j * dY_[j] (x) X_[j] over k kept rows

Only the last one needs X, so only k rows of X outlive the forward pass, and the product shrinks
to k rows as well: a step costs (2 + budget) / 3 of the plain layer's floating-point operations.
The price is variance in dW; its mean is exact. The bias gradient is a plain sum, and exact.

With centred rows (centre.py), X = F G + R: the kept rows are those of R, with G's below them, and
dW is one product still, [scale_j * dY_[j]; F^T dY]^T [R_[j]; G].

Source: arXiv 2305.15265, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wtacrs.autograd import first_order
from wtacrs.sampling.centre import features
from wtacrs.sampling.draws import Kept
from wtacrs.sampling.weights import row_norms


class SampledRows(NamedTuple):
    """What is kept of X for the backward pass.

    Attributes:
        rows: [R_[j]; G] (k + q, i) in the compute dtype, or X_[j] (k, i) without centring.
        kept: which rows these are.
        report: takes the row norms (n,) of dY in the backward pass, and
        ticket: in a compiled graph, by which they are told to which draw they belong.
    """

    rows: Tensor
    kept: Kept
    report: Callable[..., None]
    ticket: Tensor | None = None


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer multiplies ``x``: autocast's where it is on."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` within an autograd Function.

    Under autocast it is cast here: a weight that autocast casts outside grad mode would enter its
    cache without a gradient and be reused wherever the weight is tied.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = compute_dtype(x)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        return no_view(F.linear(x, weight, bias))


def no_view(y: Tensor) -> Tensor:
    """``y``, made in an autograd Function, so that it may be changed in place as a layer's output
    may: torch forbids that for views, and with a bias ``F.linear`` gives one of its (n, o)."""
    if torch.compiler.is_compiling() or not y._is_view():
        return y
    return torch.ops.aten._unsafe_view(y, y.shape)


def left_side(dy: Tensor, kept: Kept, norms: Tensor | None) -> Tensor:
    """[scale_j dY_[j]; F^T dY] (k + q, o), of dY (n, o).

    ``norms`` (n,) are those of its rows where the draw did not know them: a NaN in any row must
    reach the scales.

    In float16, where a scale alone may overflow, the root of it, and F over a power of two:
    ``right_side`` has the other.
    """
    scales = kept.scales
    if kept.classes is None and norms is not None:
        # 0 times the sum is 0, or NaN if any row of dY is non-finite, kept or not.
        scales = torch.add(scales, norms.sum(), alpha=0)
    if dy.dtype == torch.float16:
        scales = scales.sqrt()
    # In place throughout: a second (k, o) buffer costs more than the multiplication.
    if kept.classes is None:
        return dy.index_select(0, kept.indices).mul_(scales[:, None])  # (k, o)
    f = features(kept.classes, kept.coordinates, dy.dtype)  # (n, q)
    if dy.dtype == torch.float16:  # a sum over n rows overflows as well
        f = f / _share(len(dy))
    k = len(scales)
    left = dy.new_empty(k + f.shape[1], dy.shape[1])
    torch.index_select(dy, 0, kept.indices, out=left[:k]).mul_(scales[:, None])
    torch.mm(f.T, dy, out=left[k:])
    return left


def right_side(rows: Tensor, kept: Kept) -> Tensor:
    """The kept rows, (k + q, i), in float16 times what ``left_side`` leaves to it."""
    if rows.dtype != torch.float16:
        return rows
    k, root = len(kept.scales), kept.scales.sqrt()[:, None].half()
    n = 1 if kept.classes is None else len(kept.classes)
    return torch.cat([rows[:k] * root, rows[k:] * _share(n)])


def _share(n: int) -> float:
    """A power of two near the root of n rows, which float16 divides by without rounding."""
    return float(2 ** (n.bit_length() // 2))


class SampledLinearFunction(torch.autograd.Function):
    """``F.linear`` whose weight gradient comes from k rows of the input."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., i)
        weight: Tensor,  # (o, i)
        bias: Tensor | None,  # (o,)
        sampled: SampledRows,
    ) -> Tensor:
        ctx.report = sampled.report
        ctx.x_dtype = x.dtype
        # The weight is referenced, not copied: in backward it is cast again, so no low-precision
        # copy of it stays alive, as one does under autocast in the plain layer.
        ctx.save_for_backward(
            weight if ctx.needs_input_grad[0] else None,
            sampled.ticket,
            sampled.rows,
            *sampled.kept,
        )
        return linear(x, weight, bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, ticket, rows, *kept = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight.to(dy.dtype)).to(ctx.x_dtype)  # (..., i)
        dy = dy.reshape(-1, dy.shape[-1])  # (n, o)
        if ctx.needs_input_grad[1]:
            norms = row_norms(dy)  # (n,)
            ctx.report(norms, *([] if ticket is None else [ticket]))
            kept = Kept._make(kept)
            dw = left_side(dy, kept, norms).T @ right_side(rows, kept)
        if ctx.needs_input_grad[2]:
            db = dy.sum(0)
        return dx, dw, db, None
