"""The records of experiment=variance as tidy frames, and the error of dW over all layers.

With the squared error s_l of layer l, expected over draws, relative to its ||dW_l||^2, a method has

- total: sum of s_l ||dW_l||^2 over sum of ||dW_l||^2, the relative error of the whole gradient,
- mean and largest of s_l over the layers,
- geometric: the geometric mean of s_l, over the layers that no method estimates exactly.

Only the total weighs layers by what they contribute to a step; the geometric mean is moved most by
layers whose error is almost nothing.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import RunRecord, read_record
from wtacrs_experiments.words import method_name

RUN = "task · model"  # what a panel or a row is about
SOURCES = {  # of gradient norms, and how figures call them
    "none": "none",
    "position": "position",
    "sample": "sample",
    "auto": "auto",
    "defensive": "defensive",
    "oracle": "late selection:\ntrue norms",
}
Probes = dict[str, list[dict[str, Any]]]


def load_probes(folder: Path) -> Probes:
    """ "task · model" -> its probes in order of training, each with its ``epoch``, counted from 1.

    Raises:
        UserError: no record; one that measured no variance, or in another format; two of one task
            and model.
    """
    probes: Probes = {}
    for path in sorted(folder.glob("*.json")):
        record = read_record(path)
        if record.status != "completed":
            continue
        if not _well_formed(record):
            raise UserError(
                f"{path} is no record of experiment=variance in today's format; take it out of "
                f"{folder}, or delete it and run again"
            )
        run = f"{record.config['task']['name']} · {record.config['model']['name']}"
        if run in probes:
            raise UserError(f"{folder} holds two records of {run}; keep one, see {path}")
        steps = (record.metrics or {})["per_epoch"]
        probes[run] = [
            {**probe, "epoch": 1 + sum(epoch["step"] <= probe["step"] for epoch in steps)}
            for probe in (record.variance or {})["probes"]
        ]
    if not probes:
        raise UserError(
            f"{folder} holds no record of the variance; make some with "
            "python run.py -m experiment=variance task=cola,sst2"
        )
    return probes


def _well_formed(record: RunRecord) -> bool:
    """Whether there are probes, and each has a finite number per layer wherever one belongs."""
    try:
        _ = record.config["task"]["name"], record.config["model"]["name"]
        _ = [epoch["step"] for epoch in (record.metrics or {})["per_epoch"]]
        probes = (record.variance or {})["probes"]
        return len(probes) > 0 and all(_whole(probe) for probe in probes)
    except (KeyError, TypeError, AttributeError):
        return False


def _whole(probe: dict[str, Any]) -> bool:
    _ = probe["step"], [len(curve) for curve in probe["winner_mass"].values()]
    _ = [entry[key] for entry in probe["errors"] for key in ("estimator", "center")]
    chosen = [*probe["errors"], *probe["winners"]]
    _ = [entry[key] for entry in chosen for key in ("budget", "source")]
    lists = [
        probe["squared_norm"],
        *(entry["relative_squared_error"] for entry in probe["errors"]),
        *(entry["share"] for entry in probe["winners"]),
    ]
    return all(
        len(values) == len(probe["layers"]) and all(map(math.isfinite, values)) for values in lists
    )


def layer_type(name: str) -> str:
    """The layer's name without the numbers of the blocks and what stands before them."""
    return re.sub(r"^.*?\.\d+\.", "", name)


def label(method: str) -> str:
    """The method as tables and figures show it: a biased one has no variance, only bias."""
    return f"{method} (all bias²)" if method.startswith("deterministic") else method


def error_frame(probes: Probes) -> pd.DataFrame:
    """A row per run, probe, method, budget, source and layer.

    Columns: task · model, step, epoch, is_first, is_last, method, budget, source, layer, error
    (relative to the layer's ||dW||^2) and squared_norm (that ||dW||^2).
    """
    return pd.DataFrame(
        {**place, **choice, "layer": layer, "error": error, "squared_norm": norm}
        for place, probe in _places(probes)
        for entry in probe["errors"]
        for choice in [
            {
                "method": method_name(entry["estimator"], entry["center"]),
                "budget": entry["budget"],
                "source": entry["source"],
            }
        ]
        for layer, error, norm in zip(
            probe["layers"], entry["relative_squared_error"], probe["squared_norm"], strict=True
        )
    )


def summarise(errors: pd.DataFrame) -> pd.DataFrame:
    """Over the layers: total, mean, largest, geometric, layers, and inexact, those in geometric.

    A row per run, probe, method, budget and source, in the order of ``errors`` (``error_frame``).

    k counts padding, so a large budget can keep every valid row: then all methods are exact, and
    ``drawn`` is False. Above the last attention only [CLS] has a gradient, so some are exact there.
    A layer that some method estimates exactly, with any source, is left out of the geometric mean
    at that budget, for all alike: a zero has no place there, and a small stand-in for it would
    decide the mean.
    """
    least = errors.groupby([RUN, "step", "budget", "layer"])["error"].transform("min")
    frame = errors.assign(
        squared_error=errors["error"] * errors["squared_norm"],
        log=np.log(errors["error"].where(least > 0)),
    )
    place = [RUN, "step", "epoch", "is_first", "is_last", "method", "budget", "source"]
    found = frame.groupby(place, sort=False).agg(
        squared_error=("squared_error", "sum"),
        squared_norm=("squared_norm", "sum"),
        mean=("error", "mean"),
        largest=("error", "max"),
        log=("log", "mean"),
        layers=("error", "size"),
        inexact=("log", "count"),
    )
    found["total"] = found["squared_error"] / found["squared_norm"]
    found["geometric"] = np.exp(found["log"])
    found["drawn"] = found.groupby([RUN, "step", "budget"])["total"].transform("max") > 0
    return found.drop(columns=["squared_error", "squared_norm", "log"]).reset_index()


def winner_frame(probes: Probes) -> pd.DataFrame:
    """A row per run, probe, budget, source and layer, with share (c / k)."""
    return pd.DataFrame(
        {**place, "budget": entry["budget"], "source": entry["source"], "share": share}
        for place, probe in _places(probes)
        for entry in probe["winners"]
        for share in entry["share"]
    )


def _places(probes: Probes) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What names a probe, and the probe."""
    return [
        (
            {
                RUN: run,
                "step": probe["step"],
                "epoch": probe["epoch"],
                "is_first": at == 0,
                "is_last": at == len(of_run) - 1,
            },
            probe,
        )
        for run, of_run in probes.items()
        for at, probe in enumerate(of_run)
    ]
