"""Records -> figures, SVG and PNG: python -m experiments.reports.figures variance results/variance.

variance: the four figures and the two tables of experiment=variance, from its records.
ablation: score against budget per method, from the records of runs; named after their folder.
tradeoff: score and time against peak memory per method, from the records of runs of one task.
memory, batches: of what the peak is made, and the largest batches, from plans in results/plan.

Nothing is measured or planned. Files go to outputs/figures and outputs/tables, or below --output.
"""

from __future__ import annotations

import argparse
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.errors import UserError
from experiments.records.planned import read_planned
from experiments.records.record import read_record
from experiments.reports.commits import commit_note
from experiments.reports.drawing import (
    STYLE,
    ablation_figure,
    bars,
    budget_axis,
    looks,
    panels,
    save,
)
from experiments.reports.memory_figures import batch_figure, memory_figure
from experiments.reports.runs import GROUP, aggregate, load_runs
from experiments.reports.tradeoff import tradeoff_figure
from experiments.reports.variance_data import (
    RUN,
    SOURCES,
    Probes,
    error_frame,
    label,
    layer_type,
    load_probes,
    summarise,
    winner_frame,
)
from experiments.reports.variance_tables import probe_table, variance_table

BUDGET = 0.3  # where a figure shows one budget only
DODGE = 2.5  # points between methods at one budget
SOURCE_METHODS = ("wtacrs", "pps", "pps/lowrank")
TOTAL = "total squared error of dW / total ||dW||²"
INPUT_LOOKS = (
    *(("#E69F00", "-"), ("#CC79A7", "--"), ("#009E73", "-."), ("#0072B2", ":")),
    *(("#D55E00", "-"), ("#56B4E9", "--")),
)
SOURCE_LOOKS = {"none": ("#999999", "s"), "position": ("#E69F00", "^"), "auto": ("#0072B2", "o")}


def winner_mass_figure(probes: Probes) -> Any:
    """P_c against c / n per kind of input, true weights, last probe; and Theorem 2's line c / k.

    An input is named by the first layer that reads it: "into query" stands for key and value too.
    """
    kinds = [layer_type(name) for run in probes for name in probes[run][-1]["winner_mass"]]
    shown = dict(zip(dict.fromkeys(kinds), cycle(INPUT_LOOKS), strict=False))

    def draw(axis: Axes, run: str) -> None:
        curves: dict[str, list[list[float]]] = {}
        for name, curve in probes[run][-1]["winner_mass"].items():
            curves.setdefault(layer_type(name), []).append(curve)
        axis.plot([0, BUDGET], [0, 1], "k", lw=1, label=f"c / k at budget {BUDGET:g}")
        for kind, group in curves.items():
            mean = np.mean(group, axis=0)
            share = np.linspace(0, 1, len(mean) + 1)
            axis.plot(
                share,
                [0, *mean],
                label=f"into {kind}",
                color=shown[kind][0],
                linestyle=shown[kind][1],
            )
        axis.set_xlabel("winners, share of valid rows c / n")
        axis.set_xlim(0, 1)

    return panels(list(probes), draw, "probability mass of winners $P_c$")


def budget_figure(errors: pd.DataFrame) -> Any:
    """Total error against budget per method, source auto: mean over the probes, bar their range.

    Only probes that draw: an exact one, whose valid rows all fit into the budget, has no place on
    a logarithmic axis.
    """
    chosen = errors[(errors["source"] == "auto") & errors["drawn"]]
    look = looks(chosen["method"])
    dodges = {method: DODGE * (at - (len(look) - 1) / 2) for at, method in enumerate(look)}

    def draw(axis: Axes, run: str) -> None:
        axis.set_xscale("log")
        axis.set_yscale("log")
        for method in look:
            rows = chosen[(chosen[RUN] == run) & (chosen["method"] == method)]
            totals = rows.groupby("budget")["total"].agg(["mean", "min", "max"]).reset_index()
            totals = totals[totals["min"] > 0]
            ends = totals["min"], totals["max"]
            named = {"label": label(method), "elinewidth": 1, **look[method], "markersize": 5}
            bars(axis, totals["budget"], totals["mean"], ends, dodges[method], **named)
        budget_axis(axis, chosen["budget"])

    names = [*errors[RUN].unique()]
    return panels(names, draw, f"{TOTAL}\nmean and range over probes that draw")


