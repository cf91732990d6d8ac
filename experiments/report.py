"""The short table at the end of a run."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.records import RunRecord

MIB = 2**20
MISSING = "–"


def show(record: RunRecord, path: Path) -> None:
    """Print what a completed run reached and what it cost."""
    config, metrics = record.config, record.metrics or {}
    title = f"{config['task']['name']} · {config['model']['name']} · {config['tuning']['name']}"
    estimator = f"{config['estimator']['name']}@{config['budget']:g}, seed {config['seed']}"
    table = Table(show_header=False)
    main, loss = metrics["main"], metrics["train_loss"]
    table.add_row(f"{main}, best", f"{metrics['best']:.4f} (epoch {metrics['best_epoch']:g})")
    table.add_row(f"{main}, last", f"{metrics['last']:.4f}")
    table.add_row("training loss", f"{loss:.4f}" if math.isfinite(loss) else MISSING)
    if record.memory is not None:
        memory = record.memory
        table.add_row("peak memory", f"{memory['peak_bytes'] / MIB:.1f} MiB ({memory['device']})")
        table.add_row("saved for backward", f"{memory['saved_bytes'] / MIB:.1f} MiB")
        table.add_row("gradient norms, host", f"{memory['host_cache_bytes'] / MIB:.1f} MiB")
    throughput = record.throughput or {}
    if throughput.get("samples_per_second") is None:
        table.add_row("throughput", f"{MISSING} (no step after the warm-up)")
    else:
        step = throughput["step_seconds"]["median"]
        rate = throughput["samples_per_second"]
        table.add_row("throughput", f"{rate:.1f} samples/s ({step:.3f} s a step)")
    table.add_row("sampled layers", str((record.sampling or {}).get("layers")))
    print(f"{title} · {estimator}")
    Console().print(table)
    print(path)  # on a line of its own, whole
