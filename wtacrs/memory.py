"""Bytes alive and the peak, exact on every device, and what autograd keeps for the backward pass.

On CUDA the allocator counts. Elsewhere ``StorageTracker`` follows every storage from allocation to
release, which also works on fake tensors. Both count what operations allocate and return; neither
counts memory outside torch. Scratch memory inside one CPU kernel is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def _key(tensor: Tensor) -> int:
    """What tells a tensor's storage from others; data_ptr would be 0 for every fake one."""
    return int(tensor.untyped_storage()._cdata)


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of all storages that operations make inside the context.

    Args:
        tensors: tensors that exist already and count from the start, say parameters.

    Attributes:
        current_bytes: bytes alive now.
        peak_bytes: most bytes alive at once since the start.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.current_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        for tensor in tensors:
            self._follow(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            # A view of memory that was there before the context is not made in it.
            if isinstance(leaf, Tensor) and (_key(leaf) in self._sizes or _key(leaf) not in given):
                self._follow(leaf)
        return out

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = _key(tensor), storage.nbytes()
        if key not in self._sizes:
            # The storage object lives as long as the memory does, whoever holds it.
            weakref.finalize(storage, self._release, key).atexit = False
        self.current_bytes += size - self._sizes.get(key, 0)  # also follows resize_
        self._sizes[key] = size
        self.peak_bytes = max(self.peak_bytes, self.current_bytes)

    def _release(self, key: int) -> None:
        self.current_bytes -= self._sizes.pop(key, 0)


class SavedBytes:
    """Context that counts what autograd saves for the backward pass, each storage once.

    Parameters of ``model`` do not count: they are alive anyway. ``bytes`` is the sum,
    ``tensors`` the (shape, dtype) of each storage's first tensor.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen = {_key(p) for p in model.parameters()}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._alive: list[torch.UntypedStorage] = []  # so that no freed key is taken again
        self.tensors: list[tuple[tuple[int, ...], torch.dtype]] = []

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._alive)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if _key(tensor) not in self._seen:
            self._seen.add(_key(tensor))
            self._alive.append(storage)
            self.tensors.append((tuple(tensor.shape), tensor.dtype))
        return tensor

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._hooks.__exit__(*exc)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind ``tensors``."""
    return sum({_key(t): t.untyped_storage().nbytes() for t in tensors}.values())


class PeakMemory:
    """Context that measures the peak of ``device`` by that device's own means.

    Args:
        device: where the work runs.
        tensors: what is alive already and has to count (parameters, optimizer state, batch). On
            CUDA the allocator knows.
    """

    def __init__(self, device: torch.device, tensors: Iterable[Tensor] = ()) -> None:
        self.device = device
        self.method = "cuda allocator" if device.type == "cuda" else "storage tracker"
        self._tracker = None if device.type == "cuda" else StorageTracker(tensors)

    def __enter__(self) -> PeakMemory:
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

    @property
    def current_bytes(self) -> int:
        if self._tracker is None:
            return torch.cuda.memory_allocated(self.device)
        return self._tracker.current_bytes

    @property
    def peak_bytes(self) -> int:
        if self._tracker is None:
            return torch.cuda.max_memory_allocated(self.device)
        return self._tracker.peak_bytes

    @property
    def reserved_bytes(self) -> int | None:
        """Most bytes that CUDA's caching allocator has held; None elsewhere."""
        if self._tracker is None:
            return torch.cuda.max_memory_reserved(self.device)
        return None
