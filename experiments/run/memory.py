"""What a run does to keep less than the plain model: the group ``memory``, put into practice."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from experiments.config import CONF
from experiments.errors import UserError
from experiments.records.record import DEFAULTS
from experiments.run.tuning import sampling_config
from wtacrs import PRESETS, Handle, MemoryConfig, apply_


def check_memory(config: DictConfig) -> None:
    """Check the group ``memory`` of a run's config and bring it to its plainest form, in place.

    What is null becomes what the preset of that name has. ``sample_linears: false`` makes the
    estimator "full", and full with nothing else is "plain".

    Raises:
        UserError: a value that is unknown.
    """
    memory = config.memory
    if memory.name not in PRESETS:
        raise UserError(f"memory.name={memory.name!r} is unknown; choose {', '.join(PRESETS)}")
    preset = PRESETS[memory.name]
    for key in DEFAULTS["memory"]:
        if memory[key] is None:
            value = getattr(preset, key)
            memory[key] = [*value] if isinstance(value, tuple) else value
    if memory.sample_linears is None:
        memory.sample_linears = preset.sampling is not None
    if not isinstance(memory.lossless, ListConfig):
        raise UserError(f"memory.lossless={memory.lossless!r}; give a list, say [norm,dropout]")
    if not isinstance(memory.sample_linears, bool):
        raise UserError(f"memory.sample_linears={memory.sample_linears!r}; give true or false")
    if not memory.sample_linears and config.estimator.name != "full":
        print(f"memory={memory.name} samples no linear layer: the estimator is full")
        config.estimator = OmegaConf.load(CONF / "estimator" / "full.yaml")
    nothing_else = all(memory[key] == value for key, value in DEFAULTS["memory"].items())
    if config.estimator.name == "full" and memory.name == "linear" and nothing_else:
        memory.name, memory.sample_linears = "plain", False
    memory_config(config)


def memory_config(config: Any) -> MemoryConfig:
    """The library's config of a run.

    Raises:
        UserError: a value outside its rule.
    """
    sampling = sampling_config(config)
    group = {key: config.memory[key] for key in DEFAULTS["memory"]}
    try:
        return MemoryConfig(sampling=sampling, **group)
    except ValueError as error:
        raise UserError(f"memory={config.memory.name}: {error}") from error


def save_memory(
    model: nn.Module, config: Any, num_samples: int | None, max_tokens: int | None
) -> Handle:
    """Apply the group ``memory``, the estimator and the budget to ``model``, in place.

    Raises:
        UserError: the model has nothing of a kind that is asked for (lists what it has).
    """
    memory = memory_config(config)
    try:
        return apply_(model, memory, num_samples=num_samples, max_tokens=max_tokens)
    except ValueError as error:
        raise UserError(f"memory={config.memory.name}: {error}") from error
