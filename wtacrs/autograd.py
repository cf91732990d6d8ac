"""What the library's autograd Functions share, and what they say of their outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a ``backward`` that cannot be differentiated again: refuses ``create_graph``.

    torch's ``once_differentiable`` refuses only where the incoming gradient needs a gradient
    itself. Of a loss that is a sum it does not, and second derivatives would come out as zero.

    Raises:
        RuntimeError: in a backward pass with ``create_graph=True``.
    """

    @wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "second derivatives do not pass through layers that wtacrs has swapped in: call "
                "backward without create_graph=True, or undo the swap (restore_linears_, "
                "restore_layers_, set_attention(model, 'eager')) for hessians and gradient "
                "penalties"
            )
        return backward(ctx, *gradients)

    return checked


def noteworthy(y: Tensor) -> Tensor:
    """``y``, so that notes can be made on it while it is traced: there what an operator gives
    beside others can bear no attribute."""
    return y.view_as(y) if torch.compiler.is_compiling() else y


def mark_kept(y: Tensor) -> Tensor:
    """``y``, of which it is said from now on that the layer that made it keeps it whole."""
    y = noteworthy(y)
    y.wtacrs_kept = True  # type: ignore[attr-defined]
    return y


def is_kept(x: Any) -> bool:
    """Whether the layer that made ``x`` keeps it whole: then others may refer to it for nothing."""
    return getattr(x, "wtacrs_kept", False)
