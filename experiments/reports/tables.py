"""Records -> one Markdown and one CSV table: python -m experiments.reports.tables results/runs.

A row is a method, a budget and a memory preset; seeds are averaged, with their number and standard
deviation beside the mean. Ratios, and differences paired by seed (``paired``), are against the
plain model (estimator "full", memory "plain") of the same task, model, tuning and settings. What is
not known is shown as missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from experiments.errors import UserError
from experiments.records.record import RunRecord, config_hash, read_record
from experiments.reports.paired import paired_to_full
from experiments.words import MIB, MISSING, method_name

# What tells settings apart once the method (estimator, budget, memory) and the seed are taken away.
# Runs that measured memory alone have no metric, and a baseline of their own.
GROUP = ["task", "model", "tuning", "settings", "metric"]
METHOD = ("estimator", "budget", "memory")


def load_runs(folder: Path) -> pd.DataFrame:
    """One row a completed record of ``folder``, sorted.

    Raises:
        UserError: the folder is missing or holds no completed record.
        RecordError: a file in it is not a record.
    """
    records = [read_record(path) for path in sorted(folder.glob("*.json"))]
    rows = [_row(record) for record in records if record.status == "completed"]
    if not rows:
        raise UserError(
            f"{folder} holds no completed record ({len(records)} others); make some with "
            f"python run.py results_dir={folder}"
        )
    return pd.DataFrame(rows).sort_values([*GROUP, "order", "budget", "seed"])


def _row(record: RunRecord) -> dict[str, Any]:
    config, memory = record.config, record.memory or {}
    estimator = config["estimator"]["name"]
    sampled = estimator != "full"  # else the settings of sampling say nothing
    preset = config.get("memory", {}).get("name", "linear")
    if not sampled and preset == "linear":
        preset = "plain"
    method: dict[str, Any] = {
        name: config[name] for name in ("estimator", "memory") if name in config
    }
    if not sampled:
        method.pop("estimator")
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
        "method": config_hash(method),
        "seed": config["seed"],
        "metric": (record.metrics or {}).get("main", MISSING),
        "best": (record.metrics or {}).get("best"),
        "last": (record.metrics or {}).get("last"),
        "peak_bytes": memory.get("peak_bytes"),
        "saved_bytes": memory.get("saved_bytes"),
        "samples_per_second": (record.throughput or {}).get("samples_per_second"),
    }


def aggregate(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation and number over seeds; differences and ratios to full."""
    keys = [*GROUP, "estimator", "order", "budget", "grad_norms", "memory", "method"]
    table = (
        runs.groupby(keys, dropna=False)
        .agg(
            best=("best", "mean"),
            best_std=("best", "std"),  # of a sample: unknown for one seed
            last=("last", "mean"),
            last_std=("last", "std"),
            n=("seed", "nunique"),
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
    full = table[plain].set_index(GROUP)[measures]
    baseline = table[GROUP].join(full, on=GROUP)[measures]
    for name in ("peak_bytes", "saved_bytes"):
        table[f"{name}_full_ratio"] = baseline[name] / table[name]  # 2.0: half of full's bytes
    table["speed_ratio"] = table["samples_per_second"] / baseline["samples_per_second"]
    return table.drop(columns="order").reset_index(drop=True)


def display(table: pd.DataFrame) -> pd.DataFrame:
    """The aggregated table as text cells, in the paper's manner; scores times 100."""
    ambiguous = table.duplicated(["task", "model", "tuning", "estimator", "budget", "memory"]).any()
    rows = []
    for _, row in table.iterrows():
        full = row["estimator"] == "full"
        rows.append(
            {
                "task": row["task"],
                "model": row["model"],
                "tuning": row["tuning"],
                "estimator": "full" if full else f"{row['estimator']}@{row['budget']:g}",
                "memory": row["memory"],
                # Only where names do not tell rows apart: the hashes, as in the CSV.
                **({"settings": f"{row['settings']} {row['method']}"} if ambiguous else {}),
                "metric": row["metric"],
                "best epoch": _score(row, "best"),
                "last epoch": _score(row, "last"),
                "n": str(row["n"]),
                "best − full [95 %]": _difference(row),
                "against full": _cell(row["against_full"], "{}"),
                "peak MiB": _cell(row["peak_bytes"] / MIB, "{:.1f}"),
                "full / peak": _cell(row["peak_bytes_full_ratio"], "{:.2f}×"),
                "saved MiB": _cell(row["saved_bytes"] / MIB, "{:.1f}"),
                "full / saved": _cell(row["saved_bytes_full_ratio"], "{:.2f}×"),
                "samples/s": _cell(row["samples_per_second"], "{:.1f}"),
                "speed": _cell(row["speed_ratio"], "{:.2f}×"),
            }
        )
    return pd.DataFrame(rows)


def _cell(value: Any, text: str) -> str:
    return MISSING if value is None or pd.isna(value) else text.format(value)


def _score(row: pd.Series, name: str) -> str:
    mean = _cell(100 * row[name], "{:.1f}")
    return f"{mean} ± {_cell(100 * row[f'{name}_std'], '{:.1f}')}"


def _difference(row: pd.Series) -> str:
    if pd.isna(row["difference"]):
        return MISSING
    mean, low, high = (100 * row[f"difference{end}"] for end in ("", "_low", "_high"))
    pairs = "" if row["pairs"] == row["n"] else f", {row['pairs']} pairs"
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]{pairs}"


def write_tables(folder: Path, output: Path) -> pd.DataFrame:
    """Write ``output``.md and ``output``.csv from the records in ``folder``; returns the text."""
    table = aggregate(load_runs(folder))
    text = display(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(markdown(text))
    table.to_csv(output.with_suffix(".csv"), index=False)
    return text


def markdown(text: pd.DataFrame) -> str:
    """The displayed table as Markdown, words to the left."""
    alignment = ["left" if name in _WORDS else "right" for name in text]
    return text.to_markdown(index=False, disable_numparse=True, colalign=alignment) + "\n"


def splice(document: Path, table: str, mark: str) -> None:
    """Put ``table`` between the lines ``<!-- begin mark -->`` and ``<!-- end mark -->``.

    Raises:
        UserError: the document has no such lines.
    """
    begin, end = f"<!-- begin {mark} -->", f"<!-- end {mark} -->"
    before, found, rest = document.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"{document} has no lines {begin} and {end}; put them where the table goes")
    document.write_text(f"{before}{begin}\n{table}{end}{after}", encoding="utf-8")


_WORDS = ("task", "model", "tuning", "estimator", "memory", "settings", "metric", "against full")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reports.tables", description=__doc__
    )
    parser.add_argument("records", type=Path, nargs="?", default=Path("results/runs"))
    parser.add_argument("--output", type=Path, default=Path("results/tables/runs"))
    parser.add_argument("--splice", type=Path, help="also put the table into this document")
    parser.add_argument("--task", help="put in the rows of this task alone")
    options = parser.parse_args(arguments)
    try:
        text = write_tables(options.records, options.output)
        if options.splice is not None:
            rows = text if options.task is None else text[text["task"] == options.task]
            splice(options.splice, markdown(rows), options.output.name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shown = Table(*text.columns)
    for row in text.itertuples(index=False):
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 240).print(shown)
    print(f"{options.output.with_suffix('.md')} and .csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
