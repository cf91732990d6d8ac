"""Attention whose scores are computed again in the backward pass, a part at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wtacrs.attention.functional import (
    for_each_head,
    keep_mask,
    of_each_group,
    part_of,
    probabilities,
)
from wtacrs.autograd import first_order
from wtacrs.layers.bits import pack, unpack
from wtacrs.layers.masks import Memo

CHUNK_BYTES = 1 << 22  # of the scores at a time, small beside any layer, or
PARTS = 20  # so many parts, so that there are not too many kernels
CACHE_BYTES = {"cpu": 1 << 20}  # or so much, where it stays in the cache and a kernel costs little

Part = tuple[slice, slice, slice]  # of samples, heads and queries; contiguous in (b, h, t, s)


class RecomputedAttention(torch.autograd.Function):
    """q (b, h, t, d), k and v (b, h / groups, s, d), and biases (b or 1, h or 1, t or 1, s), of
    which booleans say where to attend -> (b, h, t, d)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scaling: float,
        p: float,
        memo: Memo | None,
        causal: bool,
        *biases: Tensor,
    ) -> Tensor:
        ctx.scaling, ctx.p, ctx.causal = scaling, p, causal
        (b, h, t), s = q.shape[:3], k.shape[2]
        ctx.shape = torch.Size((b, h, t, s))
        keep, bits = _draw(ctx.shape, p, q.device, memo)
        ctx.save_for_backward(q, k, v, bits, *biases)
        k, v = (for_each_head(x, h) for x in (k, v))
        out = torch.empty((b, t, h, v.shape[-1]), dtype=v.dtype, device=v.device).transpose(1, 2)
        with torch.autocast(q.device.type, enabled=False):
            for part in _parts(ctx.shape, q.device.type):
                weights = _weights(ctx, part, q, k, biases)
                if bits is not None:
                    mask = _mask(bits, ctx.shape, part) if keep is None else keep[part]
                    weights = weights.mul_(mask).mul_(1 / (1 - p) if p < 1 else 0.0)
                out[part] = weights.to(v.dtype) @ v[part[:2]]
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bits, *biases = ctx.saved_tensors
        scale = 1 / (1 - ctx.p) if ctx.p < 1 else 0.0
        groups = ctx.shape[1] // k.shape[1]
        k, v = (for_each_head(x, ctx.shape[1]) for x in (k, v))
        parts = _parts(ctx.shape, q.device.type)
        # Queries in parts: what they add up to is rounded once.
        split = parts[0][2] != slice(0, ctx.shape[2])
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(x, dtype=torch.float32 if split else None) for x in (k, v))
        wanted = ctx.needs_input_grad[7:]
        dbiases = [torch.zeros_like(x) if w else None for x, w in zip(biases, wanted, strict=True)]
        for part in parts:
            weights = _weights(ctx, part, q, k, biases)
            dropped, keep = weights, None
            if bits is not None:
                keep = _mask(bits, ctx.shape, part)
                dropped = weights.mul(keep).mul_(scale)
            dv[part[:2]] += dropped.transpose(-1, -2).to(dout.dtype) @ dout[part]
            del dropped
            dweights = (dout[part] @ v[part[:2]].transpose(-1, -2)).to(weights.dtype)
            if keep is not None:
                dweights.mul_(keep).mul_(scale)
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            del weights, dweights
            for dbias in dbiases:
                if dbias is not None:
                    one = part_of(dbias, part)
                    one.add_(dscores.sum_to_size(one.shape))
            dscores = dscores.to(q.dtype)
            dq[part] = (dscores @ k[part[:2]]).mul_(ctx.scaling)
            dk[part[:2]] += (dscores.transpose(-1, -2) @ q[part]).mul_(ctx.scaling)
            del dscores  # or it would live beside the next part's
        dk, dv = (of_each_group(x, groups).to(q.dtype) for x in (dk, dv))
        return dq, dk, dv, None, None, None, None, *dbiases


def _weights(
    ctx: Any, part: Part, q: Tensor, k: Tensor, biases: list[Tensor] | tuple[Tensor, ...]
) -> Tensor:
    """``part`` of the probabilities, k a head for each of q's."""
    biases = [part_of(bias, part) for bias in biases]
    start = part[2].start if ctx.causal else None
    return probabilities(q[part], k[part[:2]], ctx.scaling, biases, start)


def _parts(shape: torch.Size, device: str) -> list[Part]:
    """The parts of scores (b, h, t, s): some samples, or some heads of one, or some queries."""
    b, h, t, s = shape
    if device in CACHE_BYTES:
        most = min(CHUNK_BYTES, CACHE_BYTES[device]) // 4
    else:
        most = max(CHUNK_BYTES // 4, -(-shape.numel() // PARTS))
    samples = max(1, min(b, most // max(1, h * t * s)))
    heads = max(1, min(h, most // max(1, t * s)))
    queries = max(1, min(t, most // max(1, s)))
    return [
        (slice(i, min(b, i + samples)), slice(j, min(h, j + heads)), slice(n, min(t, n + queries)))
        for i in range(0, b, samples)
        for j in range(0, h, heads)
        for n in range(0, t, queries)
    ]


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


def _mask(bits: Tensor, shape: torch.Size, part: Part) -> Tensor:
    """``part`` of the mask of ``shape`` (b, h, t, s), whose bits begin where they may."""
    one = torch.Size([each.stop - each.start for each in part] + [shape[3]])
    start = 0
    for each, size in zip((*part, slice(0, 0)), shape, strict=True):
        start = start * size + each.start
    skipped = start % 8
    stop = skipped + one.numel()
    flat = unpack(bits[start // 8 : start // 8 + -(-stop // 8)], torch.Size([stop]))
    return flat[skipped:].view(one)
