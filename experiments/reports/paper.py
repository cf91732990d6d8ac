"""What the paper shows, from the records there are: python -m experiments.reports.paper.

Tables 1 and 2, Figure 8, the error of dW and the ablation. Nothing is trained, planned or timed:
what a part misses is said, with the command that makes it, and the part is made from the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass

from experiments.config import ROOT
from experiments.errors import UserError
from experiments.plan.grid import cells, configs, is_done, load_grid
from experiments.plan.kept import kept_step
from experiments.reports import figure8, figures, table2, tables

RESULTS = ROOT / "results"
FIGURE8 = ("bert_base", "t5_small")  # the models of its laptop scale


@dataclass(frozen=True)
class Part:
    """A table or figure: what it misses, how it is made, and the command that fills the gaps."""

    name: str
    missing: Callable[[], list[str]]
    make: Callable[[], int]
    remedy: str
    needs_all: bool = False  # of its records; else what is there is shown


def of_grid(name: str) -> list[str]:
    """The cells of a grid that have no completed record."""
    with redirect_stdout(sys.stderr):
        found = configs(cells(load_grid(name)))
    return [str(cell) for cell, config in found.items() if not is_done(config)]


def of_table2() -> list[str]:
    """The planned steps of Table 2 that have no record."""
    return [
        f"{title} · {method}"
        for title, model in table2.MODELS.items()
        for method, overrides in table2.METHODS.items()
        if kept_step((f"model={model}", *table2.SIZE, *overrides), RESULTS / "plan") is None
    ]


def of_figure8() -> list[str]:
    """The models of Figure 8 that are not measured."""
    paths = {name: RESULTS / "bench" / f"figure8-{name}.json" for name in FIGURE8}
    return [name for name, path in paths.items() if not path.exists()]


def _table(folder: str) -> int:
    output = RESULTS / "tables" / folder
    return tables.main([str(RESULTS / folder), "--output", str(output)])


def _figures(kind: str) -> int:
    return figures.main([kind, str(RESULTS / kind), "--output", str(RESULTS)])


PARTS = (
    Part(
        "Table 1",
        lambda: of_grid("table1_laptop"),
        lambda: _table("table1"),
        "make table1 SCALE=laptop",
    ),
    Part("Table 2", of_table2, lambda: table2.main([]), "make table2", needs_all=True),
    Part("Figure 8", of_figure8, lambda: figure8.main([]), "make figure8 SCALE=laptop"),
    Part(
        "error of dW",
        lambda: of_grid("variance"),
        lambda: _figures("variance"),
        "make figure-variance",
    ),
    Part(
        "ablation",
        lambda: of_grid("ablation"),
        lambda: _table("ablation") or _figures("ablation"),
        "make ablation",
    ),
)


def report(parts: tuple[Part, ...] = PARTS) -> int:
    """Make every part that can be made; 0 if none failed. What is missing is no failure."""
    lines, failed = [], False
    for part in parts:
        try:
            missing = part.missing()
            made = not (missing and part.needs_all) and part.make() == 0
        except UserError as error:
            missing, made = [str(error)], False
        failed |= not made and not missing
        state = "made" if made else "not made"
        lines.append(f"{part.name}: {state}, {len(missing)} records missing")
        if missing:
            rest = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            lines.append(f"  {'; '.join(missing[:5])}{rest}: {part.remedy}")
    print("\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(report())
