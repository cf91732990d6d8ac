"""The kernels that CUDA would take, where they keep other bytes than the CPU's, on fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from wtacrs import recompute
from wtacrs.attention import recomputed
from wtacrs_experiments.errors import UserError


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Gives functions whose CPU kernel keeps other bytes the kernel that CUDA would take, and takes
    back what the library does on a CPU alone.

    They are replaced where models look them up: a function mode of torch would be off in the
    backward pass, where a recomputation calls them again.
    """
    with (
        mock.patch.object(F, "dropout", _dropout),
        mock.patch.object(F, "scaled_dot_product_attention", _attention),
        mock.patch.object(F, "layer_norm", _in_float32(F.layer_norm)),
        mock.patch.object(torch, "native_layer_norm", _in_float32(torch.native_layer_norm)),
        mock.patch.object(F, "softmax", _in_float32(F.softmax)),
        mock.patch.object(F, "cross_entropy", _in_float32(F.cross_entropy)),
        mock.patch.object(recompute, "SLOW_TO_DRAW", ()),
        mock.patch.object(recomputed, "CACHE_BYTES", {}),
    ):
        yield


def _autocast() -> bool:
    return torch.is_autocast_enabled("cpu")  # where fake tensors are


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Under CUDA's autocast the function is computed in float32; under the CPU's it is not."""

    def cast(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        return function(input.float() if _autocast() else input, *args, **kwargs)

    return cast


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """The fused kernel keeps a mask in bytes; the CPU's keeps it in the input's dtype."""
    if training and 0 < p < 1 and not inplace:
        return torch.native_dropout(input, p, True)[0]
    return torch.dropout_(input, p, training) if inplace else torch.dropout(input, p, training)


def _attention(
    query: Tensor,  # (b, h, t, d)
    key: Tensor,  # (b, h, s, d)
    value: Tensor,  # (b, h, s, d)
    attn_mask: Tensor | None = None,  # broadcasts to (b, h, t, s)
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The memory-efficient kernel, which keeps q, k, v, the mask, the output and a sum a row.

    The flash kernel, for which a mask is one too many, keeps the same. With dropout the CPU takes
    plain products, and keeps the probabilities (b, h, t, s).
    """
    if _autocast():
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    aligned = 4 if query.dtype == torch.float32 else 8
    if enable_gqa or query.shape[-1] % aligned or value.shape[-1] % aligned:
        raise UserError(
            f"attention with {query.shape[-1]} features a head in {query.dtype}"
            f"{' and shared keys' if enable_gqa else ''} is none for CUDA's memory-efficient "
            "kernel, so what it keeps is not known; plan with memory.attention=eager"
        )
    b, h, t, s = *query.shape[:3], key.shape[2]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, 0.0, float("-inf")).to(query.dtype)
        if s % 16:  # the kernel reads rows of the mask that are aligned
            attn_mask = F.pad(attn_mask, (0, 16 - s % 16))[..., :s]
        attn_mask = attn_mask.expand(b, h, t, s)
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
