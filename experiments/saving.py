"""What a run does to keep less than the plain model: the group ``memory``, put into practice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from experiments.errors import UserError
from experiments.records import DEFAULTS
from wtacrs import SampledLinear
from wtacrs.attention.interface import ATTENTION, set_attention
from wtacrs.layers import GELU, KINDS, save_less_
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
    nothing_else = all(memory[key] == value for key, value in DEFAULTS["memory"].items())
    if config.estimator.name == "full" and memory.name == "linear" and nothing_else:
        memory.name, memory.sample_linears = "plain", False
    if memory.attention == "sampled" and config.estimator.name == "full":
        raise UserError("memory.attention=sampled needs a sampling estimator, not full")


def save_memory(model: nn.Module, memory: Any, seed: int = 0) -> None:
    """Apply the group ``memory`` to ``model`` in place, all but the sampling of linear layers.

    ``seed`` is that of the rounding.

    Raises:
        UserError: the model has no layer of a kind that is asked for (lists those it has).
    """
    try:
        if memory.lossless or memory.gelu != "exact":
            save_less_(model, kinds=tuple(memory.lossless), gelu=memory.gelu, seed=seed)
        if memory.attention != "default":
            set_attention(model, memory.attention)
        if memory.recompute != "none":
            recompute_(model, memory.recompute)
    except ValueError as error:
        raise UserError(f"memory={memory.name}: {error}") from error


def check_attention(model: nn.Module, memory: Any) -> None:
    """Check, once linear layers are sampled, that sampled attention finds some of them.

    Raises:
        UserError: an attention module without a sampled linear layer.
    """
    if memory.attention != "sampled":
        return
    for name, module in model.named_modules():
        attends = "Attention" in type(module).__name__ and hasattr(module, "is_causal")
        if attends and not any(isinstance(layer, SampledLinear) for layer in module.modules()):
            raise UserError(
                f"memory.attention=sampled draws with the sampler of linear layers inside, and "
                f"{name} has no sampled one; choose another attention, or sample a layer of each "
                "(estimator.include, tuning.targets)"
            )
