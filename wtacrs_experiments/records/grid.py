"""Grids of runs: grids/*.yaml says which, their records say which are done.

A grid is blocks of models × methods × tasks × seeds, in this order. ``all`` and ``methods`` hold
overrides of run.py; ``settings`` of a block hold values, or a value for each task and for the
``other`` ones. A cell is done when its record is completed.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from wtacrs_experiments.config import RunConfig, TrainingConfig, as_record, compose
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.inputs import identified
from wtacrs_experiments.records.record import (
    config_hash,
    read_record,
    record_path,
    without_hub_sum,
)

GRIDS = Path(__file__).parent / "grids"


@dataclass(frozen=True)
class Cell:
    """One run of a grid; ``overrides`` are those of run.py, seed and task included."""

    model: str
    method: str
    task: str
    seed: int
    overrides: tuple[str, ...]
    steps: int | None  # of training; None where the grid does not say how many rows there are

    def __str__(self) -> str:
        return f"{self.model} · {self.method} · {self.task} · seed {self.seed}"


def load_grid(name: str, results: Path | None = None) -> dict[str, Any]:
    """The content of grids/``name``.yaml, with its records in the folder ``results`` if given.

    Raises:
        UserError: there is none.
    """
    path = GRIDS / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in GRIDS.glob("*.yaml")))
        raise UserError(f"there is no grid {name!r}; choose {there}")
    grid: Any = OmegaConf.to_container(OmegaConf.load(path))
    if results is not None:
        grid["all"].append(f"results_dir={results}")
    return dict(grid)


def cells(grid: dict[str, Any]) -> list[Cell]:
    """Every run of the grid, in its order."""
    found = []
    for block in grid["blocks"]:
        axes = (block.get(axis, grid.get(axis)) for axis in ("models", "methods", "tasks", "seeds"))
        for model, method, task, seed in product(*axes):
            settings = {
                key: value.get(task, value.get("other")) if isinstance(value, dict) else value
                for key, value in block.get("settings", {}).items()
            }
            steps = training_steps(grid, task, settings)
            if "warmup_steps" in grid and steps is not None:
                settings["training.warmup_steps"] = min(grid["warmup_steps"], int(0.9 * steps))
            given = [f"model={model}", f"task={task}", *grid["methods"][method]]
            given += [f"{key}={value}" for key, value in settings.items()]
            overrides = (*grid["all"], *given, f"seed={seed}")
            found.append(Cell(model, method, task, seed, overrides, steps))
    return found


def training_steps(grid: dict[str, Any], task: str, settings: dict[str, Any]) -> int | None:
    """Steps of a run."""
    if "rows" not in grid:
        return None
    keys = (key for key in settings if key.startswith("training."))
    training = TrainingConfig(**{key.removeprefix("training."): settings[key] for key in keys})
    return training.steps(grid["rows"][task])


def configs(of: Sequence[Cell]) -> dict[Cell, RunConfig]:
    """The config of each cell; those that differ by the seed alone are composed once.

    Raises:
        UserError: overrides that are wrong.
    """
    composed: dict[tuple[str, ...], RunConfig] = {}
    found = {}
    for cell in of:
        seedless = tuple(text for text in cell.overrides if not text.startswith("seed="))
        if seedless not in composed:
            composed[seedless] = compose(RunConfig, seedless)
        found[cell] = replace(composed[seedless], seed=cell.seed)
    return found


def record_of(config: RunConfig) -> Path:
    """Where the record of a cell is, done or not."""
    return record_path(as_record(identified(config)))


def is_done(config: RunConfig) -> bool:
    """Whether the cell has a completed record; one on rows of the hub, whichever it had."""
    path = record_of(config)
    if not config.task.on_hub:
        return path.exists() and read_record(path).status == "completed"
    name, key = path.stem[:-8], path.stem[-8:]
    records = map(read_record, path.parent.glob(f"{glob.escape(name)}*.json"))
    done = (record.config for record in records if record.status == "completed")
    return any(config_hash(without_hub_sum(other)) == key for other in done)
