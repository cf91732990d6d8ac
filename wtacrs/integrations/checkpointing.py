"""The rival: gradient checkpointing by transformers' own switch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def checkpoints(model: nn.Module) -> bool:
    """Whether transformers' own switch is on."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def refuse_checkpoints(model: nn.Module, recompute: str) -> None:
    """Raise ValueError where the switch is on, in whose place ``recompute`` is."""
    if checkpoints(model):
        raise ValueError(
            f"the model has gradient checkpointing enabled already, and recompute={recompute!r} is "
            "in its place; disable it (Trainer: gradient_checkpointing=False), or choose a preset "
            "that recomputes no block"
        )


def embeddings_need_gradients(model: Any) -> bool:
    """Whether ``enable_input_require_grads`` is on, which adapters need and checkpointing too."""
    return bool(getattr(model, "_require_grads_hooks", None))


def checkpoint_(model: Any, offload: bool) -> None:
    """Turn on transformers' own switch, not reentrant; with ``offload``, inputs go to the host.

    Raises:
        ValueError: a model without it; offloading without an accelerator, as transformers has it.
    """
    if offload and not torch.accelerator.is_available():
        raise ValueError("checkpoint_offload needs an accelerator to offload from")
    how = {"use_reentrant": False}
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ValueError(f"{type(model).__name__} has no gradient checkpointing of its own")
    if embeddings_need_gradients(model):
        model.disable_input_require_grads()  # the switch would hook them twice
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(how, offload=offload)
    elif offload:
        raise ValueError("this transformers cannot offload what it checkpoints; update it")
    else:
        model.gradient_checkpointing_enable(how)


def restore_checkpoint_(model: Any, embeddings_needed_gradients: bool) -> None:
    """Turn transformers' own switch off, if it is on, and what it turns on and leaves."""
    if not checkpoints(model):
        return
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()
    model.disable_input_require_grads()
    if embeddings_needed_gradients:
        model.enable_input_require_grads()
