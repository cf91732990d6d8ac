"""What a norm computes, found out by trying it: of names and attributes nothing sure is known.

    y = (offset + w) * xhat,   xhat = (x - c) / sqrt(mean((x - c)^2) + eps)

over the last dimension, where the offset is 0 or, in Gemma and its likes, 1, and c is 0
(root-mean-square norms) or the mean of x (Cohere's).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

ROWS = torch.tensor([3.0, 1.0, 1e-3])  # sizes of the rows it is tried with: eps shows in the last
LARGEST_EPS = 0.1
OTHER_WEIGHT = "not one weight over the last dimension"


@dataclass(frozen=True)
class NormKind:
    """The parameters of the equation above; ``eps`` None is that of the input's dtype."""

    eps: float | None
    offset: int
    centred: bool

    def normalise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (..., i) -> x - c, and 1 / sqrt(...) (..., 1), in float32 or better."""
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self.centred:
            x = x.to(dtype)
            x = x - x.mean(-1, keepdim=True)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        return x, norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is called a norm, and is made of no other modules."""
    return "norm" in type(module).__name__.lower() and not [*module.children()]


def key_of(module: nn.Module) -> tuple[object, ...]:
    """What modules of one kind have in common."""
    shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
    return (type(module), shapes, tuple(_epsilons(module)))


def norm_kind(module: nn.Module) -> NormKind | str:
    """What the norm ``module`` computes, or why it cannot start from its output."""
    name = type(module).__name__
    own = dict(module.named_parameters())
    if not own:
        return f"{name}: has no weight"
    if own.keys() != {"weight"} or own["weight"].dim() != 1:
        return f"{name}: {OTHER_WEIGHT}"
    if len(inspect.signature(type(module).forward).parameters) != 2:
        return f"{name}: takes more than one input"
    with unset_fake_temporarily(), torch.device("cpu"), torch.no_grad():
        width = own["weight"].shape[0]
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(len(ROWS), width, generator=generator) * ROWS[:, None] + 0.1 * ROWS[:, None]
        weight = torch.rand(width, generator=generator) + 0.5
        try:
            y = _with_weight(module, weight)(x)
        except Exception as error:  # whatever it does with rows of floats
            return f"{name}: {type(error).__name__} when it was tried"
        for eps, offset, centred in product(_epsilons(module), (0, 1), (False, True)):
            kind = NormKind(eps, offset, centred)
            values, rstd = kind.normalise(x)
            if isinstance(y, Tensor) and _close(y, values * rstd * (weight + offset)):
                return kind
    return f"{name}: computes something else"


def _close(y: Tensor, expected: Tensor) -> bool:
    return y.shape == expected.shape and torch.allclose(y.float(), expected, rtol=1e-4, atol=1e-6)


def _with_weight(module: nn.Module, weight: Tensor) -> nn.Module:
    tried = copy.copy(module)
    tried.__dict__ = {**module.__dict__, "_parameters": {"weight": nn.Parameter(weight)}}
    return tried.eval()


def _epsilons(module: nn.Module) -> Iterator[float | None]:
    """The attributes that may be it."""
    for name, value in vars(module).items():
        if isinstance(value, float) and 0 <= value < LARGEST_EPS:
            yield value
        elif value is None and name == "eps":
            yield None
