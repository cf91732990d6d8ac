"""What a run does to keep less than the plain model: the group ``memory``, put into practice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from experiments.errors import UserError
from wtacrs.attention import ATTENTION, set_attention
from wtacrs.lossless import GELU, KINDS, save_less_
from wtacrs.recompute import RECOMPUTE, recompute_

CONF = Path(__file__).parent.parent / "conf"


def check_memory(config: DictConfig) -> None:
    """Check the group ``memory`` of a run's config and bring it to its plainest form, in place.

    ``sample_linears: false`` makes the estimator "full", and full with nothing else is "plain".

    Raises:
        UserError: a value that is unknown.
    """
    memory = config.memory
    for key, choices in (("gelu", GELU), ("attention", ATTENTION), ("recompute", RECOMPUTE)):
        if memory[key] not in choices:
            raise UserError(f"memory.{key}={memory[key]!r} is unknown; choose {', '.join(choices)}")
    if not isinstance(memory.lossless, ListConfig):
        raise UserError(f"memory.lossless={memory.lossless!r}; give a list, say [norm,dropout]")
    if unknown := [kind for kind in memory.lossless if kind not in KINDS]:
        raise UserError(f"memory.lossless holds {unknown}; choose from {', '.join(KINDS)}")
    if not isinstance(memory.sample_linears, bool):
        raise UserError(f"memory.sample_linears={memory.sample_linears!r}; give true or false")
    if not memory.sample_linears and config.estimator.name != "full":
        print(f"memory={memory.name} samples no linear layer: the estimator is full")
        config.estimator = OmegaConf.load(CONF / "estimator" / "full.yaml")
    if config.estimator.name == "full" and memory.name == "linear":
        memory.name, memory.sample_linears = "plain", False
    if memory.attention == "sampled" and config.estimator.name == "full":
        raise UserError("memory.attention=sampled needs a sampling estimator, not full")


def save_memory(model: nn.Module, memory: Any) -> None:
    """Apply the group ``memory`` to ``model`` in place, all but the sampling of linear layers.

    Raises:
        UserError: the model has no layer of a kind that is asked for (lists those it has).
    """
    try:
        if memory.lossless or memory.gelu != "exact":
            save_less_(model, kinds=tuple(memory.lossless), gelu=memory.gelu)
        if memory.attention != "default":
            set_attention(model, memory.attention)
        if memory.recompute != "none":
            recompute_(model, memory.recompute)
    except ValueError as error:
        raise UserError(f"memory={memory.name}: {error}") from error
