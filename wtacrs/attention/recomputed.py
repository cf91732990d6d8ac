"""Attention whose scores are computed again in the backward pass, a few samples at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wtacrs.attention.functional import keep_mask, part_of, probabilities
from wtacrs.autograd import first_order
from wtacrs.layers.bits import pack, unpack
from wtacrs.layers.masks import Memo

CHUNK_BYTES = 1 << 22  # of the scores at a time, small beside any layer, or
PARTS = 20  # so many parts, so that there are not too many kernels
CACHE_BYTES = {"cpu": 1 << 20}  # or so much, where it stays in the cache and a kernel costs little


class RecomputedAttention(torch.autograd.Function):
    """(q, k, v) (b, h, t, d) and biases (b or 1, h or 1, t or 1, s) -> (b, h, t, d)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scaling: float,
        p: float,
        memo: Memo | None,
        *biases: Tensor,
    ) -> Tensor:
        b, h, t, s = *q.shape[:3], k.shape[2]
        keep, bits = _draw(torch.Size((b, h, t, s)), p, q.device, memo)
        out = torch.empty((b, t, h, v.shape[-1]), dtype=v.dtype, device=v.device).transpose(1, 2)
        ctx.step = _samples(b, h * t * s, q.device.type)
        with torch.autocast(q.device.type, enabled=False):
            for start in range(0, b, ctx.step):
                stop = min(b, start + ctx.step)
                parts = [part_of(bias, start, stop) for bias in biases]
                weights = probabilities(q[start:stop], k[start:stop], scaling, parts)
                if bits is not None:
                    mask = _mask(bits, start, stop, weights) if keep is None else keep[start:stop]
                    weights = weights.mul_(mask).mul_(1 / (1 - p) if p < 1 else 0.0)
                out[start:stop] = weights.to(v.dtype) @ v[start:stop]
        ctx.scaling, ctx.p = scaling, p
        ctx.save_for_backward(q, k, v, bits, *biases)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bits, *biases = ctx.saved_tensors
        wanted = ctx.needs_input_grad[6:]
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dbiases = [torch.zeros_like(x) if w else None for x, w in zip(biases, wanted, strict=True)]
        b, scale = len(q), 1 / (1 - ctx.p) if ctx.p < 1 else 0.0
        for start in range(0, b, ctx.step):
            stop = min(b, start + ctx.step)
            one = slice(start, stop)
            parts = [part_of(bias, start, stop) for bias in biases]
            weights = probabilities(q[one], k[one], ctx.scaling, parts)
            dropped, keep = weights, None
            if bits is not None:
                keep = _mask(bits, start, stop, weights)
                dropped = weights.mul(keep).mul_(scale)
            dv[one] = dropped.transpose(-1, -2).to(dout.dtype) @ dout[one]
            del dropped
            dweights = (dout[one] @ v[one].transpose(-1, -2)).to(weights.dtype)
            if keep is not None:
                dweights.mul_(keep).mul_(scale)
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            del weights, dweights
            for dbias in dbiases:
                if dbias is not None:
                    part = part_of(dbias, start, stop)
                    part.add_(dscores.sum_to_size(part.shape))
            dscores = dscores.to(q.dtype)
            dq[one] = (dscores @ k[one]).mul_(ctx.scaling)
            dk[one] = (dscores.transpose(-1, -2) @ q[one]).mul_(ctx.scaling)
            del dscores  # or it would live beside the next part's
        return dq, dk, dv, None, None, None, *dbiases


def _samples(b: int, size: int, device: str) -> int:
    """How many of ``b`` samples make a part, if the scores of one are ``size`` numbers."""
    least, most = -(-b // PARTS), CHUNK_BYTES
    if device in CACHE_BYTES:
        least, most = 1, min(most, CACHE_BYTES[device])
    step = max(1, min(b, max(least, most // max(1, 4 * size))))
    return step if size % 8 == 0 else -(-step // 8) * 8  # a part's bits begin with a byte


def _draw(
    shape: torch.Size, p: float, device: torch.device, memo: Memo | None
) -> tuple[Tensor | None, Tensor | None]:
    """(mask of dropout, its bits); the bits alone where a memo has them."""
    if p == 0:
        return None, None
    if memo is not None and memo.replays:
        return None, memo.take()
    keep = keep_mask(shape, p, device)
    bits = pack(keep)
    if memo is not None:
        memo.keep(bits)
    return keep, bits


def _mask(bits: Tensor, start: int, stop: int, weights: Tensor) -> Tensor:
    """The mask of samples ``start`` to ``stop``, whose ``weights`` (b, h, t, s) are at hand."""
    size = weights[0].numel()
    return unpack(bits[start * size // 8 : -(-stop * size // 8)], weights.shape)
