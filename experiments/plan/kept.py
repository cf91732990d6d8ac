"""Plans that are kept: one JSON file a setting in results/plan, made once (ARCHITECTURE rule 7)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.plan.rehearsal import Rehearsal
from experiments.plan.search import largest_batch, parse_bytes, plan, settings
from experiments.records.provenance import provenance
from experiments.records.record import config_hash

Record = dict[str, Any]


def planned_step(overrides: Sequence[str], folder: Path, overwrite: bool = False) -> Record:
    """The record of one setting: config, memory (bytes), flops, relative_flops, provenance."""

    def make(config: DictConfig) -> Record:
        result = asdict(plan(config))
        cost = {key: result.pop(key) for key in ("flops", "relative_flops")}
        del result["max_batch_size"]
        return {"config": result.pop("config"), "memory": result, **cost}

    return _recorded("step", overrides, folder, overwrite, make)


def planned_batches(
    overrides: Sequence[str], fits: Sequence[str], folder: Path, overwrite: bool = False
) -> Record:
    """The record of one setting at many batch sizes: config, peak_bytes_by_batch, largest_batch.

    The sizes are those on the way to ``largest_batch``, the largest in each memory of ``fits``.
    """

    def make(config: DictConfig) -> Record:
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
            "config": OmegaConf.to_container(config),
            "peak_bytes_by_batch": dict(sorted(peaks.items())),
            "largest_batch": largest,
        }

    return _recorded("batches", overrides, folder, overwrite, make)


def kept_step(overrides: Sequence[str], folder: Path) -> Record | None:
    """What ``planned_step`` has recorded, or None; nothing is planned."""
    path = _file("step", overrides, folder)[1]
    return json.loads(path.read_text()) if path.exists() else None


def kept_batches(overrides: Sequence[str], folder: Path) -> Record | None:
    """What ``planned_batches`` has recorded, or None; nothing is planned."""
    path = _file("batches", overrides, folder)[1]
    return json.loads(path.read_text()) if path.exists() else None


def _recorded(
    kind: str,
    overrides: Sequence[str],
    folder: Path,
    overwrite: bool,
    make: Callable[[DictConfig], Record],
) -> Record:
    """The record in the file that the setting names, made if there is none or by ``overwrite``."""
    config, path = _file(kind, overrides, folder)
    if path.exists() and not overwrite:
        return json.loads(path.read_text())
    started = time.perf_counter()
    record = {**make(config), "provenance": provenance()}
    record["provenance"]["seconds"] = time.perf_counter() - started
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(path)
    return json.loads(path.read_text())  # as any later reader has it: keys are text


def _file(kind: str, overrides: Sequence[str], folder: Path) -> tuple[DictConfig, Path]:
    """The checked setting and the file that it names."""
    with redirect_stdout(sys.stderr):
        (config,) = settings([*overrides]).values()
    names = [config[group].name for group in ("model", "tuning", "estimator", "memory")]
    content: Any = OmegaConf.to_container(config)
    of_the_file = config_hash({k: v for k, v in content.items() if k not in ("fits", "output")})
    stem = "-".join([kind, *names, f"b{config.budget:g}", f"n{config.batch_size}", of_the_file])
    return config, folder / f"{stem}.json"
