"""Feed-forward sublayers that keep their input alone, and are computed again a few rows at a time.

Between its products a feed-forward sublayer holds about four times its input, for GELU twice that.
It treats each row by itself, so both passes can go through it in parts: nothing of (n, 4 d) is ever
whole. Each part is computed again in the backward pass; sampled layers inside pick their rows late,
from the rows of the part. What no gradient reads is not computed again: the last product, and with
ReLU the first one (``relu``). ``chunks`` finds the sublayers and proves what holds for each.

Dropout inside is not drawn again: the first pass keeps its bits (``masks.Memo``). Any other random
number is replayed from the generators' states, part by part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states
from torch.utils.weak import TensorWeakRef

from wtacrs.autograd import first_order
from wtacrs.layers.masks import Memo
from wtacrs.layers.products import FrozenForward, left_out
from wtacrs.sampling.early import compute_dtype
from wtacrs.sampling.linear import SampledLinear
from wtacrs.swap import OwnForward

PART_BYTES = 1 << 23  # of the widest intermediate at a time, or
PARTS = 20  # so many parts, so that there are not too many kernels
FEW_PARTS = 4  # for less: a part is as large as the input then, if that is worth its kernels
WORTH_BYTES = 1 << 20


class FeedForwardFunction(torch.autograd.Function):
    """x (..., i) -> (..., o), row by row, by ``run``; keeps x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: ChunkedForward, *parameters: Tensor) -> Tensor:
        ctx.run, ctx.parameters = run, parameters
        ctx.save_for_backward(x)
        if run.without_product:
            return x.new_zeros((), dtype=compute_dtype(x)).expand(*x.shape[:-1], run.features)
        # In an attribute, since it is kept for good even where what is saved is computed again.
        ctx.memo = Memo(module for module in run.modules() if hasattr(module, "memo"))
        ctx.generators = torch.get_rng_state(), *get_device_states(x)
        kind = x.device.type
        ctx.autocast = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
            "cache_enabled": False,  # it would hold a copy of each weight
        }
        # Layers inside keep there what they would else draw or compute again.
        with ctx.memo.used(replays=False), torch.autocast(**ctx.autocast):
            return _in_parts(x, run)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,), run, parameters = ctx.saved_tensors, ctx.run, ctx.parameters
        dx = None
        if ctx.needs_input_grad[0]:  # contiguous, so that its parts are views
            dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        gradients: list[Tensor | None] = [None] * len(parameters)
        count = run.count(x)
        parts = [parts_of(tensor, count) for tensor in (x, dy)]
        replayed, second = _replayed(*ctx.generators), run.second_pass(ctx.memo)
        with replayed, second, _without_hooks(parameters), torch.autocast(**ctx.autocast):
            for place, (part, dpart) in enumerate(zip(*parts, strict=True)):
                part = part.detach().requires_grad_(dx is not None)
                with torch.enable_grad():
                    output = run.plain(part)
                wanted = [*([part] if dx is not None else []), *parameters]
                found = [*torch.autograd.grad(output, wanted, dpart, allow_unused=True)]
                del wanted
                if dx is not None:
                    parts_of(dx, count)[place].copy_(found.pop(0))
                gradients = [_sum(*pair) for pair in zip(gradients, found, strict=True)]
                del part, output, found  # or they would live beside the next part's
        return dx, None, *gradients


def _in_parts(x: Tensor, run: ChunkedForward) -> Tensor:
    output, count = None, run.count(x)
    for place, part in enumerate(parts_of(x, count)):
        y = run.plain(part)
        if output is None:
            output = y.new_empty(*x.shape[:-1], y.shape[-1])
        parts_of(output, count)[place].copy_(y)
    assert output is not None
    return output


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if total is None else total if more is None else total.add_(more)


