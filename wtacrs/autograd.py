"""What the library's autograd Functions share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


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
