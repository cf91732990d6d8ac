"""A linear layer that keeps k sampled rows of its input instead of all n.

Training a linear layer takes three matrix products, with X (n, i), W (o, i), dY (n, o):

    Y  = X W^T          forward, exact
    dX = dY W           backward, exact
    dW = dY^T X         backward, estimated: sum_j scale_j * dY_[j] (x) X_[j] over k kept rows

Only the last one needs X, so only k rows of X outlive the forward pass, and the product shrinks
to k rows as well: a step costs (2 + budget) / 3 of the plain layer's floating-point operations.
The price is variance in dW; its mean is exact. The bias gradient is a plain sum, and exact.

Source: arXiv 2305.15265, Algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wtacrs.sampling.weights import row_norms

if TYPE_CHECKING:
    from wtacrs.sampling.grad_norms import NormRecord
    from wtacrs.sampling.sampler import Sampler


class SampledRows(NamedTuple):
    """What is kept of X: ``rows`` (k, i) in the compute dtype, ``indices`` (k,), ``scales`` (k,).

    ``rows`` is None where whoever made X keeps it for the backward pass: then X is referenced.
    ``record`` takes the row norms of dY in the backward pass, or is None.
    """

    rows: Tensor | None
    indices: Tensor
    scales: Tensor
    record: NormRecord | None


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer multiplies ``x``: autocast's where it is on."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


class SampledLinearFunction(torch.autograd.Function):
    """``F.linear`` whose weight gradient comes from k rows of the input."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., i)
        weight: Tensor,  # (o, i)
        bias: Tensor | None,  # (o,)
        rows: Tensor | None,  # (k, i)
        indices: Tensor,  # (k,)
        scales: Tensor,  # (k,)
        record: NormRecord | None,
    ) -> Tensor:
        ctx.record = record
        ctx.x_dtype, ctx.dtype = x.dtype, compute_dtype(x)
        ctx.references = rows is None
        # The weight is referenced, not copied: in backward it is cast again, so no low-precision
        # copy of it stays alive, as one does under autocast in the plain layer.
        ctx.save_for_backward(
            x if rows is None else rows,
            indices,
            scales,
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
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, indices, scales, weight = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight.to(dy.dtype)).to(ctx.x_dtype)  # (..., i)
        dy = dy.reshape(-1, dy.shape[-1])  # (n, o)
        if ctx.needs_input_grad[1]:
            norms = row_norms(dy)  # (n,)
            if ctx.record is not None:
                ctx.record.report(norms)
            # 0 * sum is 0, or NaN if any row of dY is non-finite, kept or not.
            scales = scales + 0 * norms.sum()
            # In place: a second (k, o) buffer costs more than the multiplication.
            kept = dy.index_select(0, indices).mul_(scales[:, None])  # (k, o)
            if ctx.references:
                rows = rows.reshape(-1, rows.shape[-1]).index_select(0, indices).to(ctx.dtype)
            dw = kept.T @ rows  # (o, i)
        if ctx.needs_input_grad[2]:
            db = dy.sum(0)
        return dx, dw, db, None, None, None, None


class SampledLinear(nn.Linear):
    """An ``nn.Linear`` that samples its saved input while training.

    Made by ``sample_linears_`` from an ``nn.Linear``. In eval mode, without grad, or with a frozen
    weight it computes what that layer does, bit for bit.
    """

    sampler: Sampler
    name: str  # the layer's qualified name in the model

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled() and self.weight.requires_grad):
            return F.linear(input, self.weight, self.bias)
        sampled = self.sampler.sample_rows(self.name, input)
        if sampled is None:
            return F.linear(input, self.weight, self.bias)
        return SampledLinearFunction.apply(input, self.weight, self.bias, *sampled)

    def extra_repr(self) -> str:
        config = self.sampler.config
        return f"{super().extra_repr()}, estimator={config.estimator}, budget={config.budget}"
