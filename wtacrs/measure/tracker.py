"""Which storages are alive, on any device and as fake tensors, and which ones autograd saves."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """A tensor's storage; of a sharded one (DTensor), whose own claims the whole, this process's
    shard's."""
    return getattr(tensor, "_local_tensor", tensor).untyped_storage()


def storage_key(tensor: Tensor) -> int:
    """What tells a tensor's storage from others; data_ptr would be 0 for every fake one."""
    return int(storage_of(tensor)._cdata)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among an operation's arguments or results; faster than a general tree."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind ``tensors``."""
    return sum({storage_key(t): storage_of(t).nbytes() for t in tensors}.values())


class _Followed(weakref.ref[torch.UntypedStorage]):
    """A storage alive, held weakly. The object lives as long as the memory does, whoever holds it.

    ``number`` counts up and, unlike the key, which is an address, is never taken again.
    """

    __slots__ = ("key", "number", "size")
    key: int
    number: int
    size: int


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of all storages that operations make inside the context.

    Args:
        tensors: tensors that exist already and count from the start, say parameters.
        device: count the storages on devices of this type only.

    Attributes:
        current_bytes: bytes alive now.
        peak_bytes: most bytes alive at once since the start.
    """

    def __init__(self, tensors: Iterable[Tensor] = (), device: torch.device | None = None) -> None:
        super().__init__()
        self.current_bytes = 0
        self.peak_bytes = 0
        self._device = device
        self._followed: dict[int, _Followed] = {}
        self._last = 0  # number of the storage that came last
        # What was alive at the peak is alive now and came before it, or is noted here when it goes.
        self._last_at_peak = 0
        self._gone_since_peak: dict[int, int] = {}
        for tensor in tensors:
            if storage_key(tensor) not in self._followed:
                self._follow(tensor, None)

    def alive(self) -> set[int]:
        """The numbers of the storages alive now."""
        return {entry.number for entry in self._followed.values()}

    def numbers(self, tensors: Iterable[Tensor]) -> set[int]:
        """The numbers of the storages behind ``tensors``, as far as they are followed."""
        keys = [storage_key(tensor) for tensor in tensors]
        return {self._followed[key].number for key in keys if key in self._followed}

    def at_peak(self) -> dict[int, int]:
        """Number -> bytes of the storages that were alive at the peak."""
        entries = self._followed.values()
        stayed = {e.number: e.size for e in entries if e.number <= self._last_at_peak}
        return stayed | self._gone_since_peak

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            storage = storage_of(tensor)
            entry = self._followed.get(storage._cdata)
            if entry is not None:
                if entry.size != storage.nbytes():
                    self._resize(entry, storage.nbytes())
            # A view of memory that was there before the context is not made in it.
            elif storage._cdata not in map(storage_key, _tensors((args, *kwargs.values()))):
                self._follow(tensor, func)
        return out

    def _follow(self, tensor: Tensor, func: Any) -> None:
        """Count the storage of ``tensor``, which ``func`` made; None: it was there before."""
        if self._device is not None and tensor.device.type != self._device.type:
            return
        storage = storage_of(tensor)
        entry = _Followed(storage, self._release)
        self._last += 1
        entry.key, entry.number, entry.size = storage._cdata, self._last, 0
        self._followed[entry.key] = entry
        self._resize(entry, storage.nbytes())

    def _resize(self, entry: _Followed, size: int) -> None:
        if entry.number <= self._last_at_peak:
            self._gone_since_peak.setdefault(entry.number, entry.size)
        self.current_bytes += size - entry.size
        entry.size = size
        if self.current_bytes > self.peak_bytes:
            self.peak_bytes = self.current_bytes
            self._last_at_peak = self._last
            self._gone_since_peak.clear()

    def _release(self, entry: _Followed) -> None:
        self._resize(entry, 0)
        del self._followed[entry.key]
