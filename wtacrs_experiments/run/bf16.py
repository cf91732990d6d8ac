"""bf16 on a CPU that has no instructions for it.

There torch multiplies bf16 matrices many times slower than float32 ones. A product of bf16 numbers
summed up in float32 and rounded once to bf16 is what the instructions give, up to the order of the
sum; so it is computed that way, and a run in bf16 takes about the time of one in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from wtacrs_experiments.config.running import TrainingConfig
from wtacrs_experiments.records.provenance import cpu_has_bf16

_aten = torch.ops.aten
# All they return for bf16 is bf16. Attention's forward pass is not slow enough to be among them.
PRODUCTS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    }
)


class Float32Products(TorchDispatchMode):
    """Context in which products of bf16 matrices are computed in float32 and rounded to bf16.

    The float32 copies live only within the product; what counts memory inside this context does not
    see them, so a peak is that of a machine with the instructions.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in PRODUCTS and args[0].dtype == torch.bfloat16:
            product = func(*tree_map_only(torch.Tensor, torch.Tensor.float, args), **(kwargs or {}))
            return tree_map_only(torch.Tensor, torch.Tensor.bfloat16, product)
        return func(*args, **(kwargs or {}))


def products(training: TrainingConfig) -> AbstractContextManager[Any]:
    """The context for a run: ``Float32Products`` where it is in bf16 on a CPU that lacks it."""
    on_cpu = training.device == "cpu" or not torch.cuda.is_available()
    if training.precision == "fp32" or not on_cpu or cpu_has_bf16():
        return nullcontext()
    print("bf16: this CPU has no instructions for it; products in float32, rounded to bf16")
    return Float32Products()
