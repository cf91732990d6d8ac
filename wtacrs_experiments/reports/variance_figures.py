"""The figures of experiment=variance: error of dW against budget, its course, and the winners."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from wtacrs_experiments.reports.drawing import bars, budget_axis, looks, panels
from wtacrs_experiments.reports.variance_data import RUN, SOURCES, Probes, layer_type

BUDGET = 0.3  # where a figure shows one budget only
METHOD = "wtacrs"  # where a figure shows one method only
DODGE = 5.5  # points between methods at one budget
TOTAL = "total squared error of dW / total ||dW||²"
# An average of gradients with weights proportional to beta^i, as Adam's momentum is, has
# (1 - beta) / (1 + beta) of the variance of one if draws are independent, and a bias that is
# the same in each.
BETA = 0.9
INDEPENDENT = round((1 + BETA) / (1 - BETA))
AVERAGED = f"{METHOD} / {INDEPENDENT}: averaged\nby momentum {BETA:g}"
UNBIASED = "Unbiased: all variance,\naverages out"
BIASED = "Biased: all bias²,\nstays in any average"
INPUT_LOOKS = (
    *(("#E69F00", "-"), ("#CC79A7", "--"), ("#009E73", "-."), ("#0072B2", ":")),
    *(("#D55E00", "-"), ("#56B4E9", "--")),
)
SOURCE_LOOKS = {
    **{"none": ("#999999", "s"), "position": ("#E69F00", "^"), "auto": ("#0072B2", "o")},
    "oracle": ("#009E73", "D"),
}


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

    Only probes that draw, and only budgets at which every method errs in every run: an exact one,
    whose valid rows all fit into the budget, has no place on a logarithmic axis. What an average
    over steps leaves of ``METHOD`` shows why the least error of one step is not the best.
    """
    chosen = errors[errors["source"] == "auto"]
    idle = ~chosen.groupby([RUN, "budget"])["drawn"].transform("any")
    exact = idle | (chosen["drawn"] & (chosen["total"] == 0))
    chosen = chosen[chosen["drawn"] & ~chosen["budget"].isin(chosen.loc[exact, "budget"])]
    look = looks(sorted(chosen["method"].unique(), key=_is_biased))  # else in their order
    dodges = {method: DODGE * (at - (len(look) - 1) / 2) for at, method in enumerate(look)}

    def draw(axis: Axes, run: str) -> None:
        axis.set_xscale("log")
        axis.set_yscale("log")
        headed = set[bool]()
        for method in look:
            if (biased := _is_biased(method)) not in headed:
                axis.errorbar([], [], fmt=" ", label=BIASED if biased else UNBIASED)
                headed.add(biased)
            rows = chosen[(chosen[RUN] == run) & (chosen["method"] == method)]
            totals = rows.groupby("budget")["total"].agg(["mean", "min", "max"]).reset_index()
            ends = totals["min"], totals["max"]
            named = {"label": method, "elinewidth": 1, **look[method], "markersize": 5}
            bars(axis, totals["budget"], totals["mean"], ends, dodges[method], **named)
            if method == METHOD:
                left, colour = totals["mean"] / INDEPENDENT, look[method]["color"]
                axis.errorbar(totals["budget"], left, fmt=":", color=colour, label=AVERAGED)
        budget_axis(axis, chosen["budget"])

    names = [*errors[RUN].unique()]
    return panels(names, draw, f"{TOTAL}\nmean and range over the probes of one run")


def _is_biased(method: str) -> bool:
    return method.startswith("deterministic")


def source_figure(errors: pd.DataFrame) -> Any:
    """Total error of ``METHOD`` at each probe of the training, a line a source."""
    rows = errors[(errors["budget"] == BUDGET) & (errors["method"] == METHOD)]
    epochs: dict[int, set[str]] = {}
    for step, epoch in zip(errors["step"], errors["epoch"], strict=True):
        epochs.setdefault(step, set()).add(str(epoch))

    def draw(axis: Axes, run: str) -> None:
        for source, (colour, marker) in SOURCE_LOOKS.items():
            line = rows[(rows[RUN] == run) & (rows["source"] == source) & (rows["total"] > 0)]
            look: dict[str, Any] = {"color": colour, "marker": marker, "label": SOURCES[source]}
            axis.plot(line["step"], line["total"], **look)
        axis.set_yscale("log")
        steps = sorted(epochs)
        axis.set_xticks(steps, [f"{step}\n({'/'.join(sorted(epochs[step]))})" for step in steps])
        axis.set_xlabel("step (epoch)")

    what = f"{TOTAL}\n{METHOD} at budget {BUDGET:g}, by estimator.grad_norms"
    return panels([*errors[RUN].unique()], draw, what)


def winners_figure(winners: pd.DataFrame, errors: pd.DataFrame) -> Any:
    """Share of the k slots that go to winners, against budget, by source, last probe.

    Budgets that keep every valid row are left out: there is nothing to win.
    """
    drawn = errors.loc[errors["is_last"] & errors["drawn"], [RUN, "budget"]]
    last = winners[winners["is_last"] & winners["source"].isin({*SOURCE_LOOKS} - {"oracle"})]
    last = last.merge(drawn.drop_duplicates())

    def draw(axis: Axes, run: str) -> None:
        for source, rows in last[last[RUN] == run].groupby("source", sort=False):
            means = rows.groupby("budget")["share"].mean()
            colour, marker = SOURCE_LOOKS[str(source)]
            axis.plot(means.index, means, color=colour, marker=marker, label=SOURCES[str(source)])
        axis.set_ylim(0, 1)
        budget_axis(axis, last["budget"])

    return panels([*errors[RUN].unique()], draw, "winners, share of kept rows c / k")
