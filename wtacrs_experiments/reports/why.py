"""The picture of README: peak against operations, time of a step, and scores, with what they cost.

Left, planned: a step of one decoder, from ``results/plan``. Middle, measured: time of a step beside
full's, from ``results/bench``. Right: differences of scores to full's, paired by seed, from
``results/table1``, ``results/ablation`` and ``results/centred``, and the same as a table. A method
with fewer than three seeds is left out; one that loses is not. The estimators that these two are
held against, crs, uniform and deterministic, stand in the table of the ablation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.planned import FULL, read_planned
from wtacrs_experiments.records.shape import parse
from wtacrs_experiments.reports.drawing import STYLE, save
from wtacrs_experiments.reports.runs import GROUP, aggregate, load_runs
from wtacrs_experiments.reports.tables import display, markdown, note, splice
from wtacrs_experiments.words import GIB

MODEL, SIZE = "Llama-3.2-1B", "8 × 1,024"
# Of the methods that are planned: colour, marker and where the name stands, in points.
PLANNED: dict[str, tuple[str, str, tuple[int, int]]] = {
    FULL: ("#000000", "o", (6, 4)),
    "checkpoint": ("#CC79A7", "o", (-4, 7)),
    "checkpoint, our loss": ("#CC79A7", "D", (-48, -14)),
    "lean@0.3": ("#0072B2", "o", (7, 2)),
    "leanest@0.3": ("#009E73", "o", (-26, 8)),
    "LoRA": ("#000000", "s", (6, 4)),
    "LoRA+checkpoint": ("#CC79A7", "s", (7, -3)),
    "LoRA+checkpoint, our loss": ("#CC79A7", "D", (9, 0)),
    "LoRA+lean@0.3": ("#0072B2", "s", (7, -3)),
    "LoRA+leanest@0.3": ("#009E73", "s", (-10, -13)),
}
TIMED = {  # file -> model, colour, marker
    "memory_bert_base": ("BERT-Base", "#E69F00", "s"),
    "memory_t5_base": ("T5-Base", "#0072B2", "o"),
}
ROWS = ("linear, wtacrs@0.3", "lean, wtacrs@0.3", "leanest, wtacrs@0.3", "checkpoint")
SEEDS = 3  # at least
# Of a difference: not told apart or better, and worse.
BEST, WORSE = ("o", "#0072B2"), ("X", "#D55E00")
FOLDERS = ("table1", "ablation", "centred")  # of records, each named as the make that trains them
ESTIMATORS = ("full", "wtacrs", "pps", "pps/lowrank")


def shown_runs(results: Path) -> pd.DataFrame:
    """The runs of ``ESTIMATORS``, of each method that has at least ``SEEDS`` seeds.

    Raises:
        UserError: a folder holds no record.
    """
    chosen = []
    for folder in FOLDERS:
        runs = load_runs(results / folder).assign(folder=folder)
        runs = runs[runs["estimator"].isin(ESTIMATORS)]
        done = runs.assign(done=runs["seed"].where(runs["status"] == "completed"))
        seeds = done.groupby([*GROUP, "method", "budget", "memory"])["done"].transform("nunique")
        chosen.append(runs[seeds >= SEEDS])
    return pd.concat(chosen)


def read_times(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Model -> method -> time of a step beside full's: median, p10, p90 and n.

    Raises:
        UserError: a file is missing.
    """
    try:
        return {
            name: parse((folder / f"{file}.json").read_text(encoding="utf-8"))["ratio_to_full"]
            for file, (name, *_) in TIMED.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no times ({error}); make them: make bench") from error


def figure(planned: dict[str, Any], times: dict[str, Any], rows: pd.DataFrame) -> Any:
    """Three panels: what is planned of one model, times, and differences of scores."""
    drawn, axes = plt.subplots(
        1, 3, figsize=(11, 6.8), layout="constrained", width_ratios=(1.5, 0.75, 0.85)
    )
    _memory(axes[0], planned)
    _times(axes[1], times)
    _scores(axes[2], rows[rows["estimator"] != "full"])
    return drawn


def _memory(axis: Axes, methods: dict[str, Any]) -> None:
    full = methods[FULL]["flops"]
    for method, (colour, marker, offset) in PLANNED.items():
        if method not in methods:
            continue
        at = methods[method]["flops"] / full, methods[method]["memory"]["peak_bytes"] / GIB
        filled = "none" if method.startswith("LoRA") else colour
        axis.plot(*at, marker, color=colour, markerfacecolor=filled, ms=7)
        axis.annotate(method, at, offset, textcoords="offset points", fontsize=9, color=colour)
    axis.axvline(1, color="black", lw=0.8, ls=":")
    axis.set_xlim(0.62, 1.38)
    axis.set_ylim(0, None)
    axis.set_xlabel("operations of a step / full's")
    axis.set_ylabel("peak, GiB")
    axis.set_title(f"planned: {MODEL}, {SIZE}, bf16", fontsize=10)


def _times(axis: Axes, times: dict[str, Any]) -> None:
    for at, (model, colour, marker) in enumerate(TIMED.values()):
        for y, method in enumerate(ROWS):
            if (one := times[model].get(method)) is None:
                continue
            spread = [[one["median"] - one["p10"]], [one["p90"] - one["median"]]]
            label = f"{model}, n = {one['n']} pairs" if method == ROWS[-1] else None
            place = y + 0.24 * (at - 0.5)
            look: dict[str, Any] = {"fmt": marker, "color": colour, "label": label}
            axis.errorbar(one["median"], place, xerr=spread, **look)
    axis.axvline(1, color="black", lw=0.8, ls=":")
    axis.set_yticks(range(len(ROWS)), [row.replace(", wtacrs", "") for row in ROWS], fontsize=9)
    axis.set_ylim(len(ROWS) - 0.5, -0.5)
    axis.set_xlabel("time of a step / full's\nmedian, p10 to p90")
    axis.set_title("measured: two CPU cores", fontsize=10)
    axis.legend(loc="lower left", fontsize=8, handletextpad=0.1, borderaxespad=0)


def _scores(axis: Axes, rows: pd.DataFrame) -> None:
    names = []
    for y, row in enumerate(rows.to_dict("records")):
        mean, low, high = (100 * row[f"difference{end}"] for end in ("", "_low", "_high"))
        marker, colour = WORSE if row["against_full"] == "worse" else BEST
        axis.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt=marker, color=colour)
        method = f"{row['estimator']}@{row['budget']:g} {row['memory']}"
        names.append(f"{row['task']} {row['model']} ({row['folder']}), n = {row['n']}\n{method}")
    axis.axvline(0, color="black", lw=0.8, ls=":")
    axis.set_yticks(range(len(names)), names, fontsize=8.5)
    axis.invert_yaxis()
    axis.set_xlabel("score × 100 − full's\npaired by seed, 95 %")
    axis.set_title("measured: scores; ×: worse", fontsize=10)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as text: score, its difference to full's, the measured peak, and the target of make
    that trains them, which is the name of their folder."""
    kept = ["task", "model", "estimator", "memory", "score at best epoch", "n"]
    kept += ["score − full [95 %]", "against full", "full / peak"]
    return display(rows)[kept].assign(make=[*rows["folder"]])


def write(results: Path, output: Path, document: Path) -> None:
    """Draw the picture below ``output``, and put the table between the marks "why" of ``document``.

    Raises:
        UserError: records that are missing, or a document without marks.
    """
    planned = read_planned(results / "plan", "decoders")[f"{MODEL}, {SIZE}"]
    times, runs = read_times(results / "bench"), shown_runs(results)
    # A folder at a time: what full is held against is the full of the same folder.
    parts = runs.groupby("folder", sort=False)
    rows = pd.concat([aggregate(part).assign(folder=name) for name, part in parts])
    rows = rows.reset_index(drop=True)
    with plt.rc_context(STYLE):
        save(figure(planned, times, rows), output / "figures" / "why")
    splice(document, markdown(table(rows)) + note(runs), "why")
