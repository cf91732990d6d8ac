"""The settings that a plan's arguments span, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from wtacrs_experiments.config import PlanConfig, compose
from wtacrs_experiments.config.arguments import check_arguments, grid
from wtacrs_experiments.run.own_model import settled


def settings(overrides: Sequence[str]) -> dict[str, PlanConfig]:
    """Label -> config of each point of the grid that ``overrides`` span, in order.

    The label tells the values that differ, as they came out: memory=plain makes any budget 1.0, so
    that a grid over budgets plans the baseline once.

    Raises:
        UserError: a group, choice, key or value that there is not.
    """
    found = {}
    for swept, point in grid(check_arguments(PlanConfig, overrides, sweeps=True)):
        config = compose(PlanConfig, point)
        config = replace(config, model=settled(config.model))
        found[" ".join(f"{key.lstrip('+')}={_value(config, key)}" for key in swept)] = config
    return found


def _value(config: PlanConfig, key: str) -> Any:
    value: Any = config
    for part in key.lstrip("+").split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return getattr(value, "name", value)
