"""Hydra composes, the dataclasses check: from arguments to a typed config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wtacrs_experiments.config.arguments import check_arguments
from wtacrs_experiments.config.build import build, defaults
from wtacrs_experiments.config.places import CONF
from wtacrs_experiments.config.roots import PlanConfig, RunConfig
from wtacrs_experiments.errors import UserError

T = TypeVar("T", RunConfig, PlanConfig)
FILES = {RunConfig: "config", PlanConfig: "plan"}  # of conf/, where a command begins


@cache
def register() -> None:
    """Put the keys and defaults of both commands where the files of ``conf/`` find them."""
    store = ConfigStore.instance()
    store.store("run_schema", OmegaConf.create(defaults(RunConfig)))
    store.store("plan_schema", OmegaConf.create(defaults(PlanConfig)))


def typed(root: type[T], node: DictConfig) -> T:
    """What Hydra has composed, as the dataclass ``root``.

    Raises:
        UserError: a key, type or value against its rule, or an interpolation that leads nowhere,
            say an environment variable that is not set.
    """
    try:
        content = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    asked = cast(dict[str, Any], content)
    config = build(root, asked)
    if config.estimator.name != asked["estimator"]["name"]:
        print(f"memory={config.memory.name} samples no linear layer: the estimator is full")
    return config


def compose(root: type[T], overrides: Sequence[str] = (), folders: Sequence[Path] = ()) -> T:
    """The config of one point, from the arguments of its command.

    Args:
        folders: more folders with files of groups, beside ``conf/``.

    Raises:
        UserError: as ``typed``; or a group, choice or key that there is not.
    """
    overrides = check_arguments(root, overrides, sweeps=False, folders=folders)
    if folders:
        places = ",".join(f"'file://{folder.resolve()}'" for folder in folders)
        overrides.append(f"hydra.searchpath=[{places}]")
    register()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            node = hydra.compose(FILES[root], overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from error
    return typed(root, node)


def one_line(error: Exception) -> str:
    """The message of Hydra or OmegaConf; where they have looked is no news."""
    return " ".join(str(error).split("Config search path")[0].split())
