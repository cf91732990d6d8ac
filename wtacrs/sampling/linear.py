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
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wtacrs.autograd import first_order
from wtacrs.sampling.centre import features
from wtacrs.sampling.draws import Kept, gather
from wtacrs.sampling.weights import row_norms

if TYPE_CHECKING:
    from wtacrs.sampling.sampler import Sampler


class SampledRows(NamedTuple):
    """What is kept of X for the backward pass.

    Attributes:
        rows: [R_[j]; G] (k + q, i) in the compute dtype, or X_[j] (k, i) without centring. None
            where whoever made X keeps it for the backward pass: then X is referenced.
        kept: which rows these are.
        report: takes the row norms (n,) of dY in the backward pass.
    """

    rows: Tensor | None
    kept: Kept
    report: Callable[[Tensor], None]


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer multiplies ``x``: autocast's where it is on."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def left_side(dy: Tensor, kept: Kept, norms: Tensor) -> Tensor:
    """[scale_j dY_[j]; F^T dY] (k + q, o), of dY (n, o) and its row norms (n,).

    In float16, where a scale alone may overflow, the root of it, and F over a power of two:
    ``right_side`` has the other.
    """
    scales = kept.scales
    if kept.classes is None:
        # 0 * sum is 0, or NaN if any row of dY is non-finite, kept or not.
        scales = scales + 0 * norms.sum()
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
    """What ``gather`` gave, (k + q, i), in float16 times what ``left_side`` leaves to it."""
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
        ctx.x_dtype, ctx.dtype = x.dtype, compute_dtype(x)
        ctx.references = sampled.rows is None
        # The weight is referenced, not copied: in backward it is cast again, so no low-precision
        # copy of it stays alive, as one does under autocast in the plain layer.
        ctx.save_for_backward(
            x if sampled.rows is None else sampled.rows,
            *sampled.kept,
            weight if ctx.needs_input_grad[0] else None,
        )
        if torch.is_autocast_enabled(x.device.type):
            x, weight = x.to(ctx.dtype), weight.to(ctx.dtype)
            bias = None if bias is None else bias.to(ctx.dtype)
        # Cast above rather than by autocast: a weight cast here, outside grad mode, would enter
        # autocast's cache without a gradient and be reused wherever the weight is tied.
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, weight, bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, *kept, weight = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight.to(dy.dtype)).to(ctx.x_dtype)  # (..., i)
        dy = dy.reshape(-1, dy.shape[-1])  # (n, o)
        if ctx.needs_input_grad[1]:
            norms = row_norms(dy)  # (n,)
            ctx.report(norms)
            kept = Kept._make(kept)
            if ctx.references:
                rows = gather(rows.reshape(-1, rows.shape[-1]), kept, ctx.dtype)
            dw = left_side(dy, kept, norms).T @ right_side(rows, kept)
        if ctx.needs_input_grad[2]:
            db = dy.sum(0)
        return dx, dw, db, None


class SampledLinear(nn.Linear):
    """An ``nn.Linear`` that samples its saved input while training.

    Made by ``sample_linears_`` from an ``nn.Linear``. In eval mode, without grad, or with a frozen
    weight it computes what that layer does, bit for bit.

    Raises:
        RuntimeError: in the forward pass of a replica of ``nn.DataParallel``.
    """

    sampler: Sampler
    name: str  # the layer's qualified name in the model

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled() and self.weight.requires_grad):
            return F.linear(input, self.weight, self.bias)
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel runs replicas of the sampled layers in threads that share one "
                "sampler, which would mix their batches; use one process per device (torchrun, "
                "DistributedDataParallel), or make one device visible (CUDA_VISIBLE_DEVICES=0)"
            )
        sampled = self.sampler.sample_rows(self.name, input)
        if sampled is None:
            return F.linear(input, self.weight, self.bias)
        return SampledLinearFunction.apply(input, self.weight, self.bias, sampled)

    def extra_repr(self) -> str:
        config = self.sampler.config
        return f"{super().extra_repr()}, estimator={config.estimator}, budget={config.budget}"
