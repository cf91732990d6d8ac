"""What a run does to keep less than the plain model: the group ``memory``, put into practice."""

from __future__ import annotations

from torch import nn

from wtacrs import Handle, MemoryConfig, apply_
from wtacrs_experiments.config import PlanConfig, RunConfig
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.run.tuning import sampling_config


def memory_config(config: RunConfig | PlanConfig) -> MemoryConfig:
    """The library's config of a run.

    Raises:
        UserError: a value outside its rule.
    """
    sampling, memory = sampling_config(config), config.memory
    try:
        return MemoryConfig(
            sampling=sampling,
            lossless=memory.lossless or (),
            gelu=memory.gelu or "exact",
            attention=memory.attention or "default",
            recompute=memory.recompute or "none",
            attention_output=memory.attention_output or "auto",
        )
    except ValueError as error:
        raise UserError(f"memory={config.memory.name}: {error}") from error


def save_memory(
    model: nn.Module,
    config: RunConfig | PlanConfig,
    num_samples: int | None,
    max_tokens: int | None,
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
