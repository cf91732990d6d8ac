"""Records -> figures, SVG and PNG: python -m experiments.figures variance results/variance.

variance: the four figures and the table of experiment=variance, from its records.
ablation: score against budget per estimator, from the records of runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.drawing import COLOURS, STYLE, ablation_figure, panels, save
from experiments.errors import UserError
from experiments.tables import aggregate, load_runs
from experiments.variance_data import (
    error_frame,
    geometric_mean,
    layer_type,
    load_probes,
    winner_frame,
)

BUDGET = 0.3  # where a figure shows one budget only


def winner_mass_figure(probes: dict[str, list[dict[str, Any]]]) -> Any:
    """P_c against c / n per layer type, true weights, last probe; and Theorem 2's line c / k."""

    def draw(axis: Axes, task: str) -> None:
        curves: dict[str, list[list[float]]] = {}
        for name, curve in probes[task][-1]["winner_mass"].items():
            curves.setdefault(layer_type(name), []).append(curve)
        for name, group in curves.items():
            mean = np.mean(group, axis=0)
            share = np.linspace(0, 1, len(mean) + 1)
            axis.plot(share, [0, *mean], label=name)
        axis.plot([0, BUDGET], [0, 1], "k--", lw=1, label=f"c / k at budget {BUDGET:g}")
        axis.set_xlabel("winners, share of valid rows c / n")
        axis.set_xlim(0, 1)

    return panels(list(probes), draw, "probability mass of winners $P_c$")


def budget_figure(errors: pd.DataFrame) -> Any:
    """Error against budget per estimator, source auto, last probe.

    k counts padding too, so a large budget can keep every valid row: that is exact, and no point.
    """
    last = errors[(errors["source"] == "auto") & errors["is_last"]]

    def draw(axis: Axes, task: str) -> None:
        for estimator, rows in last[last["task"] == task].groupby("estimator", sort=False):
            means = rows.groupby("budget")["error"].apply(geometric_mean)
            dashed = "--" if estimator == "deterministic" else "-"
            label = f"{estimator} (bias²)" if estimator == "deterministic" else estimator
            axis.plot(
                means.index, means, dashed, marker="o", color=COLOURS.get(estimator), label=label
            )
        axis.set_yscale("log")
        axis.set_xlabel("budget k / n")

    return panels(sorted(last["task"].unique()), draw, "relative squared error of dW")


def source_figure(errors: pd.DataFrame) -> Any:
    """Error by source in the first and the last epoch that were probed, wtacrs and pps."""
    rows = errors[(errors["budget"] == BUDGET) & (errors["is_first"] | errors["is_last"])]
    sources = list(dict.fromkeys(rows["source"]))
    bars = [(e, first) for e in ("wtacrs", "pps") for first in (True, False)]

    def draw(axis: Axes, task: str) -> None:
        for at, (estimator, first) in enumerate(bars):
            chosen = rows[(rows["task"] == task) & (rows["estimator"] == estimator)]
            chosen = chosen[chosen["is_first"] if first else chosen["is_last"]]
            means = chosen.groupby("source")["error"].apply(geometric_mean).reindex(sources)
            epoch = chosen["epoch"].iloc[0]
            axis.bar(
                np.arange(len(sources)) + (at - 1.5) * 0.2,
                means,
                width=0.2,
                color=COLOURS[estimator],
                alpha=0.45 if first else 1.0,
                label=f"{estimator}, epoch {epoch}",
            )
        axis.set_yscale("log")
        axis.set_xticks(range(len(sources)), sources, rotation=60, ha="right")
        axis.set_xlabel("source of gradient norms")

    tasks = sorted(rows["task"].unique())
    return panels(tasks, draw, f"relative squared error of dW\nat budget {BUDGET:g}")


def winners_figure(winners: pd.DataFrame, errors: pd.DataFrame) -> Any:
    """Share of the k slots that go to winners, against budget, by source, last probe.

    Budgets that keep every valid row are left out: there is nothing to win.
    """
    drawn = errors.loc[errors["is_last"], ["task", "budget"]]
    last = winners[winners["is_last"] & winners["source"].isin(["none", "position", "auto"])]
    last = last.merge(drawn.drop_duplicates())

    def draw(axis: Axes, task: str) -> None:
        for source, rows in last[last["task"] == task].groupby("source", sort=False):
            means = rows.groupby("budget")["share"].mean()
            axis.plot(means.index, means, marker="o", label=source)
        axis.set_ylim(0, 1)
        axis.set_xlabel("budget k / n")

    return panels(sorted(last["task"].unique()), draw, "winners, share of kept rows c / k")


def variance_table(errors: pd.DataFrame) -> str:
    """Markdown: geometric mean of the error per layer type, source auto, budget 0.3, last probe."""
    chosen = errors[(errors["source"] == "auto") & (errors["budget"] == BUDGET) & errors["is_last"]]
    chosen = pd.concat([chosen, chosen.assign(layer_type="all")])
    estimators = list(dict.fromkeys(chosen["estimator"]))
    groups = chosen.groupby(["task", "layer_type", "estimator"], sort=False)["error"]
    table = groups.apply(geometric_mean).unstack()[estimators].map("{:.2g}".format)
    n = groups.size().unstack()[estimators[0]].astype(str)
    table.insert(0, "layers", n)
    return table.reset_index().to_markdown(index=False, disable_numparse=True) + "\n"


def probe_table(errors: pd.DataFrame) -> str:
    """Markdown: geometric mean of the error over all layers at each probe, budget 0.3.

    Columns are estimators with the source auto, and wtacrs with the source none.
    """
    chosen = errors[(errors["budget"] == BUDGET) & errors["source"].isin(["auto", "none"])]
    chosen = chosen[(chosen["source"] == "auto") | (chosen["estimator"] == "wtacrs")]
    column = chosen["estimator"] + chosen["source"].map({"auto": "", "none": ", none"})
    groups = chosen.assign(column=column).groupby(["task", "step", "epoch", "column"])["error"]
    table = groups.apply(geometric_mean).unstack().map("{:.3g}".format)
    return table.reset_index().to_markdown(index=False, disable_numparse=True) + "\n"


def variance(folder: Path, output: Path) -> None:
    """All that experiment=variance shows."""
    probes = load_probes(folder)
    errors, winners = error_frame(probes), winner_frame(probes)
    save(winner_mass_figure(probes), output / "figures" / "variance_winner_mass")
    save(budget_figure(errors), output / "figures" / "variance_budget")
    save(source_figure(errors), output / "figures" / "variance_source")
    save(winners_figure(winners, errors), output / "figures" / "variance_winners")
    table = output / "tables" / "variance.md"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(variance_table(errors))
    print(table)
    probes_table = table.with_name("variance_probes.md")
    probes_table.write_text(probe_table(errors))
    print(probes_table)


def ablation(folder: Path, output: Path) -> None:
    """The figure of experiment=ablation."""
    save(ablation_figure(aggregate(load_runs(folder))), output / "figures" / "ablation")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = {"variance": variance, "ablation": ablation}
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("records", type=Path)
    parser.add_argument("--output", type=Path, default=Path("results"))
    options = parser.parse_args(arguments)
    try:
        with plt.rc_context(STYLE):
            kinds[options.kind](options.records, options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
