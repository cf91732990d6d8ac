"""The short table at the end of a run."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wtacrs_experiments.records.record import RunRecord
from wtacrs_experiments.words import MIB, MISSING, method_name

LEAST_SHARE = 0.01  # rows below it are summed up; the record has them all


def show(record: RunRecord, path: Path) -> None:
    """Print what a completed run reached and what it cost."""
    config = record.config
    title = f"{config['task']['name']} · {config['model']['name']} · {config['tuning']['name']}"
    method = method_name(config["estimator"]["name"], config["estimator"].get("center"))
    table = Table(show_header=False)
    if (metrics := record.metrics) is not None:
        main, loss = metrics["main"], metrics["train_loss"]
        table.add_row(f"{main}, best", f"{metrics['best']:.4f} (epoch {metrics['best_epoch']:g})")
        table.add_row(f"{main}, last", f"{metrics['last']:.4f}")
        # A loss that is not finite is null once it is read from a record.
        known = loss is not None and math.isfinite(loss)
        table.add_row("training loss", f"{loss:.4f}" if known else MISSING)
    if (memory := record.memory) is not None:
        table.add_row("peak memory", f"{_mib(memory['peak_bytes'])} MiB ({memory['device']})")
        parts = [f"{name} {_mib(size)}" for name, size in memory.get("at_peak", {}).items() if size]
        table.add_row("of this", "\n".join(parts) or MISSING)
        table.add_row("saved for backward", f"{_mib(memory['saved_bytes'])} MiB")
        table.add_row("gradient norms, host", f"{_mib(memory['host_cache_bytes'])} MiB")
    if (throughput := record.throughput) is not None:
        rate = throughput.get("samples_per_second")
        text = f"{MISSING} (no step after the warm-up)"
        if rate is not None:
            text = f"{rate:.1f} samples/s ({throughput['step_seconds']['median']:.3f} s a step)"
        table.add_row("throughput", text)
    table.add_row("sampled layers", str((record.sampling or {}).get("layers")))
    print(f"{title} · {method}@{config['budget']:g}, seed {config['seed']}")
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    if record.attribution is not None:
        for held in _attribution(record.attribution):
            console.print(held)
    print(path)  # on a line of its own, whole


def _attribution(found: dict[str, Any]) -> list[Table]:
    """What is alive when the forward pass ends, the small rows summed up, and sampled layers."""
    alive = _table("what is alive when the forward pass ends", "MiB", "share", "count", "made by")
    shown = [row for row in found["rows"] if row["share"] >= LEAST_SHARE]
    for row in shown:
        made_by = f"{row['made_in']} ({row['operation']})"
        numbers = (_mib(row["bytes"]), f"{row['share']:.1%}", str(row["count"]))
        alive.add_row(*numbers, escape(made_by), escape("\n".join(row["held_by"])))
    rest = found["saved_bytes"] - sum(row["bytes"] for row in shown)
    alive.add_row(_mib(rest), "", "", "others, less than 1 % each", "")
    if not found["sampled"]:
        return [alive]
    title = "sampled layers that keep nothing of their own, or whose input stays alive"
    inputs = _table(title, "MiB", "layers", "sampled layer", "keeps from")
    for layer in found["sampled"]:
        keeps, held = ("\n".join(layer[key]) for key in ("keeps_from", "held_by"))
        texts = (layer["pattern"], keeps or "nothing", held or "nobody")
        size, count = _mib(layer["input_bytes"]), str(len(layer["layers"]))
        inputs.add_row(size, count, *(escape(text) for text in texts))
    return [alive, inputs]


def _table(title: str, *columns: str) -> Table:
    """A table that folds names rather than cutting them."""
    table = Table(title=title, title_justify="left")
    for column in (*columns, "held by"):
        table.add_column(column, overflow="fold")
    return table


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}"
