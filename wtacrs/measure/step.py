"""What a training step takes at its peak, exact on every device, and of what the peak is made.

On CUDA the allocator counts. Elsewhere ``StorageTracker`` follows every storage from allocation to
release, which also works on fake tensors. Both count what operations allocate and return; neither
counts memory outside torch. Scratch memory inside one CPU kernel is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from wtacrs.measure.tracker import StorageTracker, tensor_bytes

__all__ = [
    "PeakMemory",
    "StepMemory",
    "StorageTracker",
    "measure_step",
    "optimizer_tensors",
    "tensor_bytes",
]


class PeakMemory:
    """Context that measures the peak of ``device`` by that device's own means.

    Args:
        device: where the work runs.
        tensors: what is alive already and has to count (parameters, optimizer state, batch). On
            CUDA the allocator knows.

    Attributes:
        current_bytes: bytes alive now; once the context has ended, those alive at its end.
        peak_bytes: most bytes alive at once in the context.
        reserved_bytes: most bytes that CUDA's caching allocator has held; None elsewhere.
    """

    def __init__(self, device: torch.device, tensors: Iterable[Tensor] = ()) -> None:
        self.device = device
        self.method = "cuda allocator" if device.type == "cuda" else "storage tracker"
        self._tracker = None if device.type == "cuda" else StorageTracker(tensors)
        # The allocator is the whole process's: what runs after the context must not count.
        self._ended: tuple[int, int, int | None] | None = None

    def __enter__(self) -> PeakMemory:
        self._ended = None
        if self._tracker is None:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._tracker.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._tracker is None:
            torch.cuda.synchronize(self.device)
        else:
            self._tracker.__exit__(*exc)
        self._ended = self._count()

    def _count(self) -> tuple[int, int, int | None]:
        """Bytes: current, peak, reserved."""
        if self._ended is not None:
            return self._ended
        if self._tracker is not None:
            return self._tracker.current_bytes, self._tracker.peak_bytes, None
        return (
            torch.cuda.memory_allocated(self.device),
            torch.cuda.max_memory_allocated(self.device),
            torch.cuda.max_memory_reserved(self.device),
        )

    @property
    def current_bytes(self) -> int:
        return self._count()[0]

    @property
    def peak_bytes(self) -> int:
        return self._count()[1]

    @property
    def reserved_bytes(self) -> int | None:
        return self._count()[2]


@dataclass(frozen=True)
class StepMemory:
    """The bytes of one training step on one device.

    Attributes:
        method: "cuda allocator" or "storage tracker", what counted ``peak_bytes``.
        peak_bytes: most bytes alive at once.
        reserved_bytes: most bytes that CUDA's caching allocator held; None elsewhere.
        parameter_bytes, gradient_bytes, optimizer_bytes: totals, frozen parameters too.
        saved_bytes: what is alive when the forward pass ends and was not before it.
        at_peak: what was alive at the peak; the sum is ``peak_bytes``.
            parameter, optimizer, gradient; saved: was alive when the forward pass ended;
            other: was there before the step, buffers and the batch; temporary: the rest;
            unseen: what only CUDA's allocator sees, rounding to blocks and workspaces of kernels.
    """

    method: str
    peak_bytes: int
    reserved_bytes: int | None
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    saved_bytes: int
    at_peak: dict[str, int]


def measure_step(
    model: nn.Module,
    optimizer: Optimizer,
    batch: Mapping[str, Tensor],
    *,
    step: Callable[[], Any] | None = None,
    accumulates: bool = False,
) -> StepMemory:
    """Make a training step: forward, backward, ``optimizer.step()``; parameters change.

    An optimizer without state makes a step first, which does not count: its state has to be there.
    On CUDA there are two, for the tracker and for the allocator. Fake tensors compute nothing.

    Args:
        model, optimizer: on one device; gradients are set to None before and after.
        batch: tensors by name, on that device.
        step: makes the forward and backward pass; by default ``model(**batch).loss.backward()``.
        accumulates: whether gradients of another batch are there already, to which those of this
            one are added, as in all batches of a step but the first.

    Raises:
        ValueError: ``step`` does not call ``model``.
    """
    run = step or (lambda: model(**batch).loss.backward())
    if not optimizer.state:
        optimizer.zero_grad(set_to_none=True)
        _run_step(model, optimizer, run, StorageTracker())
    before = run if accumulates else lambda: None
    optimizer.zero_grad(set_to_none=True)
    before()
    followed = _follow_step(model, optimizer, batch, run)
    parameter = next(model.parameters())
    if parameter.device.type != "cuda" or isinstance(parameter, FakeTensor):
        return followed
    before()
    counted = _run_step(model, optimizer, run, allocator := PeakMemory(parameter.device))
    return _as_allocated(followed, allocator, counted.saved_bytes)


def _as_allocated(followed: StepMemory, allocator: PeakMemory, saved_bytes: int) -> StepMemory:
    return replace(
        followed,
        method=allocator.method,
        peak_bytes=allocator.peak_bytes,
        reserved_bytes=allocator.reserved_bytes,
        saved_bytes=saved_bytes,
        at_peak={**followed.at_peak, "unseen": allocator.peak_bytes - followed.peak_bytes},
    )


def _follow_step(
    model: nn.Module, optimizer: Optimizer, batch: Mapping[str, Tensor], run: Callable[[], Any]
) -> StepMemory:
    parameters, state = [*model.parameters()], optimizer_tensors(optimizer)
    gradients = [p.grad for p in parameters if p.grad is not None]
    there = [*parameters, *state, *gradients, *model.buffers(), *batch.values()]
    tracker = StorageTracker(there, parameters[0].device)
    owners = {"parameter": tracker.numbers(parameters), "optimizer": tracker.numbers(state)}
    moments = _run_step(model, optimizer, run, tracker)
    owners["optimizer"] |= tracker.numbers(optimizer_tensors(optimizer))  # some make it anew
    owners |= {"gradient": moments.gradients, "other": moments.before, "saved": moments.saved}
    return StepMemory(
        method="storage tracker",
        peak_bytes=tracker.peak_bytes,
        reserved_bytes=None,
        parameter_bytes=tensor_bytes(parameters),
        gradient_bytes=moments.gradient_bytes,
        optimizer_bytes=tensor_bytes(state),
        saved_bytes=moments.saved_bytes,
        at_peak=_split(tracker.at_peak(), owners),
    )


@dataclass
class _Moments:
    """A step's bytes, and the numbers of the storages where a tracker gives them."""

    before: set[int] = field(default_factory=set)
    saved: set[int] = field(default_factory=set)
    gradients: set[int] = field(default_factory=set)
    saved_bytes: int = -1
    gradient_bytes: int = 0


