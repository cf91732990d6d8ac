"""A tracker that knows who made each storage and who keeps it for the backward pass."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from wtacrs.measure.tracker import StorageTracker, storage_key
from wtacrs.sampling.linear import SampledLinear

# Who holds a storage that no autograd node of a module saved.
OUTPUT = "the model's output"
BEFORE = "who made it before the forward pass"
UNSEEN = "a recomputation or Python"
# An operation that only allocates says less than the one that writes into it.
ALLOCATING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class Watch(StorageTracker):
    """Follows one forward pass of ``model`` in the context ``over(model)``.

    Attributes:
        sizes: number -> bytes of what is alive when the forward pass ends; None before that.
        makers: number -> (module, operation) of what was made in it.
        savers: number -> {(module, node)}: whose autograd nodes saved it, by number or name.
        holders: number -> names of who holds it, as ``attribution.Held`` gives them.
        inputs: sampled layer -> (number, bytes) of its input.
    """

    def __init__(self, model: nn.Module) -> None:
        self.sizes: dict[int, int] | None = None
        self.makers: dict[int, tuple[str, str]] = {}
        self.savers: dict[int, set[tuple[str, int | str]]] = defaultdict(set)
        self.holders: dict[int, set[str]] = defaultdict(set)
        self.inputs: dict[str, tuple[int, int]] = {}
        self._stack = [f"({type(model).__name__})"]  # qualified names of the modules that run
        super().__init__(device=next((p.device for p in model.parameters()), None))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if isinstance(out, Tensor) and func._schema.is_mutable:
            number = self._number(out)
            module, operation = self.makers.get(number, ("", ""))
            if operation in ALLOCATING:
                self.makers[number] = module, _name(func)
        return out

    def _follow(self, tensor: Tensor, func: Any) -> None:
        super()._follow(tensor, func)
        if func is not None and storage_key(tensor) in self._followed:
            self.makers[self._last] = self._stack[-1], _name(func)

    def _number(self, tensor: Tensor) -> int:
        """The number of a tensor's storage; one that no operation made was there before."""
        if storage_key(tensor) not in self._followed:
            self._follow(tensor, None)
        return next(iter(self.numbers([tensor])), 0)

    def _pack(self, tensor: Tensor) -> Tensor:
        self.savers[self._number(tensor)].add((self._stack[-1], _saver(sys._getframe(1))))
        return tensor

    @contextmanager
    def over(self, model: nn.Module) -> Iterator[None]:
        """Watch until the forward pass of ``model`` ends; hooks on its modules keep the stack."""
        handles = []
        for name, module in model.named_modules():
            before, after = self._hooks(module, name or self._stack[0])
            handles.append(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(after, always_call=True))
        handles.append(model.register_forward_hook(self._ended))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor), self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(
        self, module: nn.Module, name: str
    ) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self._stack.append(name)
            if isinstance(module, SampledLinear):
                x = args[0] if args else kwargs["input"]
                self.inputs[name] = self._number(x), x.untyped_storage().nbytes()

        def after(*_: Any) -> None:
            self._stack.pop()

        return before, after

    def _ended(self, module: nn.Module, args: Any, output: Any) -> None:
        self.sizes = {entry.number: entry.size for entry in self._followed.values()}
        # A dataclass is one leaf; its fields are looked at.
        leaves = [leaf for part in tree_leaves(output) for leaf in tree_leaves(_fields(part))]
        outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        names = _node_names(outputs)
        for number, savers in self.savers.items():
            for module_name, node in savers:
                saver = node if isinstance(node, str) else names.get(node, "autograd")
                self.holders[number].add(f"{pattern(module_name)} ({saver})")
        for number in self.numbers(outputs):
            self.holders[number].add(OUTPUT)
        for number in self.sizes.keys() - self.makers.keys():
            self.holders[number].add(BEFORE)
        for number in self.sizes.keys() - self.holders.keys():
            self.holders[number].add(UNSEEN)


def pattern(name: str) -> str:
    """A qualified name with the numbers of layers replaced: ``encoder.layer.*.output``."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def _name(func: Any) -> str:
    return str(func.overloadpacket.__name__)


def _fields(value: Any) -> Any:
    return value if isinstance(value, Tensor) else getattr(value, "__dict__", None)


def _saver(frame: FrameType) -> int | str:
    """The number of the autograd node that saves a tensor in ``frame``, or its name."""
    place = frame.f_globals.get("__name__")
    if place == "torch.utils.checkpoint":
        return "checkpoint"  # which saves what it starts again from without a node
    if place == "torch.autograd.function" and "cls" in frame.f_locals:
        # It saves after its forward pass, which may have made nodes of its own.
        return str(frame.f_locals["cls"].__name__)
    # Any other node takes its number when it is made, and saves before the next one is made.
    return torch._C._autograd._get_sequence_nr() - 1


def _node_names(outputs: list[Tensor]) -> dict[int, str]:
    """Number -> name, say ``Gelu``, of the autograd nodes that ``outputs`` come from."""
    names: dict[int, str] = {}
    waiting = [tensor.grad_fn for tensor in outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node._sequence_nr() not in names:
            names[node._sequence_nr()] = re.sub(r"Backward\d*$", "", node.name())
            waiting += [following for following, _ in node.next_functions]
    return names
