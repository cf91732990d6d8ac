"""The figures of planned memory, from the records of ``experiments.plan.published``.

memory: of what the peak is made, per method, for the settings of Table 2.
batches: the peak against the batch size, and the largest batch in 24, 40 and 80 GiB, per method,
with parameters, gradients and optimizer state in bf16.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.records.planned import FULL, Planned
from experiments.words import AT_PEAK, GIB

Record = dict[str, Any]

PARTS = {  # at the peak; Okabe and Ito's colours
    "parameter": "#000000",
    "optimizer": "#999999",
    "gradient": "#E69F00",
    "saved": "#0072B2",
    "temporary": "#56B4E9",
}
COLOURS = {  # the methods of the figure about batches; what has no plan is left out
    FULL: "#000000",
    "LoRA": "#999999",
    "checkpoint": "#CC79A7",
    "WTA-CRS@0.3": "#56B4E9",
    "LoRA+WTA-CRS@0.1": "#0072B2",
    "lean@0.3": "#E69F00",
    "LoRA+lean@0.1": "#D55E00",
    "leanest@0.3": "#009E73",
}
FITS = ("24GiB", "40GiB", "80GiB")


def memory_figure(records: Planned) -> Any:
    """A bar a method, stacked by what is alive at the peak; one panel a model."""
    figure, axes = plt.subplots(1, len(records), figsize=(11, 5.2), sharey=True)
    for axis, (model, methods) in zip(axes, records.items(), strict=True):
        place, left = np.arange(len(methods)), np.zeros(len(methods))
        for part, colour in PARTS.items():
            width = np.array([r["memory"]["at_peak"][part] / GIB for r in methods.values()])
            axis.barh(place, width, left=left, color=colour, label=AT_PEAK[part])
            left += width
        full = methods[FULL]["memory"]["peak_bytes"]
        for y, record in enumerate(methods.values()):
            peak = record["memory"]["peak_bytes"]
            text = f" {peak / GIB:.1f} ({full / peak:.1f}×)"
            axis.text(peak / GIB, y, text, va="center", fontsize=8)
        axis.set_title(model)
        axis.set_xlabel("alive at the peak, GiB (full / peak)")
        axis.set_yticks(place, methods)
        axis.set_xlim(0, 1.25 * full / GIB)
        axis.grid(axis="y", visible=False)
        axis.set_axisbelow(True)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(PARTS))
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    return figure


def batch_figure(records: Planned) -> Any:
    """Above, peak against batch size with the memories as lines; below, the largest batches."""
    figure, axes = plt.subplots(2, len(records), figsize=(11, 8))
    shown: dict[str, Any] = {}
    for column, (model, methods) in zip(axes.T, records.items(), strict=True):
        _curves(column[0], methods)
        _bars(column[1], methods)
        column[0].set_title(f"{model}, parameters and optimizer in bf16")
        handles, labels = column[0].get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    figure.legend(shown.values(), shown, loc="upper center", ncols=4)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    return figure


def _curves(axis: Axes, methods: dict[str, Record]) -> None:
    """Lines through all that was planned, with a point at each largest batch alone."""
    for method, record in methods.items():
        peaks = {int(b): peak / GIB for b, peak in record["peak_bytes_by_batch"].items()}
        largest = {b: peaks[b] for b in record["largest_batch"].values() if b}
        axis.plot(*zip(*peaks.items(), strict=True), color=COLOURS[method], label=method)
        if largest:
            axis.plot(*zip(*largest.items(), strict=True), "o", ms=4, color=COLOURS[method])
    for fits in FITS:
        gib = float(fits.removesuffix("GiB"))
        axis.axhline(gib, color="black", lw=0.8, ls=":")
        axis.text(1, gib, f"{gib:g} GiB", fontsize=8, va="bottom")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylim(0, 85)
    axis.set_xlabel("batch size, samples of 128 tokens")
    axis.set_ylabel("peak, GiB")


def _bars(axis: Axes, methods: dict[str, Record]) -> None:
    width = 0.8 / len(methods)
    for at, (method, record) in enumerate(methods.items()):
        largest = [record["largest_batch"][fits] for fits in FITS]
        places = np.arange(len(FITS)) + (at - (len(methods) - 1) / 2) * width
        bars = axis.bar(places, largest, width=width, color=COLOURS[method])
        axis.bar_label(bars, fontsize=7, rotation=90, padding=2)
    axis.set_xticks(range(len(FITS)), [fits.replace("G", " G") for fits in FITS])
    axis.set_xlabel("memory")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("largest batch that fits")
    axis.margins(y=0.15)
    axis.grid(axis="x", visible=False)
    axis.set_axisbelow(True)
