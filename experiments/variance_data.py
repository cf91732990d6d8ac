"""The records of experiment=variance as tidy frames: a row per task, probe, layer and choice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.errors import UserError
from experiments.records import read_record


def load_probes(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Task -> its probes in order of training, each with its ``epoch``, counted from 1.

    Raises:
        UserError: no record with a measured variance.
    """
    probes: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = read_record(path)
        if record.status == "completed" and record.variance is not None:
            task = record.config["task"]["name"]
            if task in probes:
                raise UserError(f"{folder} holds two records of {task}; keep one, see {path}")
            steps = (record.metrics or {})["per_epoch"]
            probes[task] = [
                {**probe, "epoch": 1 + sum(epoch["step"] <= probe["step"] for epoch in steps)}
                for probe in record.variance["probes"]
            ]
    if not probes:
        raise UserError(
            f"{folder} holds no record of the variance; make some with "
            "python run.py -m experiment=variance task=cola,sst2"
        )
    return probes


def layer_type(name: str) -> str:
    """The layer's name without the numbers of the blocks and what stands before them."""
    return re.sub(r"^.*?\.\d+\.", "", name)


def geometric_mean(values: Any) -> float:
    """exp of the mean log of positive values."""
    return float(np.exp(np.log(np.asarray(values, dtype=float)).mean()))


def error_frame(probes: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """Columns task, step, epoch, is_first, is_last, layer, layer_type, the choice, and error.

    A layer that some choice estimates exactly is left out at that budget, for all choices alike: a
    zero has no place in a geometric mean, and a small stand-in for it would decide the mean. Above
    the last attention only [CLS] has a gradient, so a few winners are exact there; and k counts
    padding, so a large budget can keep every valid row.
    """
    frame = _frame(probes, "errors", {"relative_squared_error": "error"})
    place = [frame[key] for key in ("task", "step", "budget", "layer")]
    return frame[frame["error"].groupby(place).transform("min") > 0]


def winner_frame(probes: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """Columns as in ``error_frame`` with share (c / k) and theorem2_holds in place of error."""
    return _frame(probes, "winners", {"share": "share", "theorem2_holds": "theorem2_holds"})


def _frame(
    probes: dict[str, list[dict[str, Any]]], section: str, lists: dict[str, str]
) -> pd.DataFrame:
    rows = []
    for task, of_task in probes.items():
        for at, probe in enumerate(of_task):
            place = {
                "task": task,
                "step": probe["step"],
                "epoch": probe["epoch"],
                "is_first": at == 0,
                "is_last": at == len(of_task) - 1,
            }
            for entry in probe[section]:
                choice = {key: value for key, value in entry.items() if key not in lists}
                for index, layer in enumerate(probe["layers"]):
                    values = {new: entry[old][index] for old, new in lists.items()}
                    names = {"layer": layer, "layer_type": layer_type(layer)}
                    rows.append({**place, **names, **choice, **values})
    return pd.DataFrame(rows)