def _run_step(
    model: nn.Module,
    optimizer: Optimizer,
    run: Callable[[], Any],
    memory: StorageTracker | PeakMemory,
) -> _Moments:
    moments = _Moments()
    tracker = memory if isinstance(memory, StorageTracker) else None

    def forward_ended(*_: Any) -> None:
        moments.saved_bytes = memory.current_bytes - before_bytes
        if tracker is not None:
            moments.saved = tracker.alive() - moments.before

    hook = model.register_forward_hook(forward_ended)
    try:
        with memory:
            before_bytes = memory.current_bytes
            if tracker is not None:
                moments.before = tracker.alive()
            run()
            hook.remove()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            moments.gradient_bytes = tensor_bytes(gradients)
            if tracker is not None:
                moments.gradients = tracker.numbers(gradients)
            optimizer.step()
    finally:
        hook.remove()
        optimizer.zero_grad(set_to_none=True)
    if moments.saved_bytes < 0:
        raise ValueError("step made no forward pass of the model; it has to call model(...)")
    return moments


def _split(sizes: dict[int, int], owners: dict[str, set[int]]) -> dict[str, int]:
    """Bytes by owner, the first that has a storage; what has none is temporary."""
    parts = dict.fromkeys([*owners, "temporary", "unseen"], 0)
    for number, size in sizes.items():
        owner = next((name for name, numbers in owners.items() if number in numbers), "temporary")
        parts[owner] += size
    return parts


def optimizer_tensors(optimizer: Optimizer) -> list[Tensor]:
    """The tensors of an optimizer's state."""
    return [leaf for leaf in tree_leaves([*optimizer.state.values()]) if torch.is_tensor(leaf)]
