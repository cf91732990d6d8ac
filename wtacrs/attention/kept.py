"""The output of fused attention, kept from a first pass where to compute it again costs much.

``MemoryConfig.attention_output`` says whether, for what is worth its bytes is bytes all the same.
But the blocks' gradients come as what is kept of the blocks goes. Where they take much more, the
peak of a step is at the end of its backward pass, when most of what was kept is gone: there it is
kept for nothing. That is so where a block has many weights for its rows, as with experts, or few
rows; not where the gradients are there already (of the batch before) or few weights learn.

Of what a part that is recomputed leaves out, an element of a linear layer's output costs as many
products as the layer has inputs; one of attention's output 2 s, for s keys, half of them where it
is causal. So attention's output (b, h, t, d) is worth its bytes before any other from where s is
the width h d on. With it is kept what the kernel needs besides in the backward pass: a number a row
and head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from wtacrs.layers.masks import Memo

_aten = torch.ops.aten
FUSED = {
    _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_efficient_attention,
    _aten._scaled_dot_product_cudnn_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu,
}


class OutputsMemo(Memo):
    """What kernels gave, packed by ``hooks`` (pack, unpack): those of saved tensors that are around
    the first pass, say of offloading, or of checkpointing, which keeps nothing here."""

    attribute = "outputs_memo"
    hooks: tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]

    def __init__(self, modules: Sequence[nn.Module], share: float, block: nn.Module) -> None:
        """Of an output no more is kept than ``share`` of the gradients that ``block`` will have."""
        super().__init__(modules)
        coming = (p.nbytes for p in block.parameters() if p.requires_grad and p.grad is None)
        # Asked for once, for in the second pass some are there.
        self.limit = share if share in (0, inf) else share * sum(coming) / max(1, len(modules))

    def keep(self, what: Any) -> None:
        pack = self.hooks[0]
        packed = tree_map_only(Tensor, lambda x: _Packed(pack(x)), what)
        super().keep(packed)

    def take(self) -> Any:
        unpack = self.hooks[1]
        return tree_map_only(_Packed, lambda one: unpack(one.handle), super().take())


class _Packed:
    def __init__(self, handle: Any) -> None:
        self.handle = handle


class _Kernel(TorchDispatchMode):
    """Notes what a fused kernel gives, or gives what it ``gave``."""

    def __init__(self, gave: Any = None) -> None:
        super().__init__()
        self.gave, self._runs = gave, gave is None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket not in FUSED:
            return func(*args, **(kwargs or {}))
        if self._runs:
            self.gave = func(*args, **(kwargs or {}))
        # Without their graphs, which hold what holds them.
        return tree_map_only(Tensor, Tensor.detach, self.gave)


def attended(
    memo: OutputsMemo | None, query: Tensor, key: Tensor, compute: Callable[[], Tensor]
) -> Tensor:
    """``compute()``, attention of ``query`` (b, h, t, d) to ``key`` (b, h or fewer, s, d); what its
    kernel gives is kept by ``memo`` where that is worth it."""
    if memo is None or query.nbytes > memo.limit or key.shape[2] < query.shape[1] * query.shape[3]:
        return compute()
    kernel = _Kernel(memo.take() if memo.replays else None)
    with kernel:
        out = compute()
    if not memo.replays:
        memo.keep(kernel.gave)  # None, if it was no fused kernel
    return out
