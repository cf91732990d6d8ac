"""Plans that are kept: one JSON file a setting, made once, and again when its code has changed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wtacrs_experiments.config import PlanConfig, as_record
from wtacrs_experiments.config.roots import parse_bytes
from wtacrs_experiments.plan.grid import settings
from wtacrs_experiments.plan.rehearsal import Rehearsal
from wtacrs_experiments.plan.search import largest_batch, plan
from wtacrs_experiments.records.code import PLANNER, code_hash
from wtacrs_experiments.records.provenance import provenance
from wtacrs_experiments.records.record import config_hash
from wtacrs_experiments.records.store import write_json

Record = dict[str, Any]


def planned_step(overrides: Sequence[str], folder: Path, overwrite: bool = False) -> Record:
    """The record of one setting: config, memory, flops, relative_flops, code, provenance."""

    def make(config: PlanConfig) -> Record:
        result = asdict(plan(config))
        cost = {key: result.pop(key) for key in ("flops", "relative_flops")}
        del result["max_batch_size"], result["peak_bytes_around"]
        return {"config": result.pop("config"), "memory": result, **cost}

    return _recorded("step", overrides, folder, overwrite, make)


def planned_batches(
    overrides: Sequence[str], fits: Sequence[str], folder: Path, overwrite: bool = False
) -> Record:
    """The record of one setting at many batch sizes: config, peak_bytes_by_batch, largest_batch.

    The sizes are those on the way to ``largest_batch``, the largest in each memory of ``fits``.
    """

    def make(config: PlanConfig) -> Record:
        rehearsal = Rehearsal(config)
        peaks: dict[int, int] = {}

        def peak(batch_size: int) -> int:
            peaks[batch_size] = rehearsal.peak_bytes(batch_size)
            return peaks[batch_size]

        first, largest = config.batch_size, {}
        for memory in sorted(fits, key=parse_bytes):
            largest[memory] = largest_batch(peak, parse_bytes(memory), first)
            first = max(first, largest[memory])  # what is known already costs nothing
        return {
            "config": as_record(config),
            "peak_bytes_by_batch": dict(sorted(peaks.items())),
            "largest_batch": largest,
        }

    def lacks(found: Record) -> bool:
        return not {*fits} <= found["largest_batch"].keys()

    return _recorded("batches", overrides, folder, overwrite, make, lacks)


def kept(kind: str, overrides: Sequence[str], folder: Path) -> Path | None:
    """The file of what was planned of this setting, stale or not; None if there is none."""
    path = _file(kind, overrides, folder)[1]
    return path if path.exists() else None


def _recorded(
    kind: str,
    overrides: Sequence[str],
    folder: Path,
    overwrite: bool,
    make: Callable[[PlanConfig], Record],
    lacks: Callable[[Record], bool] = lambda _: False,
) -> Record:
    """The record that the setting names, made if there is none, if it is stale or by ``overwrite``.

    Args:
        lacks: whether a record has not all that is asked for.
    """
    config, path = _file(kind, overrides, folder)
    code = code_hash(PLANNER)
    if path.exists() and not overwrite:
        found: Record = json.loads(path.read_text(encoding="utf-8"))
        if found.get("code") == code and not lacks(found):
            return found
        print(f"planned again, by code that has changed or for more: {path}")
    made_by, started = provenance(), time.perf_counter()
    record = {**make(config), "code": code, "provenance": made_by}
    made_by["seconds"] = time.perf_counter() - started
    write_json(record, path)
    print(path)
    return json.loads(path.read_text(encoding="utf-8"))  # as any later reader has it: keys are text


def _file(kind: str, overrides: Sequence[str], folder: Path) -> tuple[PlanConfig, Path]:
    """The checked setting and the file that it names."""
    with redirect_stdout(sys.stderr):
        (config,) = settings([*overrides]).values()
    content = as_record(config)
    names = [content[group]["name"] for group in ("model", "tuning", "estimator", "memory")]
    of_the_file = config_hash({k: v for k, v in content.items() if k not in ("fits", "output")})
    stem = "-".join([kind, *names, f"b{config.budget:g}", f"n{config.batch_size}", of_the_file])
    return config, folder / f"{stem}.json"
