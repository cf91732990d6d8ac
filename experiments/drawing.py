"""What the project's figures share: colours, style, panels, files; and the figure of scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

COLOURS = {  # Okabe and Ito's, told apart by most colour-blind readers
    "full": "#000000",
    "uniform": "#999999",
    "crs": "#E69F00",
    "deterministic": "#CC79A7",
    "wtacrs": "#0072B2",
    "pps": "#009E73",
}
DODGE = 0.004  # of a budget, between estimators: their spreads must not cover each other
STYLE = {
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


def panels(tasks: list[str], draw: Callable[[Axes, str], None], label: str) -> Any:
    """One panel a task, side by side, with one legend at the right."""
    width = 3.6 * len(tasks) + 1.6
    figure, axes = plt.subplots(1, len(tasks), figsize=(width, 3.4), sharey=True, squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        draw(axis, task)
        axis.set_title(task)
    axes[0][0].set_ylabel(label)
    legend_of_all(axes[0])
    return figure


def legend_of_all(axes: Any) -> None:
    """One legend at the right of the last of ``axes``, of what any of them shows."""
    shown = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    axes[-1].legend(shown.values(), shown, loc="center left", bbox_to_anchor=(1.02, 0.5))


def ablation_figure(table: pd.DataFrame) -> Any:
    """Score against budget, mean and standard deviation over seeds; full as a line.

    One panel a task, each with its own metric and scale.

    Args:
        table: as ``experiments.tables.aggregate`` gives it.
    """
    tasks = sorted(table["task"].unique())
    figure, axes = plt.subplots(1, len(tasks), figsize=(4 * len(tasks) + 1.6, 3.4), squeeze=False)
    figure.subplots_adjust(wspace=0.3)
    for axis, task in zip(axes[0], tasks, strict=True):
        rows = table[table["task"] == task]
        lines = [*rows.groupby("estimator", sort=False)]
        for place, (estimator, line) in enumerate(lines):
            _scores(axis, str(estimator), line, DODGE * (place - len(lines) / 2))  # full is first
        seeds = sorted({int(rows["n"].min()), int(rows["n"].max())})
        axis.set_title(f"{task} (n = {' to '.join(map(str, seeds))})")
        axis.set_ylabel(f"{rows['metric'].iloc[0].replace('_', ' ')} × 100, best epoch")
        axis.set_xlabel("budget k / n")
        budgets = rows.loc[rows["estimator"] != "full", "budget"].unique()
        axis.xaxis.set_major_locator(FixedLocator(sorted(budgets)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.margins(x=0.15)
    legend_of_all(axes[0])
    return figure


def _scores(axis: Axes, estimator: str, line: pd.DataFrame, shift: float) -> None:
    mean, spread = 100 * line["best"], 100 * line["best_std"].fillna(0)
    colour = COLOURS.get(estimator)
    if estimator != "full":
        axis.errorbar(
            line["budget"] + shift,
            mean,
            spread,
            marker="o",
            capsize=3,
            color=colour,
            label=estimator,
        )
        return
    axis.axhline(mean.iloc[0], color=colour, lw=1, label="full")
    low, high = (mean.iloc[0] + side * spread.iloc[0] for side in (-1, 1))
    axis.axhspan(low, high, color=colour, alpha=0.1)
