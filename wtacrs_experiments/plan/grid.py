"""The settings that a plan's arguments span, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wtacrs_experiments.config import PlanConfig, compose
from wtacrs_experiments.config.arguments import check_arguments, grid
from wtacrs_experiments.config.own_model import settled


def settings(overrides: Sequence[str], folders: Sequence[Path] = ()) -> dict[str, PlanConfig]:
    """Label -> config of each point of the grid that ``overrides`` span, in order.

    The label tells the values that differ, as they came out: memory=plain makes any budget 1.0, so
    that a grid over budgets plans the baseline once.

    Args:
        folders: more folders with files of groups, beside ``conf/``.

    Raises:
        UserError: a group, choice, key or value that there is not.
    """
    found = {}
    given = check_arguments(PlanConfig, overrides, sweeps=True, folders=folders)
    for swept, point in grid(given, folders):
        config = compose(PlanConfig, point, folders)
        config = replace(config, model=settled(config.model))
        found[" ".join(f"{key.lstrip('+')}={_value(config, key)}" for key in swept)] = config
    return found


def _value(config: PlanConfig, key: str) -> Any:
    value: Any = config
    for part in key.lstrip("+").split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return getattr(value, "name", value)
