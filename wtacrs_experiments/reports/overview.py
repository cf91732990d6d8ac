"""What the paper shows, from the records there are: python -m wtacrs_experiments.reports.overview.

Tables 1 and 2, Figure 8, the error of dW and the ablation. Nothing is trained, planned or timed:
what a part misses is said, with the command that makes it, and the part is made from the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass

import pandas as pd

from wtacrs_experiments.config import ROOT
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.grid import cells, configs, is_done, load_grid
from wtacrs_experiments.records.planned import index_path, read_planned
from wtacrs_experiments.reports import figure8
from wtacrs_experiments.reports.paper import TABLE2
from wtacrs_experiments.reports.published import PUBLISHED

RESULTS = ROOT / "results"
FIGURE8 = ("bert_base", "t5_small")  # the models of its laptop scale


@dataclass(frozen=True)
class Part:
    """A table or figure: what it misses, how it is made, and the command that fills the gaps."""

    title: str
    missing: Callable[[], list[str]]
    make: Callable[[], None]
    remedy: str


def of_grid(name: str, folder: str) -> list[str]:
    """The cells of a grid that have no completed record in ``folder`` of the results."""
    with redirect_stdout(sys.stderr):
        found = configs(cells(load_grid(name, RESULTS / folder)))
    return [str(cell) for cell, config in found.items() if not is_done(config)]


def of_table2() -> list[str]:
    """The rows of the paper's Table 2 of which there is no plan."""
    there = index_path(RESULTS / "plan", "table2").exists()
    planned = read_planned(RESULTS / "plan", "table2") if there else {}
    theirs = pd.read_csv(TABLE2)
    return [
        f"{row.model} · {row.method}"
        for row in theirs.itertuples()
        if row.method not in planned.get(str(row.model), {})
    ]


def of_figure8() -> list[str]:
    """The models of Figure 8 and their methods that are not measured."""
    missing = []
    for name in FIGURE8:
        path = RESULTS / "bench" / f"figure8-{name}.json"
        there = figure8.read_measured(path)["methods"] if path.exists() else {}
        missing += [f"{name} · {method}" for method in figure8.LOOKS if method not in there]
    return missing


def _published(name: str) -> Callable[[], None]:
    return lambda: PUBLISHED[name](RESULTS, RESULTS, ROOT)


PARTS = (
    Part(
        "Table 1",
        lambda: of_grid("table1_laptop", "table1"),
        _published("table1"),
        "make table1 SCALE=laptop",
    ),
    Part("Table 2", of_table2, _published("table2"), "make table2"),
    Part("Figure 8", of_figure8, _published("figure8"), "make figure8 SCALE=laptop"),
    Part(
        "error of dW",
        lambda: of_grid("variance", "variance"),
        _published("variance"),
        "make figure-variance",
    ),
    Part(
        "ablation",
        lambda: of_grid("ablation", "ablation"),
        _published("ablation"),
        "make ablation",
    ),
)


def report(parts: tuple[Part, ...] = PARTS) -> int:
    """Make every part that can be made; 0 if none failed. What is missing is no failure."""
    lines, failed = [], False
    for part in parts:
        missing, reason = list[str](), ""
        try:
            missing = part.missing()
            part.make()
        except UserError as error:
            reason = str(error)
        failed |= bool(reason) and not missing
        state = f"not made ({reason})" if reason else "made"
        lines.append(f"{part.title}: {state}, {len(missing)} records missing")
        if missing:
            rest = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            lines.append(f"  {'; '.join(missing[:5])}{rest}: {part.remedy}")
    print("\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(report())
