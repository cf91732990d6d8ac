"""A sampled feed-forward with ReLU, of which a second pass needs next to nothing.

    U = X Wi^T + bi,   H = ReLU(U) * dropout,   Y = H Wo^T + bo

The gradient of U needs one bit an element of it. dWo needs H, but only the rows that are picked,
with the weights ||H_n|| * ||dY_n||; the norms are kept, a number a row, and the picked rows
of H are computed again from those of X. So instead of the product X Wi^T a second pass has its
budget. The rows of H are picked uncentred: that would need all of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wtacrs.autograd import first_order
from wtacrs.layers.bits import unpack
from wtacrs.layers.masks import LosslessReLUDropout, Memo, of_kept, relu_dropout
from wtacrs.sampling.draws import LatePick
from wtacrs.sampling.early import compute_dtype, left_side, right_side
from wtacrs.sampling.late import weight_gradient
from wtacrs.sampling.linear import SampledLinear
from wtacrs.sampling.weights import row_norms
from wtacrs.swap import OwnForward


class ReLUFeedForwardFunction(torch.autograd.Function):
    """x (b, t, d) -> an output without a value; ``bits`` and ``norms`` are those of H."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        wi: Tensor,  # (w, d)
        bi: Tensor | None,  # (w,)
        wo: Tensor,  # (d, w)
        bo: Tensor | None,  # (d,)
        p: float,
        kept: tuple[Tensor, Tensor],
        picks: tuple[LatePick, LatePick],
    ) -> Tensor:
        ctx.p, ctx.picks = p, picks
        ctx.save_for_backward(x, wi, bi, wo, *kept)
        return x.new_zeros((), dtype=picks[0].dtype).expand(*x.shape[:-1], len(wo))

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, wi, bi, wo, bits, norms = ctx.saved_tensors
        scale, (first, last), dtype = _scale(ctx.p), ctx.picks, dy.dtype
        rows, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])  # (n, d)
        with torch.autocast(dy.device.type, enabled=False):
            dwo = _last_gradient(rows, dy, wi, bi, bits, norms, scale, last)
            du = dy @ wo.to(dtype)  # (n, w)
            of_kept(du, bits, scale, out=du)
            dwi = weight_gradient(rows, du, first)
            dx = (du @ wi.to(dtype)).to(x.dtype).view(x.shape)
        dbi = du.sum(0) if ctx.needs_input_grad[2] else None
        dbo = dy.sum(0) if ctx.needs_input_grad[4] else None
        return dx, dwi, dbi, dwo, dbo, None, None, None


def _scale(p: float) -> float | None:
    return None if p == 0 else 1 / (1 - p)


def _last_gradient(
    x: Tensor,  # (n, d)
    dy: Tensor,  # (n, d)
    wi: Tensor,
    bi: Tensor | None,
    bits: Tensor,
    norms: Tensor,  # (n,), of H
    scale: float | None,
    pick: LatePick,
) -> Tensor:
    """dWo (d, w), from the picked rows of H, which are computed here."""
    kept, live = pick.rows(norms * row_norms(dy)), unpack(bits, torch.Size((len(x), len(wi))))
    if kept is not None:
        x, live = x.index_select(0, kept.indices), live.index_select(0, kept.indices)
    u = F.linear(x.to(pick.dtype), wi.to(pick.dtype), None if bi is None else bi.to(pick.dtype))
    h = u.masked_fill_(live.logical_not_(), 0)
    if scale is not None:
        h.mul_(scale)
    if kept is None:
        return dy.T @ h
    return left_side(dy, kept, None).T @ right_side(h, kept)


class ReLUFeedForward(OwnForward):
    """The ``forward`` of a feed-forward module with ``wi``, ``act``, ``dropout`` and ``wo``, inside
    of a ``ChunkedForward``."""

    def __call__(self, x: Tensor) -> Tensor:
        module: Any = self.module
        memo: Memo | None = module.act.memo
        p = module.dropout.p if module.dropout.training else 0.0
        if memo is None or p == 1:
            return type(module).forward(module, x)
        if not memo.replays:
            h, bits = relu_dropout(module.wi(x), p)
            memo.keep((bits, row_norms(h.view(-1, h.shape[-1]))))
            return module.wo(h)
        wi, wo = module.wi, module.wo
        n, width = x.shape[:-1].numel(), wi.out_features
        hidden = x.new_zeros((), dtype=compute_dtype(x)).expand(1, n, width)
        picks = wi.sampler.pick_of(wi.name, x), wo.sampler.pick_of(wo.name, hidden)
        for layer in (wi, wo):  # which are not called themselves
            layer.sampler.late.add(layer.name)
        return ReLUFeedForwardFunction.apply(
            x, wi.weight, wi.bias, wo.weight, wo.bias, p, memo.take(), picks
        )


def fits(module: nn.Module) -> bool:
    """Whether ``module`` is wi, ReLU, dropout, wo, with both products sampled."""
    wi, wo = getattr(module, "wi", None), getattr(module, "wo", None)
    act, sampled = getattr(module, "act", None), isinstance(wi, SampledLinear)
    alike = sampled and isinstance(wo, SampledLinear) and isinstance(act, LosslessReLUDropout)
    return alike and wi.weight.requires_grad and wo.weight.requires_grad  # type: ignore[union-attr]
