"""Grids of runs: grids/*.yaml says which, their records say which are done, the others can be run.

A grid is blocks of models × methods × tasks × seeds, in this order. ``all`` and ``methods`` hold
overrides of run.py; ``settings`` of a block hold values, or a value for each task and for the
``other`` ones. A cell is done when its record is completed.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from experiments.config import CONF, ROOT
from experiments.errors import UserError
from experiments.records.record import read_record, record_path
from experiments.run.models import load_tokenizer
from experiments.run.runner import resolve
from experiments.run.tasks import check_source

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


def load_grid(name: str) -> dict[str, Any]:
    """The content of grids/``name``.yaml.

    Raises:
        UserError: there is none.
    """
    path = GRIDS / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in GRIDS.glob("*.yaml")))
        raise UserError(f"there is no grid {name!r}; choose {there}")
    return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]


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
                # Of a run; a share of all steps is what its config has.
                settings["training.warmup_ratio"] = round(min(grid["warmup_steps"] / steps, 0.9), 6)
            given = [f"model={model}", f"task={task}", *grid["methods"][method]]
            given += [f"{key}={value}" for key, value in settings.items()]
            overrides = (*grid["all"], *given, f"seed={seed}")
            found.append(Cell(model, method, task, seed, overrides, steps))
    return found


def training_steps(grid: dict[str, Any], task: str, settings: dict[str, Any]) -> int | None:
    """Steps of a run: epochs × batches an epoch."""
    if "rows" not in grid:
        return None
    batches = math.ceil(grid["rows"][task] / settings["training.batch_size"])
    return settings["training.epochs"] * batches


def configs(of: Sequence[Cell]) -> dict[Cell, DictConfig]:
    """The resolved config of each cell; those that differ by the seed alone are composed once."""
    found: dict[Cell, DictConfig] = {}
    composed: dict[tuple[str, ...], DictConfig] = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for cell in of:
            seedless = tuple(text for text in cell.overrides if not text.startswith("seed="))
            if seedless not in composed:
                composed[seedless] = resolve(compose("config", [*seedless]))
            found[cell] = OmegaConf.merge(composed[seedless], {"seed": cell.seed})  # type: ignore[assignment]
    return found


def record_of(config: DictConfig) -> Path:
    """Where the record of a cell is, done or not."""
    return ROOT / record_path(OmegaConf.to_container(config))  # type: ignore[arg-type]


def is_done(config: DictConfig) -> bool:
    """Whether the cell has a completed record."""
    path = record_of(config)
    return path.exists() and read_record(path).status == "completed"


def missing(config: DictConfig) -> str | None:
    """What a cell needs and this machine has not, in one line; None if nothing is known to lack."""
    groups = (config[name] for name in ("model", "task"))
    model, task = (json.dumps(OmegaConf.to_container(group)) for group in groups)
    return _lacks(load_tokenizer, model) or _lacks(check_source, task)


@cache  # the hub is asked once for each model and each task
def _lacks(check: Callable[[Any], Any], group: str) -> str | None:
    try:
        check(OmegaConf.create(group))
    except UserError as error:
        return str(error).splitlines()[0]
    return None


def start(cell: Cell) -> bool:
    """Carry out one cell in a process of its own, whose end ends no other; whether it completed."""
    command = [sys.executable, "run.py", *cell.overrides]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def run_all(of: dict[Cell, DictConfig]) -> dict[str, int]:
    """Start every cell that is not done, in order; how many were done, ran, failed, lack something.

    What a cell lacks is told once, in one line, for all that lack the same.
    """
    counts = dict.fromkeys(("done", "completed", "failed", "lacking"), 0)
    told = set()
    for number, (cell, config) in enumerate(of.items(), start=1):
        if is_done(config):
            counts["done"] += 1
        elif (lack := missing(config)) is not None:
            counts["lacking"] += 1
            if lack not in told:
                print(f"missing: {lack}", flush=True)
            told.add(lack)
        else:
            print(f"{number}/{len(of)} {cell}", flush=True)
            completed = start(cell)
            counts["completed" if completed else "failed"] += 1
            if not completed:
                print(f"failed, the others go on: {cell}", flush=True)
    return counts
