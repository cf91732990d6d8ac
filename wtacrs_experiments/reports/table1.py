"""Table 1 as the paper has it, a row a method and a column a task, from the records of a grid.

The runs are those of grids/table1_laptop.yaml and no others in the folder; what is not run is shown
as missing. A cell: mean over seeds ± standard deviation, how many seeds where not all are there,
and the difference to full over the seeds that both have. The average is that of these differences
over the tasks, for the seeds that have every task, with the 95 % interval over these seeds. Both
protocols: the best epoch of the validation split, as the paper; and held out, where one half of the
split picks the epoch and the other half is reported.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from wtacrs_experiments.config import as_record
from wtacrs_experiments.records.grid import Cell, cells, configs, load_grid
from wtacrs_experiments.records.record import config_hash
from wtacrs_experiments.reports.paired import half_width
from wtacrs_experiments.reports.runs import load_runs, read_run
from wtacrs_experiments.reports.tables import markdown, note, splice
from wtacrs_experiments.words import MISSING, scale

GRID = "table1_laptop"
TITLES = {"paper": "Best epoch", "held_out": "Held out"}
FULL = "full"


def of_grid(folder: Path, protocol: str) -> pd.DataFrame:
    """method, task, seed, metric, score and record of every run of the grid, done or not.

    Raises:
        UserError: no record in ``folder``, or one that is damaged.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        record, row = read_run(path, protocol)
        if row["status"] == "completed":
            found[run_key(record.config)] = row
    rows = []
    for cell, key in run_keys().items():
        row = found.get(key, {})
        own = {"method": cell.method, "task": cell.task, "seed": cell.seed}
        rows.append({**own, **{name: row.get(name) for name in ("metric", "score", "record")}})
    return pd.DataFrame(rows).astype({"score": float})


@cache  # both protocols ask, and composing takes seconds
def run_keys() -> dict[Cell, tuple[str, str]]:
    """The ``run_key`` of each run of the grid."""
    found = configs(cells(load_grid(GRID)))
    return {cell: run_key(as_record(config)) for cell, config in found.items()}


def run_key(config: dict[str, Any]) -> tuple[str, str]:
    """What tells the runs of the grid apart, wherever their data lie."""
    return config["task"]["name"], config_hash(config, without=("task",))


def display(runs: pd.DataFrame) -> pd.DataFrame:
    """The table as text cells; scores × 100."""
    scores = runs.pivot(index=["task", "seed"], columns="method", values="score")
    metrics = runs.dropna(subset="metric").groupby("task")["metric"].first()
    rows = []
    for method in runs["method"].unique():
        differences = (scores[method] - scores[FULL]).unstack("seed")
        row = {"method": method}
        for task in runs["task"].unique():
            metric = metrics.get(task, MISSING)
            row[f"{task} ({metric})"] = _cell(
                scores.loc[task, method], differences.loc[task], method, scale(metric)[0]
            )
        row["average − full [95 %]"] = MISSING if method == FULL else _average(differences)
        rows.append({**row, "runs": f"{scores[method].count()} of {len(scores)}"})
    return pd.DataFrame(rows)


def _cell(score: pd.Series, difference: pd.Series, method: str, times: int) -> str:
    n = score.count()
    if n == 0:
        return MISSING
    text = f"{times * score.mean():.1f}" + (f" ± {times * score.std():.1f}" if n > 1 else "")
    text += f" (n = {n})" if n < len(score) else ""
    return text if method == FULL else f"{text}, {_signed(times * difference.mean())}"


def _average(differences: pd.DataFrame) -> str:
    each = 100 * differences.mean(skipna=False).dropna()  # over the tasks: one a seed
    n = len(each)
    if n == 0:
        return MISSING
    if n == 1:
        return f"{_signed(each.mean())} (n = 1)"
    half = half_width(each.std(), n)
    ends = ", ".join(_signed(each.mean() + end) for end in (-half, half))
    return f"{_signed(each.mean())} [{ends}] (n = {n})"


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return MISSING if pd.isna(value) else {"+0.0": "0.0", "-0.0": "0.0"}.get(text, text)


def write(folder: Path, output: Path, document: Path) -> None:
    """Write the table by both protocols to ``output``.md, and into ``document``.

    Raises:
        UserError: no record in ``folder``, or one that is damaged.
    """
    used = load_runs(folder)
    parts = []
    for protocol, title in TITLES.items():
        runs = of_grid(folder, protocol)
        parts.append(f"{title}:\n\n{markdown(display(runs))}")
    text = "\n".join(parts) + note(used[used["record"].isin(runs["record"])])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    splice(document, text, "table1")
