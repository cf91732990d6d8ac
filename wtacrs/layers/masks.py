"""Dropout and ReLU that keep one bit an element for the backward pass.

The plain dropout keeps its mask as bytes (CUDA) or in the input's dtype (CPU), the plain ReLU its
output. What either needs of an element is one bit. Values and gradients are those of the plain
layers, and on the CPU dropout draws what the plain layer would draw from the same generator state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wtacrs.autograd import first_order, noteworthy
from wtacrs.layers.bits import pack, scale_kept, zero_unkept
from wtacrs.swap import attends


class Memo:
    """What ``modules`` keep of a first pass for a second one, in order."""

    attribute = "memo"  # of the modules

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = [*modules]
        self._kept: list[Any] = []
        self._left: Iterator[Any] = iter(())
        self.replays = False

    def keep(self, what: Any) -> None:
        self._kept.append(what)

    def take(self) -> Any:
        return next(self._left)

    @contextmanager
    def used(self, replays: bool) -> Iterator[None]:
        """The modules use it, in a pass that begins: the first one, or a second one, which
        ``replays`` it. There are several where a graph is retained."""
        self.replays, self._left = replays, iter(self._kept)
        for module in self._modules:
            setattr(module, self.attribute, self)
        try:
            yield
        finally:
            self.end()

    def end(self) -> None:
        """The modules use it no more, where that is before the pass ends."""
        for module in self._modules:
            module.__dict__.pop(self.attribute, None)


class DrawsMemo(Memo):
    """Keeps the state of the CPU's generator after a draw beside it: who takes the draw goes on
    there, so that a layer that knows no memo draws in the second pass what it drew in the first."""

    def keep(self, what: Any) -> None:
        super().keep((what, torch.get_rng_state()))

    def take(self) -> Any:
        what, state = super().take()
        torch.set_rng_state(state)
        return what


class DropoutFunction(torch.autograd.Function):
    """x (...) -> x * keep / (1 - p), 0 < p < 1; keeps ``keep`` in bits, or has them of a memo."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, memo: Memo | None) -> Tensor:
        ctx.scale = 1 / (1 - p)
        if memo is not None and memo.replays:
            bits = memo.take()
            y = scale_kept(x, bits, ctx.scale)
        else:
            y, keep = torch.native_dropout(x, p, True)
            bits = pack(keep)
            if memo is not None:
                memo.keep(bits)
        ctx.save_for_backward(bits)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        return scale_kept(dy, bits, ctx.scale), None, None


class ReLUFunction(torch.autograd.Function):
    """x (...) -> max(x, 0), then dropout where p > 0; keeps in bits which elements have a gradient.

    The forward and the backward pass of both in one: two bits an element would be one too many.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, memo: Memo | None) -> Tensor:
        ctx.scale = None if p == 0 else 1 / (1 - p)
        if memo is not None and memo.replays:
            bits = memo.take()
            y = of_kept(x, bits, ctx.scale)
        else:
            y, bits = relu_dropout(x, p)
            if memo is not None:
                memo.keep(bits)
        ctx.save_for_backward(bits)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        return of_kept(dy, bits, ctx.scale), None, None


def relu_dropout(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """max(x, 0), then dropout where p > 0, and in bits which elements have a gradient."""
    y = F.relu(x)
    live = y.le(0).logical_not_()  # a NaN lets its gradient through, as in the plain layer
    if p > 0:
        y, keep = torch.native_dropout(y, p, True)
        live.logical_and_(keep)
    return y, pack(live)


def of_kept(values: Tensor, bits: Tensor, scale: float | None, out: Tensor | None = None) -> Tensor:
    """``values`` (...) where the bit is 1, times ``scale`` if dropout has one, 0 elsewhere."""
    if scale is None:
        return zero_unkept(values, bits, out)
    return scale_kept(values, bits, scale, out)


def _saves(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


class LosslessDropout(nn.Dropout):
    """``nn.Dropout`` with a mask of one bit."""

    memo: Memo | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.training and 0 < self.p < 1 and (self.memo is not None or _saves(input)):
            return noteworthy(DropoutFunction.apply(input, self.p, self.memo))
        return F.dropout(input, self.p, self.training)


class LosslessReLU(nn.ReLU):
    """``nn.ReLU`` with a mask of one bit."""

    memo: Memo | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.memo is not None or _saves(input):
            return ReLUFunction.apply(input, 0.0, self.memo)
        return F.relu(input)


class LosslessReLUDropout(nn.ReLU):
    """ReLU and the dropout that follows it, with one mask."""

    dropout_after: tuple[nn.Dropout]  # in a tuple: it has its place in the model already
    memo: Memo | None = None

    def forward(self, input: Tensor) -> Tensor:
        after = self.dropout_after[0]
        p = after.p if after.training else 0.0
        if p < 1 and (self.memo is not None or _saves(input)):
            return noteworthy(ReLUFunction.apply(input, p, self.memo))
        return F.dropout(F.relu(input), p, after.training)


class DoneDropout(nn.Dropout):
    """A dropout whose work the ReLU before it does."""

    def forward(self, input: Tensor) -> Tensor:
        return input


def may_draw(module: nn.Module) -> bool:
    """Whether it is a dropout of ours, or attends, perhaps in our way: what a memo is of use to."""
    kinds = LosslessDropout, LosslessReLUDropout
    return isinstance(module, kinds) or attends(module)
