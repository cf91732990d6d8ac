"""The gate between the two products of experts, which keeps their input alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wtacrs.autograd import first_order
from wtacrs.layers.feed_forward import part_count


class GateFunction(torch.autograd.Function):
    """``gate`` of the rows of y (s, f), times the router's ``share`` (s,) of them if there is one:
    (s, w). Keeps these two, and computes the gate again in the backward pass, some rows at a time.

    ``gate`` takes each row by itself, learns nothing and draws nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, share: Tensor | None, gate: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.gate = gate
        ctx.save_for_backward(y, share)
        if share is None:
            return gate(y)
        h = None
        for part in _parts(y):
            gated = gate(y[part])
            h = gated.new_empty(len(y), gated.shape[1]) if h is None else h
            h[part] = gated * share[part, None]  # a share of float32 is not rounded before
        assert h is not None
        return h

    @staticmethod
    @first_order
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        y, share = ctx.saved_tensors
        dy, dshare = torch.empty_like(y), None
        if share is not None and ctx.needs_input_grad[1]:
            dshare = torch.empty_like(share)
        for part in _parts(y):
            given = dh[part]
            with torch.enable_grad():
                rows = y[part].detach().requires_grad_()
                h = ctx.gate(rows)
            if dshare is not None:
                dshare[part] = (given * h.detach()).sum(-1, dtype=dshare.dtype)
            if share is not None:
                given = given * share[part, None]
            (dy[part],) = torch.autograd.grad(h, rows, given)
        return dy, dshare, None


def _parts(y: Tensor) -> list[slice]:
    rows = max(1, -(-len(y) // part_count(y.nbytes)))
    return [slice(start, start + rows) for start in range(0, max(1, len(y)), rows)]
