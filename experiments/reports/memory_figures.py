"""Plans -> figures, SVG and PNG: python -m experiments.reports.memory_figures batch, or memory.

memory: of what the peak is made, per method, for the settings of ``experiments.reports.table2``.
batch: the peak against the batch size, and the largest batch in 24, 40 and 80 GiB, per method, with
parameters, gradients and optimizer state in bf16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.errors import UserError
from experiments.plan.kept import Record, kept_batches, planned_batches
from experiments.reports.drawing import STYLE, save
from experiments.reports.table2 import FULL, METHODS, plan_all
from experiments.words import AT_PEAK, GIB

PARTS = {  # at the peak; Okabe and Ito's colours
    "parameter": "#000000",
    "optimizer": "#999999",
    "gradient": "#E69F00",
    "saved": "#0072B2",
    "temporary": "#56B4E9",
}
MODELS = {"T5-Large": "t5_large", "T5-3B": "t5_3b"}
COLOURS = {  # the methods of the figure about batches
    FULL: "#000000",
    "LoRA": "#999999",
    "checkpoint": "#CC79A7",
    "WTA-CRS@0.3": "#56B4E9",
    "LoRA+WTA-CRS@0.1": "#0072B2",
    "lean@0.3": "#E69F00",
    "LoRA+lean@0.1": "#D55E00",
}
FITS = ("24GiB", "40GiB", "80GiB")
SIZE = ("batch_size=32", "max_length=128", "target_length=2", "precision=bf16", "device=cuda")


def memory_figure(records: dict[str, dict[str, Record]]) -> Any:
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


def batch_figure(records: dict[str, dict[str, Record]]) -> Any:
    """Above, peak against batch size with the memories as lines; below, the largest batches."""
    figure, axes = plt.subplots(2, len(records), figsize=(11, 8))
    for column, (model, methods) in zip(axes.T, records.items(), strict=True):
        _curves(column[0], methods)
        _bars(column[1], methods)
        column[0].set_title(f"{model}, parameters and optimizer in bf16")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    return figure


def _curves(axis: Axes, methods: dict[str, Record]) -> None:
    for method, record in methods.items():
        points = {int(b): peak / GIB for b, peak in record["peak_bytes_by_batch"].items()}
        axis.plot(
            *zip(*points.items(), strict=True), marker=".", color=COLOURS[method], label=method
        )
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


def plan_batches(folder: Path, overwrite: bool) -> dict[str, dict[str, Record]]:
    """Model -> method -> record of its peaks by batch size."""

    def make(overrides: Sequence[str]) -> Record:
        return planned_batches(overrides, FITS, folder, overwrite)

    return _for_all(make)


def read_batches(folder: Path) -> dict[str, dict[str, Record]]:
    """The same, of what has a record: a method without one is missing.

    Raises:
        UserError: a model has none.
    """
    records = _for_all(lambda overrides: kept_batches(overrides, folder))
    for title, methods in records.items():
        if not methods:
            raise UserError(
                f"{folder} holds no batch sizes of {title}; plan them: make figure-batch"
            )
    return records


def _for_all(record: Callable[[Sequence[str]], Record | None]) -> dict[str, dict[str, Record]]:
    found = {
        title: {m: record((f"model={model}", *SIZE, *METHODS[m])) for m in COLOURS}
        for title, model in MODELS.items()
    }
    return {title: {m: r for m, r in rs.items() if r is not None} for title, rs in found.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reports.memory_figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = {"memory": (plan_all, memory_figure), "batch": (plan_batches, batch_figure)}
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--records", type=Path, default=Path("results/plan"))
    parser.add_argument("--output", type=Path, default=Path("results/figures"))
    parser.add_argument("--overwrite", action="store_true", help="plan again what has a record")
    parser.add_argument("--recorded", action="store_true", help="batch: draw what has a record")
    options = parser.parse_args(arguments)
    make, draw = kinds[options.kind]
    try:
        if options.recorded and options.kind == "batch":
            records = read_batches(options.records)
        else:
            records = make(options.records, options.overwrite)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with plt.rc_context(STYLE):
        name = "memory_breakdown" if options.kind == "memory" else "memory_batch"
        save(draw(records), options.output / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
