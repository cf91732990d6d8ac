"""Dropout and ReLU that keep one bit an element for the backward pass.

The plain dropout keeps its mask as bytes (CUDA) or in the input's dtype (CPU), the plain ReLU its
output. What either needs of an element is one bit. Values and gradients are those of the plain
layers, and on the CPU dropout draws what the plain layer would draw from the same generator state.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wtacrs.autograd import first_order
from wtacrs.layers.bits import pack, scale_kept, zero_unkept


class DropoutFunction(torch.autograd.Function):
    """x (...) -> x * keep / (1 - p), 0 < p < 1; keeps ``keep`` in bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        y, keep = torch.native_dropout(x, p, True)
        ctx.scale = 1 / (1 - p)
        ctx.save_for_backward(pack(keep))
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        return scale_kept(dy, bits, ctx.scale), None


class ReLUFunction(torch.autograd.Function):
    """x (...) -> max(x, 0), then dropout where p > 0; keeps in bits which elements have a gradient.

    The forward and the backward pass of both in one: two bits an element would be one too many.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        y = F.relu(x)
        live = y.le(0).logical_not_()  # a NaN lets its gradient through, as in the plain layer
        ctx.scale = None
        if p > 0:
            y, keep = torch.native_dropout(y, p, True)
            live.logical_and_(keep)
            ctx.scale = 1 / (1 - p)
        ctx.save_for_backward(pack(live))
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        if ctx.scale is None:
            return zero_unkept(dy, bits), None
        return scale_kept(dy, bits, ctx.scale), None


def _saves(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


class LosslessDropout(nn.Dropout):
    """``nn.Dropout`` with a mask of one bit."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and 0 < self.p < 1 and _saves(input):
            return DropoutFunction.apply(input, self.p)
        return F.dropout(input, self.p, self.training)


class LosslessReLU(nn.ReLU):
    """``nn.ReLU`` with a mask of one bit."""

    def forward(self, input: Tensor) -> Tensor:
        return ReLUFunction.apply(input, 0.0) if _saves(input) else F.relu(input)


class LosslessReLUDropout(nn.ReLU):
    """ReLU and the dropout that follows it, with one mask."""

    dropout_after: tuple[nn.Dropout]  # in a tuple: it has its place in the model already

    def forward(self, input: Tensor) -> Tensor:
        p = self.dropout_after[0].p if self.training else 0.0
        if _saves(input) and p < 1:
            return ReLUFunction.apply(input, p)
        return F.dropout(F.relu(input), p, self.training)


class DoneDropout(nn.Dropout):
    """A dropout whose work the ReLU before it does."""

    def forward(self, input: Tensor) -> Tensor:
        return input
