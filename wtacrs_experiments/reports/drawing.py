"""What the project's figures share: colours, style, panels, files; and the figure of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from wtacrs_experiments.words import scale

LOOKS = {  # Okabe and Ito's colours, told apart by most colour-blind readers; and a marker
    "full": ("#000000", "None"),  # a line across
    "uniform": ("#999999", "s"),
    "crs": ("#E69F00", "^"),
    "deterministic": ("#CC79A7", "X"),
    "wtacrs": ("#0072B2", "o"),
    "wtacrs_exact": ("#000000", "P"),
    "pps": ("#009E73", "D"),
    "pps/classes": ("#56B4E9", "v"),
    "pps/lowrank": ("#D55E00", "*"),
}
DODGE = 4  # points between estimators at one budget: their spreads must not cover each other
STYLE: dict[Any, Any] = {  # which matplotlib types as a choice of 300 names
    "svg.hashsalt": "wtacrs",  # the same records give the same bytes
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 10,
    "legend.frameon": False,
}


def save(figure: Any, path: Path) -> None:
    """Write ``path``.svg and ``path``.png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), bbox_inches="tight", dpi=120)
    plt.close(figure)
    print(path.with_suffix(".svg"))


def looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Method -> how to plot it: colour, marker and line, no two alike; a biased one is dashed.

    A method without a look of its own takes one that is free in this figure.
    """
    methods = list(dict.fromkeys(methods))
    free = [look for name, look in LOOKS.items() if name not in (*methods, "full")]
    strangers = (method for method in methods if method not in LOOKS)
    given = LOOKS | dict(zip(strangers, cycle(free), strict=False))
    return {
        method: {
            "color": given[method][0],
            "marker": given[method][1],
            "markersize": 9 if given[method][1] == "*" else 6,
            "linestyle": "--" if method.startswith("deterministic") else "-",
        }
        for method in methods
    }


def panels(names: list[str], draw: Callable[[Axes, str], None], label: str) -> Any:
    """One panel a name, two or three a row, with the same axes; one legend at the right."""
    columns = 2 if len(names) == 4 else min(len(names), 3)
    rows = -(-len(names) // columns)
    size = (4 * columns + 1.6, 3.4 * rows + 0.2)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    used, unused = axes.flat[: len(names)], axes.flat[len(names) :]
    for place, (axis, name) in enumerate(zip(used, names, strict=True)):
        draw(axis, name)
        axis.set_title(name)
        if place + columns < len(names):
            axis.set_xlabel("")
        else:  # nothing below it
            axis.tick_params(labelbottom=True)
    for axis in unused:
        axis.remove()
    figure.supylabel(label, fontsize="medium")
    legend_of_all(used, figure)
    return figure


def legend_of_all(axes: Any, figure: Any = None, above: bool = False) -> None:
    """One legend of what any of ``axes`` shows, at the right of the last or of the ``figure``, or
    ``above`` that."""
    shown: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    if above:
        figure.legend(shown.values(), shown, loc="outside upper center", ncols=len(shown))
    elif figure is not None:
        figure.legend(shown.values(), shown, loc="outside right center")
    else:
        axes[-1].legend(shown.values(), shown, loc="center left", bbox_to_anchor=(1.02, 0.5))


def ablation_figure(table: pd.DataFrame) -> Any:
    """Score against budget, mean and standard deviation over seeds; full as a line.

    One panel a task, each with its own metric and scale.

    Args:
        table: as ``wtacrs_experiments.reports.runs.aggregate`` gives it.
    """
    look = looks(table["estimator"])
    tasks = sorted(table["task"].unique())
    figure, axes = plt.subplots(1, len(tasks), figsize=(4 * len(tasks) + 1.6, 3.8), squeeze=False)
    figure.subplots_adjust(wspace=0.3)
    for axis, task in zip(axes[0], tasks, strict=True):
        rows = table[table["task"] == task]
        metric = rows["metric"].iloc[0]
        times, _ = scale(metric)
        rows = rows.assign(score=times * rows["score"], score_std=times * rows["score_std"])
        _baseline(axis, rows[(rows["estimator"] == "full") & (rows["memory"] == "plain")])
        sampled = rows[rows["estimator"] != "full"]
        lines = [*sampled.groupby(["estimator", "memory"], sort=False)]
        for place, ((estimator, memory), line) in enumerate(lines):
            usual = memory == "linear"
            _scores(
                axis,
                line,
                DODGE * (place - (len(lines) - 1) / 2),
                label=estimator if usual else f"{estimator}, {memory}",
                **look[estimator] | ({} if usual else {"linestyle": ":"}),
            )
        seeds = sorted({int(rows["n"].min()), int(rows["n"].max())})
        models = ", ".join(sorted(rows["model"].unique()))
        axis.set_title(f"{task} · {models} (n = {' to '.join(map(str, seeds))})")
        hundred = " × 100" if times == 100 else ""
        axis.set_ylabel(f"{metric.replace('_', ' ')}{hundred}, best epoch")
        budget_axis(axis, rows.loc[rows["estimator"] != "full", "budget"])
    legend_of_all(axes[0])
    return figure


def _baseline(axis: Axes, full: pd.DataFrame) -> None:
    for mean, spread in zip(full["score"], full["score_std"].fillna(0), strict=True):
        axis.axhline(mean, color=LOOKS["full"][0], lw=1, label="full")
        axis.axhspan(mean - spread, mean + spread, color=LOOKS["full"][0], alpha=0.1)


def _scores(axis: Axes, line: pd.DataFrame, points: float, **look: Any) -> None:
    """Mean and spread of one method, drawn ``points`` to the right of its budgets."""
    mean, spread = line["score"], line["score_std"].fillna(0)
    bars(axis, line["budget"], mean, (mean - spread, mean + spread), points, capsize=3, **look)


def bars(axis: Axes, x: Any, y: Any, ends: tuple[Any, Any], points: float, **look: Any) -> None:
    """A line with a bar from one of ``ends`` to the other at each point, ``points`` to the right.

    The data stay where they are: the bars of two lines must not cover each other, no more.
    """
    dodge = ScaledTranslation(points / 72, 0, axis.figure.dpi_scale_trans)
    spread = (y - ends[0], ends[1] - y)
    axis.errorbar(x, y, spread, transform=axis.transData + dodge, **look)
    for end in ends:  # an offset in points does not enter the limits
        axis.update_datalim([*zip(x, end, strict=True)])


def budget_axis(axis: Axes, budgets: Iterable[float]) -> None:
    """Ticks at the budgets alone."""
    budgets = sorted(set(budgets))
    axis.set_xlabel("budget k / n")
    axis.xaxis.set_major_locator(FixedLocator(budgets))
    axis.xaxis.set_major_formatter(FixedFormatter([f"{budget:g}" for budget in budgets]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(x=0.15)