def part_count(size: int, least: int = 1) -> int:
    """The number of parts for an intermediate of ``size`` bytes."""
    return min(PARTS, max(least, size // PART_BYTES))


def parts_of(x: Tensor, count: int) -> tuple[Tensor, ...]:
    """Views of ``x`` (..., i), each (b, t, i): whole samples as long as there are enough."""
    if x.dim() == 3 and x.shape[0] >= count:
        return x.chunk(count, 0)
    return x.reshape(1, -1, x.shape[-1]).chunk(count, 1)


@contextmanager
def _without_hooks(parameters: tuple[Tensor, ...]) -> Iterator[None]:
    """A parameter's hooks run once, on the whole gradient, not on that of each part as well."""
    hooks = [p._backward_hooks for p in parameters]
    for p in parameters:
        p._backward_hooks = None
    try:
        yield
    finally:
        for p, own in zip(parameters, hooks, strict=True):
            p._backward_hooks = own


@contextmanager
def _replayed(cpu: Tensor, devices: list[int], states: list[Tensor]) -> Iterator[None]:
    """The generators as they were; as they are now again afterwards."""
    with torch.random.fork_rng(devices):
        torch.set_rng_state(cpu)
        set_device_states(devices, states)
        yield


class ChunkedForward(OwnForward):
    """Computes a feed-forward module in parts.

    Args:
        module: computes the sublayer, or its last product alone where
        before: computes what comes before that; it then hands its input on (``Deferred``).
    """

    def __init__(self, module: nn.Module, before: nn.Module | None = None) -> None:
        super().__init__(module)
        self._before = None if before is None else OwnForward(before)
        linears = [layer for layer in self.modules() if isinstance(layer, nn.Linear)]
        self.width = max(layer.out_features for layer in linears)
        self.features = linears[0].in_features
        self.least_parts = 1
        self.in_vain: list[nn.Module] = []  # layers whose products a second pass leaves out
        self.without_product = False  # as in ``SampledLinear``, for what this one is inside of

    def modules(self) -> list[nn.Module]:
        """All modules of the sublayer, in the order in which they are registered."""
        before = [] if self._before is None else self._before.module.modules()
        return [*before, *self.module.modules()]

    def plain(self, x: Tensor) -> Tensor:
        """What the sublayer computes of ``x`` (..., i)."""
        if self._before is not None:
            before = self._before.module
            x = type(before).forward(before, x)
        forward = self.module.__dict__.get("forward")
        if isinstance(forward, FrozenForward):  # it is itself the layer that is left out
            return forward(x)
        return type(self.module).forward(self.module, x)

    def __call__(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # it is inside of a part that is computed again
            return self.plain(x)
        self._check(x)
        parameters = [p for m in self.modules() for p in m.parameters(recurse=False)]
        trained = [p for p in dict.fromkeys(parameters) if p.requires_grad]
        if torch.is_grad_enabled() and (x.requires_grad or trained):
            return FeedForwardFunction.apply(x, self, *trained)
        return self.plain(x)

    def _check(self, x: Tensor) -> None:
        before = None if self._before is None else self._before.module
        if before is not None and before.__dict__["forward"].handed() is not x:
            raise RuntimeError(
                f"{type(before).__name__} is not followed by its output layer at once, so the two "
                "cannot be computed together; leave this model's feed-forward sublayers whole"
            )

    def count(self, x: Tensor) -> int:
        """The number of parts for ``x``."""
        size = x.shape[:-1].numel() * self.width * x.element_size()
        few = min(FEW_PARTS, size // WORTH_BYTES)
        return part_count(size, max(self.least_parts, few))

    @contextmanager
    def second_pass(self, memo: Memo) -> Iterator[None]:
        """Layers inside replay ``memo``; sampled ones pick late; none makes a product in vain."""
        sampled = [layer for layer in self.modules() if isinstance(layer, SampledLinear)]
        with ExitStack() as stack:
            stack.enter_context(memo.used(replays=True))
            if sampled:
                stack.enter_context(sampled[0].sampler.recomputed())
            stack.enter_context(left_out(self.in_vain))
            yield


class Deferred:
    """The ``forward`` of a module whose work a ``ChunkedForward`` does: hands its input on."""

    handed: TensorWeakRef | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.handed = TensorWeakRef(x)
        return x

    def __getstate__(self) -> dict[str, Any]:
        return {}  # weak references cannot be copied
