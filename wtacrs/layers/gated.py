"""A gated feed-forward (SwiGLU, GeGLU) that keeps two tensors where autograd keeps four.

    V = X Wv^T,   U = X Wu^T,   H = act(V) * U,   Y = dropout(H) Wo^T

Autograd keeps V for the activation, act(V) and U for the product, and H for dWo. V and U tell the
other two: act(V) is computed again in the backward pass, element by element, and of H a sampled
layer keeps its rows alone. Where one layer gives both (Phi-3, GLM, ModernBERT), V and U are halves
of its output. Source of the gate: arXiv 2002.05202.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from wtacrs.autograd import first_order
from wtacrs.layers.trial import SHAPE, close_to, kind_of, one_step, trial_copy
from wtacrs.swap import OwnForward, in_blocks

Activation = Callable[[Tensor], Tensor]


class GatedProductFunction(torch.autograd.Function):
    """act(v) * u, of v and u (..., w)."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, u: Tensor, act: Activation) -> Tensor:
        ctx.act = act
        ctx.save_for_backward(v, u)
        return act(v).mul_(u)

    @staticmethod
    @first_order
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        v, u = ctx.saved_tensors
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            active = ctx.act(v)
        (dv,) = torch.autograd.grad(active, v, dh * u)
        return dv, active.detach().mul_(dh), None


class Parts(NamedTuple):
    """Names of what a gated feed-forward is made of."""

    wide: tuple[str, ...]  # the gate and the up projection, or the one that gives both
    gate_first: bool  # of the two
    act: str
    down: str
    dropout: str | None


class GatedForward(OwnForward):
    """The ``forward`` of a gated feed-forward module."""

    def __init__(self, module: nn.Module, parts: Parts) -> None:
        super().__init__(module)
        self._parts = parts

    def __call__(self, x: Tensor) -> Tensor:
        # A compiler chooses what is kept and what is computed again by itself.
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return type(self.module).forward(self.module, x)
        module, parts = self.module, self._parts
        made = [getattr(module, name)(x) for name in parts.wide]
        first, second = made[0].chunk(2, -1) if len(made) == 1 else made
        v, u = (first, second) if parts.gate_first else (second, first)
        h = GatedProductFunction.apply(v, u, getattr(module, parts.act))
        h = h if parts.dropout is None else getattr(module, parts.dropout)(h)
        down: Callable[[Tensor], Tensor] = getattr(module, parts.down)
        return down(h)


def gate_(model: nn.Module) -> list[str]:
    """Have the gated feed-forwards in the blocks of ``model`` keep less, in place.

    They are found by their parts: two layers that widen alike, or one to twice the width, and one
    that leads back, an activation, perhaps a dropout. Each kind is tried first, on a copy with a
    few random rows: output and gradients must be those of the plain module.

    Returns:
        The qualified names of the modules that do.
    """
    verdicts: dict[Any, Any] = {}
    chosen = []
    for name, module in in_blocks(model):
        if "forward" in module.__dict__ or not any(_ways(module)):
            continue
        key = kind_of(module, None)
        if key not in verdicts:
            verdicts[key] = next((way for way in _ways(module) if _proves(module, way)), None)
        if (way := verdicts[key]) is not None:
            module.forward = GatedForward(module, way)
            chosen.append(name)
    return chosen


def restore_gates_(model: nn.Module) -> None:
    """Undo ``gate_``, in place."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), GatedForward):
            del module.forward


def _ways(module: nn.Module) -> Iterator[Parts]:
    """What ``module`` may be made of."""
    children: dict[str, Any] = dict(module.named_children())
    sizes = {
        name: (child.in_features, child.out_features)
        for name, child in children.items()
        if hasattr(child, "in_features") and hasattr(child, "out_features")  # adapters have them
    }
    dropouts = [name for name, child in children.items() if isinstance(child, nn.Dropout)]
    acts = [name for name in children if name not in (*sizes, *dropouts)]
    if len(acts) != 1 or len(dropouts) > 1:
        return
    for down, (width, features) in sizes.items():
        wide = tuple(name for name in sizes if name != down)
        whole = [(features, width)] * 2 if len(wide) == 2 else [(features, 2 * width)]
        if [sizes[name] for name in wide] == whole:
            for gate_first in (True, False):
                yield Parts(wide, gate_first, acts[0], down, dropouts[0] if dropouts else None)


def _proves(module: nn.Module, way: Parts) -> bool:
    real, cpu = unset_fake_temporarily(), torch.device("cpu")  # in a plan, too
    with real, cpu, torch.random.fork_rng(devices=[]), torch.enable_grad():
        plain, ours = (trial_copy(module, None)[0] for _ in range(2))
        ours.forward = GatedForward(ours, way)
        width: int = getattr(module, way.wide[0]).in_features
        x, dy = torch.randn(2, *SHAPE, width, generator=torch.Generator().manual_seed(1))
        try:
            expected, state = one_step(plain, plain, x, dy), torch.get_rng_state()
            found = one_step(ours, ours, x, dy)
        except Exception:  # it takes something else than one input, or its act works in place
            return False
        # An act that draws would draw once more.
        return torch.equal(torch.get_rng_state(), state) and all(map(close_to, found, expected))
