"""The records of runs as a tidy frame, and their mean, spread and number over seeds.

Two protocols say which epoch's score counts (``run.protocol``): "paper" takes the best
epoch on the whole validation split; "held_out" picks the epoch on one half and reports the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from wtacrs_experiments.errors import NoRecordError
from wtacrs_experiments.records.record import (
    STATUSES,
    RunRecord,
    config_hash,
    read_record,
)
from wtacrs_experiments.reports.paired import paired_to_full
from wtacrs_experiments.words import MISSING, method_name

PROTOCOLS = ("paper", "held_out")
NOT_DONE = tuple(status for status in STATUSES if status != "completed")
# What tells settings apart once the method (estimator, budget, memory) and the seed are taken away.
# Runs that measured memory alone have no metric, and a baseline of their own.
GROUP = ["task", "model", "tuning", "settings", "metric"]
METHOD = ("estimator", "budget", "memory")
SETTING = [*GROUP, "estimator", "budget", "grad_norms", "memory", "method"]  # all but the seed
NUMBERS = ["score", "last", "peak_bytes", "saved_bytes", "samples_per_second"]


def load_runs(folder: Path, protocol: str = "paper") -> pd.DataFrame:
    """One row a record of ``folder``, sorted; what did not complete has a status and no numbers.

    Raises:
        NoRecordError: the folder is missing or holds no record.
        RecordError: a file in it is not a record of a run.
    """
    rows = [read_run(path, protocol)[1] for path in sorted(folder.glob("*.json"))]
    if not rows:
        raise no_record(folder)
    return sorted_frame(rows)


def no_record(folder: Path) -> NoRecordError:
    """What is said of a folder without records."""
    return NoRecordError(
        f"{folder} holds no record of a run; make some with python run.py results_dir={folder}"
    )


def sorted_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows that ``read_run`` gave, in the order of reports."""
    return pd.DataFrame(rows).sort_values([*GROUP, "order", "budget", "seed"])


def read_run(path: Path, protocol: str = "paper") -> tuple[RunRecord, dict[str, Any]]:
    """A record, and the row it gives.

    Raises:
        RecordError: it is not a record.
    """
    record = read_record(path)
    return record, {"record": path.stem, **_row(record, protocol)}


def _row(record: RunRecord, protocol: str) -> dict[str, Any]:
    config, done = record.config, record.status == "completed"
    metrics = (record.metrics or {}) if done else {}
    memory = (record.memory or {}) if done else {}
    score = metrics.get("best")
    if protocol == "held_out":
        score = (metrics.get("held_out") or {}).get("score")
    estimator = config["estimator"]["name"]
    sampled = estimator != "full"  # else the settings of sampling say nothing
    preset = config.get("memory", {}).get("name", "linear")
    if not sampled and preset == "linear":
        preset = "plain"
    return {
        "task": config["task"]["name"],
        "model": config["model"]["name"],
        "tuning": config["tuning"]["name"],
        "settings": config_hash(config, without=(*METHOD, "seed", "measure")),
        "estimator": method_name(estimator, config["estimator"].get("center")),
        "order": sampled,
        "budget": config["budget"],
        "grad_norms": config["estimator"].get("grad_norms") if sampled else None,
        "memory": preset,
        "method": config_hash(config, only=("estimator", "memory") if sampled else ("memory",)),
        "seed": config["seed"],
        "metric": metrics.get("main", MISSING) if done else _metric(config),
        "status": record.status,
        "commit": record.provenance.get("git_commit"),
        "dirty": record.provenance.get("git_dirty"),
        "score": score,
        "last": metrics.get("last"),
        "peak_bytes": memory.get("peak_bytes"),
        "saved_bytes": memory.get("saved_bytes"),
        "samples_per_second": (record.throughput or {}).get("samples_per_second") if done else None,
    }


def _metric(config: dict[str, Any]) -> str:
    """The metric that a run would have had: a failure stands in the group of those that have it."""
    if config.get("measure", {}).get("alone"):
        return MISSING
    return next(iter(config["task"].get("metrics") or []), MISSING)


def aggregate(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation and number over seeds; differences and ratios to full."""
    counted = {status: (runs["status"] == status).astype(int) for status in NOT_DONE}
    # A seed counts with its score, which old records lack under held_out; or with its memory alone.
    known = (runs["status"] == "completed") & (runs["score"].notna() | (runs["metric"] == MISSING))
    runs = runs.assign(done=runs["seed"].where(known), **counted)
    runs = runs.astype(dict.fromkeys(NUMBERS, float))  # a column of nulls alone has no type
    keys = [*SETTING, "order"]
    table = (
        runs.groupby(keys, dropna=False)
        .agg(
            score=("score", "mean"),
            score_std=("score", "std"),  # of a sample: unknown for one seed
            last=("last", "mean"),
            last_std=("last", "std"),
            n=("done", "nunique"),
            **{status: (status, "sum") for status in NOT_DONE},
            peak_bytes=("peak_bytes", "mean"),
            saved_bytes=("saved_bytes", "mean"),
            samples_per_second=("samples_per_second", "mean"),
        )
        .reset_index()
        .merge(paired_to_full(runs, GROUP, keys), "left", keys, validate="one_to_one")
        .sort_values([*GROUP, "order", "estimator", "budget", "memory"])
    )
    measures = ["peak_bytes", "saved_bytes", "samples_per_second"]
    plain = (table["estimator"] == "full") & (table["memory"] == "plain")
    # Plain runs that differ, in attention say, are one baseline, as for the scores.
    full = table[plain].groupby(GROUP)[measures].mean()
    baseline = table[GROUP].join(full, on=GROUP)[measures]
    for name in ("peak_bytes", "saved_bytes"):
        table[f"{name}_full_ratio"] = baseline[name] / table[name]  # 2.0: half of full's bytes
    table["speed_ratio"] = table["samples_per_second"] / baseline["samples_per_second"]
    return table.drop(columns="order").reset_index(drop=True)
