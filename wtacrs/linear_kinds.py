"""Layers that compute x W^T + b, found out by trying them; and parameters of no such layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily


class NotLinear(Exception):
    """Why a layer is not taken."""


def is_transposed(layer: nn.Module) -> bool:
    """Whether the weight of a linear layer is W^T (i, o), as that of transformers' Conv1D.

    A class other than nn.Linear is tried, with a small weight on the CPU.

    Raises:
        NotLinear: it computes something else.
    """
    if type(layer) is nn.Linear:
        return False
    own, name = dict(layer.named_parameters()), type(layer).__name__
    if name == "NonDynamicallyQuantizableLinear":
        raise NotLinear(f"{name} is not called: nn.MultiheadAttention reads its weight itself")
    if own.keys() not in ({"weight"}, {"weight", "bias"}):
        raise NotLinear(f"{name} has other parameters than weight and bias")
    generator = torch.Generator().manual_seed(1)
    with unset_fake_temporarily(), torch.device("cpu"), torch.no_grad():
        x, w = (torch.randn(*size, generator=generator) for size in ((2, 3, 4), (5, 4)))
        b = torch.randn(5, generator=generator) if "bias" in own else None
        for transposed in (False, True):
            try:
                y = _tried(layer, {"weight": w.T if transposed else w, "bias": b})(x)
            except Exception:  # it reads sizes, or is made for one of the two
                continue
            # A router, say, gives more than one tensor.
            if not isinstance(y, torch.Tensor) or y.shape != (2, 3, 5):
                continue
            if torch.allclose(y, F.linear(x, w, b), atol=1e-5):
                return transposed
    raise NotLinear(f"{name} computes in its own way")


def _tried(layer: nn.Module, tensors: dict[str, torch.Tensor | None]) -> nn.Module:
    tried = copy.copy(layer)
    own = {name: None if x is None else nn.Parameter(x) for name, x in tensors.items()}
    # Conv1D has the number of its outputs as an attribute.
    sizes = {"nf": 5} if "nf" in vars(layer) else {}
    tried.__dict__ = {**vars(layer), **sizes, "_parameters": own}
    return tried.eval()


def looks_linear(module: nn.Module) -> bool:
    """Whether it may be a linear layer: by what it is, or by what it is named."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def other_parameters(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(qualified name, reason) of each trainable matrix that is of no linear layer."""
    for name, module in model.named_modules():
        if looks_linear(module):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter.dim() > 1:
                full = f"{name}.{own}" if name else own
                yield full, f"of {type(module).__name__}, which is no linear layer"
