"""What a method costs and gives: score and time against peak memory, from records of runs."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from wtacrs_experiments.reports.drawing import LOOKS, legend_of_all, looks
from wtacrs_experiments.words import LOWER_IS_BETTER, MIB, scale

CHECKPOINT = {"color": "#D55E00", "marker": "s"}  # the rival: full under gradient checkpointing
BIASED = "deterministic"


def tradeoff_figure(table: pd.DataFrame) -> Any:
    """Two panels: score, mean and standard deviation over seeds, and time of a sample against full.

    Of a method at several budgets, the marks of all but the largest are hollow.

    Args:
        table: as ``reports.runs.aggregate`` gives it, of one task, model and tuning.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    figure.subplots_adjust(wspace=0.3)
    metric = table["metric"].iloc[0]
    times, _ = scale(metric)
    look = looks(table["estimator"])
    largest = table.groupby("estimator")["budget"].max()
    for _, row in table.iterrows():
        label, style = _shown(row, look)
        if row["budget"] < largest[row["estimator"]]:
            style["markerfacecolor"] = "none"
        x, spread = row["peak_bytes"] / MIB, times * row["score_std"]
        bar = None if pd.isna(spread) else [[spread], [spread]]
        axes[0].errorbar(x, times * row["score"], bar, capsize=3, label=label, **style)
        axes[1].plot(x, 1 / row["speed_ratio"], label=label, **style)
    axes[1].axhline(1, color=LOOKS["full"][0], lw=0.8)
    direction = "less is better" if metric in LOWER_IS_BETTER else "more is better"
    hundred = " × 100" if times == 100 else ""
    _finish(axes[0], f"{metric.replace('_', ' ')}{hundred}, best epoch\n({direction})")
    _finish(axes[1], "time of a step, full = 1")
    axes[1].set_ylim(bottom=0)
    seeds = sorted({int(table["n"].min()), int(table["n"].max())})
    names = ("task", "model", "tuning")
    what = " · ".join(str(table[name].iloc[0]) for name in names)
    figure.suptitle(f"{what} (n = {' to '.join(map(str, seeds))})", fontsize="medium")
    legend_of_all(axes)
    return figure


def _shown(row: pd.Series, look: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a method and how it is plotted."""
    preset = "" if row["memory"] in ("plain", "linear") else f", {row['memory']}"
    if row["estimator"] != "full":
        biased = " (biased control)" if row["estimator"].startswith(BIASED) else ""
        style = {**look[row["estimator"]], "linestyle": "none"}
        return f"{row['estimator']}@{row['budget']:g}{preset}{biased}", style
    style = CHECKPOINT if preset else {"color": LOOKS["full"][0], "marker": "o"}
    return f"full{preset}", {**style, "linestyle": "none"}


def _finish(axis: Axes, label: str) -> None:
    axis.set_ylabel(label)
    axis.set_xlabel("peak memory, MiB")
    axis.set_xlim(left=0)
