"""A trial: a copy of a module, with a few random rows, is tried against the plain module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from wtacrs.sampling.linear import SampledLinear
from wtacrs.sampling.sampler import Sampler

SHAPE = 3, 5  # samples by tokens with which a module is tried, each sample in its own part


def kind_of(module: nn.Module, before: nn.Module | None) -> Any:
    """What sublayers that are alike have in common."""
    parts = [*([] if before is None else before.modules()), *module.modules()]
    shapes = [
        [(tuple(p.shape), p.requires_grad) for p in part.parameters(recurse=False)]
        for part in parts
    ]
    return str([*zip(map(type, parts), shapes, map(_settings, parts), strict=True)])


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """What else may decide what a module computes; functions by identity."""
    ours = ("name", "sampler") if isinstance(module, SampledLinear) else ()
    own = {key: value for key, value in vars(module).items() if key not in ours}
    plain = {key: v for key, v in own.items() if isinstance(v, (bool, str, float, int))}
    called = {key: id(v) for key, v in own.items() if callable(v) and key not in plain}
    return sorted((plain | called).items())


def trial_copy(module: nn.Module, before: nn.Module | None) -> tuple[nn.Module, nn.Module | None]:
    """A copy with random float32 weights on the CPU, whatever the weights are, and budget 1."""
    pair = nn.ModuleList([m for m in (before, module) if m is not None])
    generator = torch.Generator().manual_seed(0)
    instead: dict[int, Any] = {}
    for p in pair.parameters():
        values = torch.randn(p.shape, generator=generator).mul_(0.3)
        if p.dim() == 1:  # norms divide by their weights
            values = values.abs_().add_(0.5)
        instead[id(p)] = nn.Parameter(values, p.requires_grad)
    for layer in pair.modules():
        if isinstance(layer, SampledLinear):  # the history of its sampler is not copied
            exact = replace(layer.sampler.config, budget=1.0)
            instead.setdefault(id(layer.sampler), Sampler(exact, [], {}))
    copied: Any = copy.deepcopy(pair, instead).train()
    return copied[-1], copied[0] if before is not None else None


def one_step(
    run: Callable[[Tensor], Tensor], call: nn.Module, x: Tensor, dy: Tensor
) -> list[Tensor | None]:
    """Output and gradients of a step of ``run``, which computes ``call``."""
    torch.manual_seed(0)
    x = x.clone().requires_grad_()
    y = run(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(p.grad for p in call.parameters())]


def close_to(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None:
        return found is expected
    near = 1e-4 * float(expected.abs().max())
    return torch.allclose(found, expected, rtol=1e-3, atol=near)
