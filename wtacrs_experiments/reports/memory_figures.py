"""The figures of planned memory, from the records of ``wtacrs_experiments.plan.published``.

memory: of what the peak is made, per method, for the settings of Table 2.
batches: the largest batch in 24, 40 and 80 GiB, per method, with parameters, gradients and
optimizer state in bf16. The paper's values are marks.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from wtacrs_experiments.records.planned import FULL, Planned
from wtacrs_experiments.reports.drawing import legend_of_all
from wtacrs_experiments.reports.paper import LARGEST
from wtacrs_experiments.words import AT_PEAK, GIB

PARTS = {  # at the peak; Okabe and Ito's colours
    "parameter": "#000000",
    "optimizer": "#999999",
    "gradient": "#E69F00",
    "saved": "#0072B2",
    "temporary": "#56B4E9",
}
HATCHES = {"gradient": "////", "temporary": "...."}  # beside colours of about the same lightness
FITS = {"24GiB": ("#E69F00", "^"), "40GiB": ("#56B4E9", "s"), "80GiB": ("#0072B2", "o")}
STATE = "parameters, gradients and optimizer state"
PAPER_AT, PAPER_LABEL = "80GiB", "the paper's ratio to full"
PAPER_MARK: dict[str, Any] = {"marker": "D", "ms": 6, "mec": "black", "mfc": "white", "ls": "none"}


def memory_figure(records: Planned, paper: pd.DataFrame) -> Any:
    """A bar a method, stacked by what is alive at the peak; one panel a model.

    Args:
        paper: model, method, compression: a mark at full's peak over the paper's compression.
    """
    figure, axes = plt.subplots(
        1, len(records), figsize=(11, 5.2), sharey=True, squeeze=False, layout="constrained"
    )
    axes = axes[0]
    published = paper.set_index(["model", "method"])["compression"]
    for axis, (model, methods) in zip(axes, records.items(), strict=True):
        place, left = np.arange(len(methods)), np.zeros(len(methods))
        full = methods[FULL]["memory"]["peak_bytes"] / GIB
        for part, colour in PARTS.items():
            width = np.array([r["memory"]["at_peak"][part] / GIB for r in methods.values()])
            look: dict[str, Any] = {"color": colour, "hatch": HATCHES.get(part), "lw": 0}
            axis.barh(place, width, left=left, edgecolor="white", label=AT_PEAK[part], **look)
            left += width
        for y, (method, record) in enumerate(methods.items()):
            peak = record["memory"]["peak_bytes"] / GIB
            end = peak
            if method != FULL and (model, method) in published.index:
                end = max(peak, full / published[model, method])
                axis.plot(full / published[model, method], y, label=PAPER_LABEL, **PAPER_MARK)
            text = f"{peak:.1f} ({full / peak:.1f}×)"
            axis.annotate(text, (end, y), (7, 0), textcoords="offset points", va="center", size=8)
        axis.set_title(model)
        axis.set_xlabel("alive at the peak, GiB (full / peak)")
        axis.set_yticks(place, methods)
        axis.set_xlim(0, 1.25 * full)
        axis.grid(axis="y", visible=False)
        axis.set_axisbelow(True)
    axes[0].invert_yaxis()
    legend_of_all(axes, figure, above=True)
    return figure


def batch_figure(records: Planned) -> Any:
    """The largest batch in each memory, a row a method, least first; one panel a model.

    The paper's mark: full's largest batch here times the ratio of the paper's largest batches.
    """
    heights = [len(methods) + 1 for methods in records.values()]
    size = (8.5, 0.36 * sum(heights) + 1.2)
    figure, axes = plt.subplots(
        len(records),
        1,
        figsize=size,
        sharex=True,
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for axis, (model, methods) in zip(axes[:, 0], records.items(), strict=True):
        _batches(axis, model, {method: methods[method]["largest_batch"] for method in methods})
        axis.set_title(f"{model}, 128 tokens, {STATE} in bf16", fontsize="medium")
    axes[-1, 0].set_xlabel("largest batch that fits, samples")
    legend_of_all(axes[:, 0], figure, above=True)
    return figure


def _batches(axis: Axes, model: str, largest: dict[str, dict[str, int]]) -> None:
    named = sorted(largest, key=lambda method: largest[method][PAPER_AT])
    for y, method in enumerate(named):
        found = {fits: largest[method][fits] for fits in FITS if largest[method][fits]}
        axis.plot([*found.values()], [y] * len(found), color="#999999", lw=1, zorder=1)
        for fits, batch in found.items():
            colour, marker = FITS[fits]
            axis.plot(batch, y, marker, color=colour, label=fits.replace("G", " G"))
            above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "size": 7}
            axis.annotate(f"{batch:,}", (batch, y), (0, 5), **above)
        theirs = LARGEST.get(model, {})
        if method != FULL and method in theirs:
            ratio = theirs[method] / theirs[FULL]
            label = f"{PAPER_LABEL}, in {PAPER_AT.replace('G', ' G')}"
            axis.plot(ratio * largest[FULL][PAPER_AT], y, label=label, **PAPER_MARK)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.set_yticks(range(len(named)), named)
    axis.set_ylim(-0.6, len(named) - 0.2)
    axis.grid(axis="y", visible=False)
