"""The order in which a model is changed: what has to come before ``apply_``, and adapters after.

An adapter's layers are not there yet when the model is changed, and those that were sampled are
then frozen. So all is applied again, as if the adapters had come first. Whether any came is looked
at once, as training begins.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from wtacrs.config import MemoryConfig
from wtacrs.facts import FactsReader, is_read
from wtacrs.integrations.checkpointing import refuse_checkpoints
from wtacrs.linear_kinds import looks_linear
from wtacrs.swap import is_swapped


class Latecomers:
    """Looks whether adapters came to ``model`` since this was made.

    Args:
        apply: applies everything again, and returns the model's new reader.
    """

    def __init__(self, model: nn.Module, apply: Callable[[], FactsReader]) -> None:
        self._model, self._apply = model, apply
        self._known = _linears(model)

    def __call__(self) -> FactsReader | None:
        return self._apply() if _linears(self._model) - self._known else None


def _linears(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if looks_linear(module)}


def look_now(model: nn.Module) -> None:
    """Look whether adapters came so far, if training has not begun."""
    for hook in [*model._forward_pre_hooks.values()]:
        if isinstance(hook, FactsReader) and hook.again is not None:
            hook.again()


def check_untouched(model: nn.Module, config: MemoryConfig) -> None:
    """Raise ValueError for a model that was changed already, that is loaded in part, or that
    checkpoints its blocks where ``config`` computes them again."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; give an nn.Module")
    absent = [name for name, p in model.named_parameters() if p.is_meta]
    if 0 < len(absent) < len([*model.parameters()]):  # wholly so is a model that is yet to be made
        raise ValueError(
            f"{len(absent)} weights of this {type(model).__name__} have no values: {absent[0]}, "
            "say, is on the meta device; load the model whole, without offloading (device_map)"
        )
    touched = sorted({type(m).__name__ for m in model.modules() if is_swapped(m)})
    if touched or is_read(model):
        raise ValueError(
            f"something was applied to this {type(model).__name__} already"
            f"{f' (it has {touched})' if touched else ''}; call handle.undo() first"
        )
    if config.recompute not in ("none", "attention"):
        refuse_checkpoints(model, config.recompute)
