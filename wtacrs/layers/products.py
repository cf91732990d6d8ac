"""Products whose value no gradient needs: a second pass leaves them out.

A linear layer needs its input for dW = dY^T X and its weight for dX = dY W, never its output; a
frozen one needs its weight alone. So the last product of what is computed again is made in vain,
and in an adapter, y = W x + B A x, all that is merely added up. What holds of an adapter is found
by trying it on a copy: with DoRA, say, the values enter a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import _disable_current_modes

from wtacrs.layers.trial import SHAPE, close_to, kind_of, one_step, trial_copy
from wtacrs.sampling.early import compute_dtype, linear
from wtacrs.sampling.linear import SampledLinear
from wtacrs.swap import OwnForward

Verdicts = dict[str, list[str]]  # kind of adapter -> names of its layers whose values are in vain


class FrozenLinearFunction(torch.autograd.Function):
    """``F.linear`` with a frozen weight, which is all that it keeps; without ``product`` its output
    is zeros without storage."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., i)
        weight: Tensor,  # (o, i)
        bias: Tensor | None,  # (o,)
        product: bool,
    ) -> Tensor:
        ctx.x_dtype = x.dtype
        ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None)
        if product:
            return linear(x, weight, bias)
        return x.new_zeros((), dtype=compute_dtype(x)).expand(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        dx = db = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight.to(dy.dtype)).to(ctx.x_dtype)  # (..., i)
        if ctx.needs_input_grad[2]:
            db = dy.reshape(-1, dy.shape[-1]).sum(0)
        return dx, None, db, None


class FrozenForward(OwnForward):
    """The ``forward`` of a frozen ``nn.Linear`` for the time of a pass."""

    def __init__(self, module: nn.Module, product: bool) -> None:
        super().__init__(module)
        self._product = product

    def __call__(self, input: Tensor) -> Tensor:
        layer: Any = self.module
        return FrozenLinearFunction.apply(input, layer.weight, layer.bias, self._product)


@contextmanager
def own_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """``module`` computes by ``forward`` in this context."""
    hidden = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if hidden is not None:
            module.forward = hidden


@contextmanager
def left_out(layers: Iterable[Any], product: bool = False) -> Iterator[None]:
    """In this context ``layers`` compute no product; with ``product`` they do, and save what they
    save without."""
    with ExitStack() as stack:
        for layer in layers:
            if is_frozen(layer):
                stack.enter_context(own_forward(layer, FrozenForward(layer, product)))
            else:
                layer.without_product = not product
                stack.callback(setattr, layer, "without_product", False)
        yield


def is_frozen(layer: Any) -> bool:
    """Whether ``layer`` is a plain ``nn.Linear`` with a frozen weight, not a quantised one, nor one
    that computes in another way (a hook of accelerate's, say)."""
    if type(layer) is not nn.Linear or layer.weight.requires_grad:
        return False
    replaced = vars(layer).get("forward")
    if replaced is not None and not type(replaced).__module__.startswith("wtacrs."):
        return False
    return type(layer.weight) is nn.Parameter or isinstance(layer.weight, FakeTensor)


def is_adapter(module: nn.Module) -> bool:
    """Whether ``module`` stands for a linear layer and is made of others, as adapters are."""
    if isinstance(module, nn.Linear) or not hasattr(module, "in_features"):
        return False
    return any(isinstance(part, nn.Linear) for part in module.modules())


def last_linear(modules: Iterable[nn.Module], units: Container[nn.Module] = ()) -> nn.Module | None:
    """The last linear layer, adapter or member of ``units`` of ``modules``, in the order of
    registration; None if another matrix follows: a block's experts, between which much may be
    saved."""
    last, inside = None, set[nn.Module]()
    for module in modules:
        if module in inside or isinstance(module, nn.Embedding):  # of T5's relative positions
            continue
        if module in units or isinstance(module, nn.Linear) or is_adapter(module):
            last = module
            inside |= {*module.modules()}
        elif any(p.dim() > 1 for p in module.parameters(recurse=False)):
            last = None
    return last


def in_vain(last: nn.Module | None, verdicts: Verdicts) -> list[nn.Module]:
    """Those linear layers of ``last``, itself one or an adapter, whose values no gradient needs.

    ``verdicts`` keeps what was found of each kind of adapter.
    """
    if last is None:
        return []
    if isinstance(last, nn.Linear):
        return [last] if isinstance(last, SampledLinear) or is_frozen(last) else []
    if (key := kind_of(last, None)) not in verdicts:
        verdicts[key] = _try(last)
    return [last.get_submodule(name) for name in verdicts[key]]


def _try(adapter: nn.Module) -> list[str]:
    chosen: list[str] = []
    names = [n for n, m in adapter.named_modules() if isinstance(m, SampledLinear) or is_frozen(m)]
    # A trial may come within a pass: it is no part of it.
    here, cpu = _disable_current_modes(), torch.device("cpu")
    hooks = saved_tensors_hooks(lambda x: x, lambda x: x)
    cast = torch.autocast("cpu", enabled=False)
    with here, cpu, hooks, cast, torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            expected = _step(adapter, [])
            for name in reversed(names):
                found = _step(adapter, [*chosen, name])
                if all(map(close_to, found, expected)):
                    chosen.append(name)
        except Exception:  # it takes something else than one input, or is quantised
            return []
    return chosen


def _step(adapter: Any, without: list[str]) -> list[Tensor | None]:
    """Gradients of a step of a copy of ``adapter`` that leaves these products out."""
    call, _ = trial_copy(adapter, None)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*SHAPE, adapter.in_features, generator=generator)  # (b, t, i)
    dy = torch.randn(*SHAPE, adapter.out_features, generator=generator)  # (b, t, o)
    samplers = {m.sampler for m in call.modules() if isinstance(m, SampledLinear)}
    with ExitStack() as stack:
        for sampler in samplers:
            stack.enter_context(sampler.recomputed())
        stack.enter_context(left_out(map(call.get_submodule, without)))
        return one_step(call, call, x, dy)[1:]
