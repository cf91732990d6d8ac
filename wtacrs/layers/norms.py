"""LayerNorm and RMSNorm whose backward pass starts from their output.

The plain norms keep their input X for the backward pass, and the linear layer that follows keeps
the output Y. One of the two is enough, for with weight w and bias b

    Xhat = (Y - b) / w
    dX = rstd * (G - mean(G) - Xhat * mean(G * Xhat)),  G = dY * w        (RMSNorm: without mean(G))
    dw = sum_n dY * Xhat,  db = sum_n dY

Kept are Y and one number a row, rstd. A sampled linear layer that reads Y keeps indices into it.
Exact up to rounding as long as no |w| is tiny beside |b|, which is looked at once: at the swap or,
where the weights have no values yet (on the meta device), in the first training call. A weight that
becomes exactly 0 in training gets the gradient 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from wtacrs.autograd import first_order, mark_kept
from wtacrs.layers.norm_kinds import NormKind

# Largest relative error that rounding a norm's output may cause in what is recovered from it.
MAX_ERROR = 0.08
MAX_RATIO = 1e3  # of |bias| to |weight|, however fine the dtype: training moves both


def normalised(y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Xhat (..., i) in the weight's dtype or better, from the output ``y`` of a norm."""
    inverse = torch.where(weight == 0, 0, 1 / weight)
    return y * inverse if bias is None else (y - bias).mul_(inverse)


class LayerNormFunction(torch.autograd.Function):
    """``F.layer_norm`` over the last dimension that keeps its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        if torch.is_autocast_enabled("cuda") and x.is_cuda:
            x = x.float()  # as autocast does for the plain layer
        y, _, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.x_dtype = x.dtype
        ctx.save_for_backward(y, weight, bias, rstd)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, bias, rstd = ctx.saved_tensors
        xhat = normalised(y, weight, bias)
        # The plain kernel, told that its input has mean 0 and deviation 1 already.
        dx, dw, db = torch.ops.aten.native_layer_norm_backward(
            dy.to(xhat.dtype),
            xhat,
            weight.shape,
            torch.zeros_like(rstd),
            torch.ones_like(rstd),
            weight,
            bias,
            [True, ctx.needs_input_grad[1], ctx.needs_input_grad[2]],
        )
        return dx.mul_(rstd).to(ctx.x_dtype), dw, db, None


class NormFunction(torch.autograd.Function):
    """The norm of ``kind`` over the last dimension, by ``plain``; keeps its output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, kind: NormKind, plain: Callable[[Tensor], Tensor]
    ) -> Tensor:
        _, rstd = kind.normalise(x)  # (..., 1)
        y = plain(x)  # which casts where it likes
        ctx.x_dtype, ctx.kind = x.dtype, kind
        ctx.save_for_backward(y, weight, rstd)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        y, own, rstd = ctx.saved_tensors
        weight = own.to(rstd.dtype) + ctx.kind.offset if ctx.kind.offset else own
        xhat = normalised(y, weight, None).to(rstd.dtype)
        product = dy * xhat  # (..., i)
        dw = dx = None
        if ctx.needs_input_grad[1]:
            dw = product.reshape(-1, len(weight)).sum(0).to(own.dtype)
        if ctx.needs_input_grad[0]:
            inner = (product @ weight.to(product.dtype)).div_(len(weight))[..., None]
            g = torch.mul(dy, weight, out=product)
            if ctx.kind.centred:
                g = g.sub_(g.mean(-1, keepdim=True))
            dx = g.sub_(xhat.mul_(inner)).mul_(rstd).to(ctx.x_dtype)
        return dx, dw, None, None


def invertible(module: nn.Module, dtype: torch.dtype | None = None, offset: int = 0) -> bool | None:
    """Whether a norm's output tells what was normalised: no bias drowns it in ``dtype``. None where
    the weights have no values yet."""
    own, bias = module.get_parameter("weight"), getattr(module, "bias", None)
    if own.dim() != 1:
        return False
    if isinstance(own, FakeTensor):
        return True  # a plan, without values
    if own.is_meta:
        return None
    weight = own.detach() + offset
    size = torch.zeros_like(weight) if bias is None else bias.detach().abs()
    ratio = min(MAX_RATIO, MAX_ERROR / torch.finfo(dtype or own.dtype).eps)
    return bool(((weight != 0) & (weight.abs() * ratio >= size)).all())


def look(module: LosslessLayerNorm | LosslessNorm) -> None:
    """Note whether ``module`` is invertible; a LayerNorm in bfloat16, too."""
    if isinstance(module, LosslessNorm):
        module.inverts = invertible(module, offset=module.kind.offset)
    else:
        module.inverts = invertible(module)
        module.in_bfloat16 = invertible(module, torch.bfloat16)


def _saves(module: LosslessLayerNorm | LosslessNorm, x: Tensor) -> bool:
    trains = x.requires_grad or any(p.requires_grad for p in module.parameters(recurse=False))
    if not (torch.is_grad_enabled() and trains):
        return False
    if module.inverts is None and not torch.compiler.is_compiling():  # a graph cannot look
        look(module)
    return bool(module.inverts)


class LosslessLayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the last dimension that keeps its output instead of its input.

    Under autocast on a CPU the output may be coarser than the weight; where the bias is too large
    for that (``in_bfloat16`` is false) the layer is then the plain one.
    """

    inverts: bool | None
    in_bfloat16: bool | None

    def forward(self, input: Tensor) -> Tensor:
        coarser = input.dtype.itemsize < self.weight.dtype.itemsize and not input.is_cuda
        if _saves(self, input) and (self.in_bfloat16 or not coarser):
            return mark_kept(LayerNormFunction.apply(input, self.weight, self.bias, self.eps))
        return super().forward(input)


class LosslessNorm(nn.Module):
    """A norm of one weight that keeps its output; the class of a swapped LlamaRMSNorm, say."""

    weight: nn.Parameter
    kind: NormKind
    inverts: bool | None
    plain_class: type[nn.Module]

    def __getattr__(self, name: str) -> Any:
        """What the plain class has, and its ``forward`` asks for."""
        plain = self.__dict__.get("plain_class")
        if plain is not None and hasattr(plain, name):
            return getattr(plain, name).__get__(self)
        return super().__getattr__(name)

    def forward(self, hidden_states: Tensor) -> Tensor:
        plain = partial(self.plain_class.forward, self)
        if not _saves(self, hidden_states):
            return plain(hidden_states)
        return mark_kept(NormFunction.apply(hidden_states, self.weight, self.kind, plain))
