"""A linear layer that picks its rows in the backward pass, where X is there anyway.

Where X is kept whole by someone else (a norm that keeps its output) or is computed again
(recomputation), keeping k rows of it saves nothing. Then the rows are picked when dY is known, with
the weights ||X_n|| * ||dY_n|| themselves instead of a guess: no history, no floor, no mask, for a
row of weight zero adds nothing to dW. Each layer picks for itself. The draw depends on X and dY
alone, so the estimate stays unbiased. What is gained is time, (1 - budget) of the product dY^T X.

Source: arXiv 2305.15265, Eq. 4, whose weights are these; ARCHITECTURE section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wtacrs.autograd import first_order
from wtacrs.sampling.draws import LatePick
from wtacrs.sampling.early import left_side, linear, right_side
from wtacrs.sampling.weights import row_norms


class LateLinearFunction(torch.autograd.Function):
    """``F.linear`` that refers to its input and estimates dW from rows picked by ``pick``.

    ``product`` is False in a second pass of which nothing reads the output's value: it is then
    zeros without storage.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., i)
        weight: Tensor,  # (o, i)
        bias: Tensor | None,  # (o,)
        pick: LatePick,
        product: bool,
    ) -> Tensor:
        ctx.pick, ctx.x_dtype = pick, x.dtype
        ctx.save_for_backward(x, weight if ctx.needs_input_grad[0] else None)
        if product:
            return linear(x, weight, bias)
        return x.new_zeros((), dtype=pick.dtype).expand(*x.shape[:-1], len(weight))

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight.to(dy.dtype)).to(ctx.x_dtype)  # (..., i)
        dy = dy.reshape(-1, dy.shape[-1])  # (n, o)
        if ctx.needs_input_grad[1]:
            with torch.autocast(dy.device.type, enabled=False):
                dw = weight_gradient(x.reshape(-1, x.shape[-1]), dy, ctx.pick)
        if ctx.needs_input_grad[2]:
            db = dy.sum(0)
        return dx, dw, db, None, None


def weight_gradient(x: Tensor, dy: Tensor, pick: LatePick) -> Tensor:
    """dW (o, i), of X (n, i) and dY (n, o), from the rows that ``pick`` chooses."""
    norms = row_norms(dy)  # (n,)
    if (picked := pick(x, norms)) is None:
        return dy.T @ x.to(pick.dtype)
    kept, rows = picked
    return left_side(dy, kept, None).T @ right_side(rows, kept)
