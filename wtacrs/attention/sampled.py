"""The paper's sampled attention products: what the backward pass needs of Q, K and V, at a budget.

Source: arXiv 2305.15265, where both products of attention are among the sampled operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wtacrs.attention.functional import keep_mask, probabilities
from wtacrs.autograd import first_order
from wtacrs.layers.bits import pack, unpack
from wtacrs.sampling.estimators import Selection
from wtacrs.sampling.sampler import Sampler
from wtacrs.sampling.select import draw, rows_kept
from wtacrs.sampling.weights import even_floor, probabilities_of, row_norms


class SampledAttention(torch.autograd.Function):
    """As ``RecomputedAttention``, but keeps P, and Q, K, V at the sampler's budget.

    dQ = dS K sums over keys and dK = dS^T Q over queries, so rows of K and Q are drawn.
    dPd = dO V^T sums over the head's features, so columns of V are. dV = Pd^T dO sums over
    queries, so rows of Pd are, by a weight each, for P is kept anyway. The weights are row norms.
    Every draw is independent of the others, so the products of two estimates stay unbiased.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scaling: float,
        p: float,
        sampler: Sampler,
        *biases: Tensor,
    ) -> Tensor:
        ctx.scaling, ctx.p, ctx.shapes = scaling, p, (q.shape, k.shape, v.shape)
        with torch.autocast(q.device.type, enabled=False):
            weights = probabilities(q, k, scaling, list(biases))  # (b, h, t, s)
            dropped, bits = weights, None
            if p > 0:
                keep = keep_mask(weights.shape, p, q.device)
                dropped = weights.mul(keep).mul_(1 / (1 - p) if p < 1 else 0.0)
                bits = pack(keep)
            out = dropped.to(v.dtype) @ v
        kept = [
            *_keep(sampler, q.transpose(1, 2).flatten(2).flatten(0, 1)),  # (b t, h d)
            *_keep(sampler, k.transpose(1, 2).flatten(2).flatten(0, 1)),  # (b s, h d)
            *_keep(sampler, v.transpose(2, 3).flatten(0, 2)),  # (b h d, s)
        ]
        rows = select_rows(sampler, dropped.transpose(1, 2).flatten(2).flatten(0, 1))  # (b t, h s)
        share = None
        if rows is not None:
            share = torch.zeros(dropped.shape[0] * dropped.shape[2], device=q.device)
            share.index_add_(0, rows.indices, rows.scales.to(share.dtype))
        ctx.bias_shapes = [bias.shape for bias in biases]
        ctx.save_for_backward(weights, bits, share, *kept)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        weights, bits, share, *kept = ctx.saved_tensors
        (b, h, t, d), (_, _, s, _), v_shape = ctx.shapes
        q = _restore(kept[0:3], (b, t, h, d)).transpose(1, 2)
        k = _restore(kept[3:6], (b, s, h, d)).transpose(1, 2)
        v = _restore(kept[6:9], (b, h, v_shape[3], s))  # transposed already
        dropped, dweights = weights, (dout @ v).to(weights.dtype)
        if bits is not None:
            keep, scale = unpack(bits, weights.shape), 1 / (1 - ctx.p) if ctx.p < 1 else 0.0
            dropped = weights.mul(keep).mul_(scale)
            dweights.mul_(keep).mul_(scale)
        if share is not None:
            dropped = dropped * share.view(b, 1, t, 1)
        dv = dropped.transpose(-1, -2).to(dout.dtype) @ dout
        dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
        dbiases = [
            dscores.sum_to_size(shape) if wanted else None
            for shape, wanted in zip(ctx.bias_shapes, ctx.needs_input_grad[6:], strict=True)
        ]
        dscores = dscores.to(dout.dtype)
        dq = (dscores @ k).mul_(ctx.scaling)
        dk = (dscores.transpose(-1, -2) @ q).mul_(ctx.scaling)
        return dq, dk, dv, None, None, None, *dbiases


def select_rows(sampler: Sampler, rows: Tensor) -> Selection | None:
    """A draw of the budget's share of ``rows`` (n, f) by their norms, or None for all of them."""
    config, n = sampler.config, rows.shape[0]
    k = rows_kept(n, config.budget)
    if config.estimator == "full" or k >= n:
        return None
    norms = row_norms(rows)
    even = even_floor(torch.ones_like(norms), config.floor)
    probabilities = probabilities_of(norms, even, config.floor)
    return draw(config.estimator, probabilities, k, sampler.generator(rows.device))


def _keep(sampler: Sampler, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The drawn rows of (n, f), their indices and scales; all of them where the budget is 1."""
    selection = select_rows(sampler, rows)
    if selection is None:
        return rows, None, None
    return rows.index_select(0, selection.indices), selection.indices, selection.scales


def _restore(kept: list[Tensor | None], shape: tuple[int, ...]) -> Tensor:
    """An unbiased estimate of what ``_keep`` drew from: drawn rows at scale, the others zero."""
    rows, indices, scales = kept
    assert rows is not None
    if indices is None or scales is None:
        return rows.view(shape)
    n = torch.Size(shape).numel() // rows.shape[1]
    scaled = rows * scales[:, None].to(rows.dtype)
    return rows.new_zeros((n, rows.shape[1])).index_add_(0, indices, scaled).view(shape)
