"""bf16 on a CPU for which oneDNN has no products of it: on x86, one without AVX-512.

There torch's own are many times slower than those of float32. A product of bf16 numbers summed up
in float32 and rounded once to bf16 is what AVX512-BF16 and AMX give, up to the order of the sum; so
it is computed that way, and a run in bf16 takes about the time of one in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from wtacrs_experiments.config import PlanConfig, TrainingConfig
from wtacrs_experiments.records.provenance import multiplies_bf16
from wtacrs_experiments.run.devices import on_cpu

_aten = torch.ops.aten
# What a training step is made of; all they return for bf16 is bf16. Attention's backward pass is
# float32 throughout, its forward pass is not slow in bf16. Products into a buffer (out=) are small.
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
    """Context in which ``PRODUCTS`` of bf16 are computed in float32 and rounded to bf16.

    Not under ``torch.inference_mode``, which does not take a linear layer apart. The float32 copies
    live only within the product; what counts memory inside this context does not see them, so a
    peak is that of a CPU with the instructions.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in PRODUCTS and args[0].dtype == torch.bfloat16:
            product = func(*tree_map_only(torch.Tensor, torch.Tensor.float, args), **(kwargs or {}))
            return tree_map_only(torch.Tensor, torch.Tensor.bfloat16, product)
        return func(*args, **(kwargs or {}))


def products(steps: TrainingConfig | PlanConfig) -> AbstractContextManager[Any]:
    """The context for training steps: ``Float32Products`` where they are in bf16 and need it."""
    if steps.precision == "fp32" or not on_cpu(steps.device) or multiplies_bf16():
        return nullcontext()
    print("bf16: no fast products of it on this CPU; computed in float32 and rounded")
    return Float32Products()
