"""Attention that keeps less, through transformers' AttentionInterface.

With scores S = Q K^T * scaling + bias + mask, P = softmax(S), Pd = dropout(P), the plain ("eager")
attention keeps Q, K, V and three (b, h, t, t) tensors: P, the dropout's mask and Pd.

    recompute   keeps Q, K, V and one bit an element of the mask; S and P are computed again in the
                backward pass, a part at a time, so that of (b, h, t, t) only the mask is ever
                whole, in the forward pass. A model that attends by torch's fused kernels ("sdpa")
                does so still, wherever these keep no (t, t) matrix: without dropout and bias. In
                a part of the model that is recomputed their output may be kept: see ``kept``.
    sampled     what the paper does to the two products: each factor of the backward pass that the
                forward pass would have to keep is kept at the budget of rows, at random. Gradients
                of Q, K and V are unbiased; unlike everything else here they are not exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wtacrs.attention.functional import for_each_head
from wtacrs.attention.kept import attended
from wtacrs.attention.recomputed import RecomputedAttention
from wtacrs.attention.sampled import SampledAttention
from wtacrs.config import ATTENTION
from wtacrs.sampling.linear import SampledLinear
from wtacrs.sampling.sampler import Sampler
from wtacrs.swap import attends

NAMES = {"recompute": "wtacrs_recompute", "sampled": "wtacrs_sampled"}
OVER_SDPA = "wtacrs_recompute_sdpa"  # "recompute" in a model that attends by "sdpa" otherwise
FLASH = "flash"  # in the names of kernels that keep no (t, t) matrix, and draw dropout by a seed
# Attributes of attention modules -> what they attend with, which none of ours can.
UNSUPPORTED = {"attn_logit_softcapping": "softcap", "sinks": "sinks", "alibi": "ALiBi"}


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The signature of transformers' AttentionInterface, for either Function."""
    if unknown := [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} attends with {unknown}, which is not supported")
    config: Any = module.config
    trains = module.training and torch.is_grad_enabled()
    over_sdpa = config._attn_implementation == OVER_SDPA
    if over_sdpa and (not trains or (dropout == 0 and position_bias is None)):
        given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
        given |= {} if position_bias is None else {"position_bias": position_bias}
        return _fused(module, query, key, value, attention_mask, **given), None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    added = (bias for bias in (position_bias, attention_mask) if bias is not None)
    biases = [bias[(None,) * (4 - bias.dim())] for bias in added]  # (b or 1, h or 1, t or 1, s)
    if config._attn_implementation == NAMES["sampled"] and trains:
        key, value = (for_each_head(x, query.shape[1]) for x in (key, value))
        drawn_by = _sampler_of(module)
        out = SampledAttention.apply(query, key, value, scaling, dropout, drawn_by, *biases)
    else:
        # transformers makes no mask where it expects the kernel to know the order.
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        causal = over_sdpa and attention_mask is None and causal and query.shape[2] > 1
        memo = getattr(module, "memo", None)  # of the bits of dropout, where one is at hand
        out = RecomputedAttention.apply(query, key, value, scaling, dropout, memo, causal, *biases)
    return out.transpose(1, 2).contiguous(), None


def _fused(module: nn.Module, query: Tensor, key: Tensor, *more: Any, **given: Any) -> Tensor:
    """What transformers' "sdpa" does with these arguments, or did in a first pass."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def compute() -> Tensor:
        out: Tensor = sdpa_attention_forward(module, query, key, *more, **given)[0]
        return out

    return attended(getattr(module, "outputs_memo", None), query, key, compute)


def _sampler_of(module: nn.Module) -> Sampler:
    samplers = (layer.sampler for layer in module.modules() if isinstance(layer, SampledLinear))
    if (sampler := next(samplers, None)) is None:
        raise ValueError(
            f"attention=sampled draws with the sampler of the linear layers inside, and this "
            f"{type(module).__name__} has no sampled one; call sample_linears_ first"
        )
    return sampler


def attention_of(model: Any) -> str | None:
    """The attention of a transformers model, under transformers' name; None of another model."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def restore_attention(model: Any, before: str | None) -> None:
    """The inverse of ``set_attention``, given what ``attention_of`` said before it."""
    if before is not None:
        model.set_attn_implementation(before)


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
    chosen = _register(model, name) if name in NAMES else name
    model.set_attn_implementation(chosen)
    if model.config._attn_implementation != chosen:
        raise ValueError(
            f"attention={name}: {type(model).__name__} stays with "
            f"{model.config._attn_implementation!r}; it does not use the AttentionInterface"
        )


def try_attention(model: Any, name: str, may_stay: bool) -> str | None:
    """``set_attention``, but a model keeps an attention that keeps no (t, t) matrix, or has none.

    Args:
        may_stay: whether a model that cannot take ours may keep its own too, since what that keeps
            is computed again in any case.

    Returns:
        Why the model keeps its own; None if it does not.

    Raises:
        ValueError: as ``set_attention`` does.
    """
    before = attention_of(model)
    if before is not None and not any(map(attends, model.modules())):
        return "no module attends"
    if name == "recompute" and before is not None and FLASH in before:
        return f"{before} keeps no (t, t) matrix"
    try:
        set_attention(model, name)
    except ValueError as error:
        if name != "recompute" or not may_stay:
            raise
        return str(error)
    return None


def _register(model: Any, name: str) -> str:
    """The name under which transformers finds our attention ``name`` for ``model``."""
    modules = [*filter(attends, model.modules())]
    for attribute, what in UNSUPPORTED.items():
        if any(getattr(module, attribute, None) is not None for module in modules):
            raise ValueError(
                f"attention={name}: {type(model).__name__} attends with {what}, which ours cannot"
            )
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    over_sdpa = name == "recompute" and attention_of(model) in ("sdpa", OVER_SDPA)
    chosen = OVER_SDPA if over_sdpa else NAMES[name]
    AttentionInterface.register(chosen, _attend)
    AttentionMaskInterface.register(chosen, sdpa_mask if over_sdpa else eager_mask)
    return chosen


def check_sampled_attention(model: nn.Module) -> None:
    """Sampled attention draws with the sampler of the linear layers inside: there must be some.

    Raises:
        ValueError: an attention without a sampled layer.
    """
    for name, module in model.named_modules():
        itself = hasattr(module, "is_causal")  # and not one inside, as in a BertAttention
        if itself and not any(isinstance(layer, SampledLinear) for layer in module.modules()):
            raise ValueError(
                f"attention='sampled' draws with the sampler of linear layers inside, and {name} "
                "has no sampled one; choose another attention, or sample a layer of each (include)"
            )
