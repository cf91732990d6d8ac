"""Notices, by hooks, when a model is called and returns: that is when a forward pass of it runs."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from wtacrs.sampling.sampler import Sampler


def follow(sampler: Sampler, model: nn.Module) -> list[Any]:
    """Tell ``sampler`` from now on when ``model`` is called and returns; the hooks' handles."""
    return [
        model.register_forward_pre_hook(partial(_called, sampler)),
        model.register_forward_hook(partial(_returned, sampler), always_call=True),
    ]


def _called(sampler: Sampler, model: nn.Module, args: Any) -> None:
    side = sampler.side
    if side.expects_facts(model):
        side.start_batch()
    if side is sampler and sampler.rows_seen == 0 and sampler.trains(model):
        _warn_if_nothing_trains(sampler, model)


def _returned(sampler: Sampler, model: nn.Module, args: Any, output: Any) -> None:
    side = sampler.side
    if side.trains(model):
        side.end_batch()


def _warn_if_nothing_trains(sampler: Sampler, model: nn.Module) -> None:
    mine = [m for m in model.modules() if getattr(m, "sampler", None) is sampler]
    if mine and not any(m.weight.requires_grad for m in mine):
        warnings.warn(
            f"none of the {len(sampler.names)} sampled layers is trainable any more. If adapters "
            "came after sampling (get_peft_model), undo it and sample again, after them",
            stacklevel=2,
        )