def source_figure(errors: pd.DataFrame) -> Any:
    """Total error by source at the first and the last probe."""
    rows = errors[errors["budget"] == BUDGET]
    sources = [source for source in SOURCES if source in set(rows["source"])]
    look = looks(SOURCE_METHODS)
    slant: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}

    def draw(axis: Axes, run: str) -> None:
        for at, method in enumerate(SOURCE_METHODS):
            for probe, filled in (("is_first", "none"), ("is_last", look[method]["color"])):
                chosen = rows[(rows[RUN] == run) & (rows["method"] == method) & rows[probe]]
                totals = chosen.set_index("source")["total"].reindex(sources)
                axis.plot(
                    np.arange(len(sources)) + (at - 1) * 0.22,
                    totals.where(totals > 0),
                    **{**look[method], "linestyle": "none"},
                    markerfacecolor=filled,
                    label=f"{method}, {probe[3:]} probe",
                )
        axis.set_yscale("log")
        axis.set_xticks(range(len(sources)), [SOURCES[source] for source in sources], **slant)
        axis.set_xlabel("source of gradient norms")

    return panels([*errors[RUN].unique()], draw, f"{TOTAL}\nat budget {BUDGET:g}")


def winners_figure(winners: pd.DataFrame, errors: pd.DataFrame) -> Any:
    """Share of the k slots that go to winners, against budget, by source, last probe.

    Budgets that keep every valid row are left out: there is nothing to win.
    """
    drawn = errors.loc[errors["is_last"] & errors["drawn"], [RUN, "budget"]]
    last = winners[winners["is_last"] & winners["source"].isin(SOURCE_LOOKS)]
    last = last.merge(drawn.drop_duplicates())

    def draw(axis: Axes, run: str) -> None:
        for source, rows in last[last[RUN] == run].groupby("source", sort=False):
            means = rows.groupby("budget")["share"].mean()
            colour, marker = SOURCE_LOOKS[str(source)]
            axis.plot(means.index, means, color=colour, marker=marker, label=SOURCES[str(source)])
        axis.set_ylim(0, 1)
        budget_axis(axis, last["budget"])

    return panels([*errors[RUN].unique()], draw, "winners, share of kept rows c / k")


def variance(folder: Path, output: Path, name: str) -> None:
    """All that experiment=variance shows."""
    probes = load_probes(folder)
    errors, winners = summarise(error_frame(probes)), winner_frame(probes)
    save(winner_mass_figure(probes), output / "figures" / f"{name}_winner_mass")
    save(budget_figure(errors), output / "figures" / f"{name}_budget")
    save(source_figure(errors), output / "figures" / f"{name}_source")
    save(winners_figure(winners, errors), output / "figures" / f"{name}_winners")
    (output / "tables").mkdir(parents=True, exist_ok=True)
    note = commit_note(read_record(path).provenance for path in sorted(folder.glob("*.json")))
    for end, text in (("", variance_table(errors)), ("_probes", probe_table(errors))):
        path = output / "tables" / f"{name}{end}.md"
        path.write_text(text + note, encoding="utf-8")
        print(path)


def ablation(folder: Path, output: Path, name: str) -> None:
    """The figure of experiment=ablation, and of experiment=centred."""
    table = aggregate(load_runs(folder))
    done = table[table["n"] > 0]
    if done.empty:
        raise UserError(f"{folder} holds no completed run, so there is no score to draw")
    save(ablation_figure(done), output / "figures" / name)


def tradeoff(folder: Path, output: Path, name: str) -> None:
    """The figure of what each method costs and gives."""
    table = aggregate(load_runs(folder))
    done = table[(table["n"] > 0) & table["peak_bytes"].notna() & table["speed_ratio"].notna()]
    if done.empty:
        raise UserError(
            f"{folder} holds no completed run beside a full one, whose memory and time are measured"
        )
    if len(done[GROUP].drop_duplicates()) > 1:
        raise UserError(f"{folder} holds several tasks, models or settings; give runs of one")
    save(tradeoff_figure(done), output / "figures" / name)


def memory(folder: Path, output: Path, name: str) -> None:
    """The figure of the parts of the peak."""
    save(memory_figure(read_planned(folder, "table2")), output / "figures" / "memory_breakdown")


def batches(folder: Path, output: Path, name: str) -> None:
    """The figure of the largest batches."""
    save(batch_figure(read_planned(folder, "batches")), output / "figures" / "memory_batch")


KINDS = {
    **{"variance": variance, "ablation": ablation, "tradeoff": tradeoff},
    **{"memory": memory, "batches": batches},
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reports.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("records", type=Path)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    parser.add_argument("--name", help="how files begin; else the folder of the records is it")
    options = parser.parse_args(arguments)
    try:
        draw(options.kind, options.records, options.output, options.name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def draw(kind: str, folder: Path, output: Path, name: str | None = None) -> None:
    """Draw one of ``KINDS`` in the project's style, below ``output``.

    Raises:
        UserError: the folder does not hold its records.
    """
    with plt.rc_context(STYLE):
        KINDS[kind](folder, output, name or folder.resolve().name)


if __name__ == "__main__":
    sys.exit(main())
