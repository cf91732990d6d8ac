"""What transformers does on fake tensors, where that is not what it does on real ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def experts_on_fakes() -> Iterator[None]:
    """Experts of mixtures compute on fake tensors of any dtype.

    torch's grouped product takes float32 and float16 too, and its stand-in for fake tensors does
    not; transformers has an operator of its own, which keeps the same, in its place.
    """
    moe: Any = sys.modules.get("transformers.integrations.moe")
    can = getattr(moe, "_can_use_grouped_mm", None)
    if can is None:
        yield
        return
    moe._can_use_grouped_mm = lambda input, weight, offs: weight.dtype == torch.bfloat16
    try:
        yield
    finally:
        moe._can_use_grouped_mm = can
