"""The cross-entropy of a language model, from logits (n, v) that are kept once, in their own dtype.

    L = sum_n  log sum_j exp(Z_nj) - Z_n,label(n),    dZ = (softmax(Z) - onehot) * dL

The plain loss turns Z into float32, keeps log softmax(Z), and its backward pass holds the gradient
of both: with a vocabulary of 128,000 that is more than all blocks keep. Kept here are Z, which the
model returns in any case, and one number a row. Where Z = X W^T + b is what the head gave, the
backward pass of both is one: dX and dW are summed up over slices of the vocabulary, and dZ is
never whole. The slices are of columns so that each part of dW is one product, rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wtacrs.autograd import first_order

PARTS = 20  # slices of the vocabulary, and of the rows
LEAST = 128  # rows or columns of a slice


class CrossEntropyFunction(torch.autograd.Function):
    """Sum of the cross-entropies of ``logits`` (n, v) with ``labels`` (n,), in float32 or better.

    ``x`` (n, i), ``weight`` (v, i) and ``bias`` (v,) or None, where the logits are x W^T + b: they
    have the gradient then, and the logits none; without ``x`` it is the logits' own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        ignored: int,
        x: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        valid = labels != ignored
        targets = torch.where(valid, labels, 0)
        rows = max(LEAST, -(-len(logits) // PARTS))
        # log sum exp of each row, (n,)
        norms = torch.cat([part.to(_wide(part)).logsumexp(-1) for part in logits.split(rows)])
        picked = logits.gather(1, targets[:, None])[:, 0].to(norms.dtype)
        ctx.save_for_backward(logits.detach(), valid, targets, norms, x, weight, bias)
        return torch.where(valid, norms - picked, 0).sum()

    @staticmethod
    @first_order
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        logits, valid, targets, norms, x, weight, bias = ctx.saved_tensors
        scale = torch.where(valid, dloss, 0)[:, None]  # (n, 1)
        if x is None:
            dlogits = torch.empty_like(logits)
            for part in _slices(logits.shape[1]):
                dlogits[:, part] = _gradient(logits, targets, norms, scale, part)
            return dlogits, None, None, None, None, None
        _, _, _, for_x, for_weight, for_bias = ctx.needs_input_grad
        dx = torch.zeros_like(x, dtype=_wide(x)) if for_x else None
        dw = torch.empty_like(weight) if for_weight else None
        db = torch.empty_like(bias) if for_bias else None
        inputs = x.to(logits.dtype)
        for part in _slices(logits.shape[1]):
            dz = _gradient(logits, targets, norms, scale, part)  # (n, columns)
            if dx is not None:
                dx += dz @ weight[part].to(dz.dtype)
            if dw is not None:
                dw[part] = dz.mT @ inputs
            if db is not None:
                db[part] = dz.sum(0)
        return None, None, None, None if dx is None else dx.to(x.dtype), dw, db


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _slices(columns: int) -> list[slice]:
    step = max(LEAST, -(-columns // PARTS))
    return [slice(start, min(columns, start + step)) for start in range(0, columns, step)]


def _gradient(logits: Tensor, targets: Tensor, norms: Tensor, scale: Tensor, part: slice) -> Tensor:
    """Columns ``part`` of dZ (n, v), in the logits' dtype as autograd rounds it."""
    dz = logits[:, part].to(_wide(logits), copy=True).sub_(norms[:, None]).exp_()  # (n, columns)
    inside = (targets >= part.start) & (targets < part.stop)
    columns = torch.where(inside, targets - part.start, 0)[:, None]
    dz.scatter_add_(1, columns, -inside.to(dz.dtype)[:, None])
    return dz.mul_(scale).to(logits.dtype)
