"""Attention that keeps less, through transformers' AttentionInterface.

With scores S = Q K^T * scaling + bias + mask, P = softmax(S), Pd = dropout(P), the plain ("eager")
attention keeps Q, K, V and three (b, h, t, t) tensors: P, the dropout's mask and Pd.

    recompute   keeps Q, K, V and one bit an element of the mask; S and P are computed again in the
                backward pass, a few samples at a time, so that of (b, h, t, t) only the mask
                is ever whole, in the forward pass.
    sampled     what the paper does to the two products: each factor of the backward pass that the
                forward pass would have to keep is kept at the budget of rows, at random. Gradients
                of Q, K and V are unbiased; unlike everything else here they are not exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wtacrs.autograd import first_order
from wtacrs.lossless.bits import pack, unpack
from wtacrs.sampled_attention import SampledAttention, keep_mask, probabilities
from wtacrs.sampling.linear import SampledLinear
from wtacrs.sampling.sampler import Sampler

ATTENTION = ("default", "eager", "sdpa", "recompute", "sampled")
NAMES = {"recompute": "wtacrs_recompute", "sampled": "wtacrs_sampled"}
CHUNK_BYTES = 1 << 22  # of the scores at a time, small beside any layer, or
PARTS = 16  # so many parts, so that there are not too many kernels


def part_of(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Samples ``start`` to ``stop`` of a tensor whose first dimension may be broadcast."""
    return tensor if tensor.shape[0] == 1 else tensor[start:stop]


class RecomputedAttention(torch.autograd.Function):
    """(q, k, v) (b, h, t, d) and biases (b or 1, h or 1, t or 1, s) -> (b, h, t, d)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scaling: float, p: float, *biases: Tensor
    ) -> Tensor:
        b, h, t, s = *q.shape[:3], k.shape[2]
        keep = keep_mask(torch.Size((b, h, t, s)), p, q.device) if p > 0 else None
        out = torch.empty((b, t, h, v.shape[-1]), dtype=v.dtype, device=v.device).transpose(1, 2)
        ctx.step = max(1, min(b, max(-(-b // PARTS), CHUNK_BYTES // max(1, 4 * h * t * s))))
        if h * t * s % 8:
            ctx.step = -(-ctx.step // 8) * 8  # a part's bits begin with a byte
        with torch.autocast(q.device.type, enabled=False):
            for start in range(0, b, ctx.step):
                stop = min(b, start + ctx.step)
                parts = [part_of(bias, start, stop) for bias in biases]
                weights = probabilities(q[start:stop], k[start:stop], scaling, parts)
                if keep is not None:
                    weights = weights.mul_(keep[start:stop]).mul_(1 / (1 - p) if p < 1 else 0.0)
                out[start:stop] = weights.to(v.dtype) @ v[start:stop]
        ctx.scaling, ctx.p, ctx.shape = scaling, p, (b, h, t, s)
        ctx.save_for_backward(q, k, v, None if keep is None else pack(keep), *biases)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bits, *biases = ctx.saved_tensors
        wanted = ctx.needs_input_grad[5:]
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dbiases = [torch.zeros_like(x) if w else None for x, w in zip(biases, wanted, strict=True)]
        b, *rest = ctx.shape
        size = torch.Size(rest).numel()  # elements of one sample's scores
        scale = 1 / (1 - ctx.p) if ctx.p < 1 else 0.0
        for start in range(0, b, ctx.step):
            stop = min(b, start + ctx.step)
            one = slice(start, stop)
            parts = [part_of(bias, start, stop) for bias in biases]
            weights = probabilities(q[one], k[one], ctx.scaling, parts)
            dropped = weights
            dweights = (dout[one] @ v[one].transpose(-1, -2)).to(weights.dtype)
            if bits is not None:
                keep = unpack(bits[start * size // 8 : -(-stop * size // 8)], weights.shape)
                dropped = weights.mul(keep).mul_(scale)
                dweights.mul_(keep).mul_(scale)
            dv[one] = dropped.transpose(-1, -2).to(dout.dtype) @ dout[one]
            del dropped
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            for dbias in dbiases:
                if dbias is not None:
                    part = part_of(dbias, start, stop)
                    part.add_(dscores.sum_to_size(part.shape))
            dscores = dscores.to(q.dtype)
            dq[one] = (dscores @ k[one]).mul_(ctx.scaling)
            dk[one] = (dscores.transpose(-1, -2) @ q[one]).mul_(ctx.scaling)
        return dq, dk, dv, None, None, *dbiases


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The signature of transformers' AttentionInterface, for either Function."""
    if unknown := [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} attends with {unknown}, which is not supported")
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    biases = [
        bias[(None,) * (4 - bias.dim())]  # (b or 1, h or 1, t or 1, s)
        for bias in (position_bias, attention_mask)
        if bias is not None
    ]
    config: Any = module.config
    sampled = config._attn_implementation == NAMES["sampled"]
    if sampled and module.training and torch.is_grad_enabled():
        out = SampledAttention.apply(
            query, key, value, scaling, dropout, _sampler_of(module), *biases
        )
    else:
        out = RecomputedAttention.apply(query, key, value, scaling, dropout, *biases)
    return out.transpose(1, 2).contiguous(), None


def _sampler_of(module: nn.Module) -> Sampler:
    samplers = (layer.sampler for layer in module.modules() if isinstance(layer, SampledLinear))
    if (sampler := next(samplers, None)) is None:
        raise ValueError(
            f"attention=sampled draws with the sampler of the linear layers inside, and this "
            f"{type(module).__name__} has no sampled one; call sample_linears_ first"
        )
    return sampler


def set_attention(model: Any, name: str) -> None:
    """Choose how ``model`` (a transformers model) computes attention; "default" changes nothing.

    Raises:
        ValueError: an unknown name, or a model that does not attend through the AttentionInterface.
    """
    if name not in ATTENTION:
        raise ValueError(f"attention={name!r} is unknown; choose {', '.join(ATTENTION)}")
    if name == "default":
        return
    if not hasattr(model, "set_attn_implementation"):
        raise ValueError(
            f"attention={name} needs a transformers model with set_attn_implementation; "
            f"{type(model).__name__} has none"
        )
    if name in NAMES:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import eager_mask

        AttentionInterface.register(NAMES[name], _attend)
        AttentionMaskInterface.register(NAMES[name], eager_mask)
    chosen = NAMES.get(name, name)
    model.set_attn_implementation(chosen)
    if model.config._attn_implementation != chosen:
        raise ValueError(
            f"attention={name}: {type(model).__name__} stays with "
            f"{model.config._attn_implementation!r}; it does not use the AttentionInterface"
        )
