"""What autograd saves, counted: the yardstick of the tests of layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wtacrs.measure.tracker import storage_key, storage_of


class SavedBytes:
    """Context that counts what autograd saves for the backward pass, each storage once.

    Parameters of ``model`` do not count: they are alive anyway. ``bytes`` is the sum,
    ``tensors`` the (shape, dtype) of each storage's first tensor.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen = {storage_key(p) for p in model.parameters()}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._alive: list[torch.UntypedStorage] = []  # so that no freed key is taken again
        self.tensors: list[tuple[tuple[int, ...], torch.dtype]] = []

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._alive)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = storage_of(tensor)
        if storage_key(tensor) not in self._seen:
            self._seen.add(storage_key(tensor))
            self._alive.append(storage)
            self.tensors.append((tuple(tensor.shape), tensor.dtype))
        return tensor

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._hooks.__exit__(*exc)
