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
from matplotlib.transforms import ScaledTranslation

COLOURS = {  # Okabe and Ito's, told apart by most colour-blind readers
    "full": "#000000",
    "uniform": "#999999",
    "crs": "#E69F00",
    "deterministic": "#CC79A7",
    "wtacrs": "#0072B2",
    "pps": "#009E73",
}
DODGE = 4  # points between estimators at one budget: their spreads must not cover each other
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
        _baseline(axis, rows[rows["estimator"] == "full"])
        lines = [*rows[rows["estimator"] != "full"].groupby("estimator", sort=False)]
        for place, (estimator, line) in enumerate(lines):
            _scores(axis, str(estimator), line, DODGE * (place - (len(lines) - 1) / 2))
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


def _baseline(axis: Axes, full: pd.DataFrame) -> None:
    for mean, spread in zip(100 * full["best"], 100 * full["best_std"].fillna(0), strict=True):
        axis.axhline(mean, color=COLOURS["full"], lw=1, label="full")
        axis.axhspan(mean - spread, mean + spread, color=COLOURS["full"], alpha=0.1)


def _scores(axis: Axes, estimator: str, line: pd.DataFrame, points: float) -> None:
    """Mean and spread of one estimator, drawn ``points`` to the right of its budgets."""
    dodge = ScaledTranslation(points / 72, 0, axis.figure.dpi_scale_trans)
    mean, spread = 100 * line["best"], 100 * line["best_std"].fillna(0)
    axis.errorbar(
        line["budget"],
        mean,
        spread,
        marker="o",
        capsize=3,
        color=COLOURS.get(estimator),
        label=estimator,
        transform=axis.transData + dodge,
    )
    for end in (mean - spread, mean + spread):  # an offset in points does not enter the limits
        axis.update_datalim([*zip(line["budget"], end, strict=True)])
