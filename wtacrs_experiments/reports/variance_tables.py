"""The tables of experiment=variance, in Markdown: what its figures show, in numbers."""

from __future__ import annotations

import math

import pandas as pd

from wtacrs_experiments.reports.variance_data import RUN, label
from wtacrs_experiments.words import MISSING

BUDGETS = (0.1, 0.3)
STATISTICS = ("total", "mean", "largest", "geometric")
RATIOS = (("pps", "pps/lowrank"), ("wtacrs", "pps/lowrank"))
ABOUT_ERRORS = """
Expected squared error of dW, relative to ||dW||², source auto. total: sum of the squared errors of
all layers over the sum of their ||dW||²; mean, largest: over layers; geometric: geometric mean over
the layers that no method estimates exactly, their number at the last probe in brackets. last: the
last probe; all: averaged over the probes, save those whose valid rows all fit into the budget,
where every method is exact (their number, of all, at the end). MISSING: a mean over nothing.
"""
ABOUT_PROBES = """
Total of the squared errors of all layers over the total of their ||dW||², source auto, and ratios
of these totals; 0 where the budget keeps every valid row. MISSING: not measured, or nothing to
divide by.
"""


def variance_table(errors: pd.DataFrame) -> str:
    """The error of each method at ``BUDGETS``, at the last probe and averaged over those that draw.

    Args:
        errors: as ``wtacrs_experiments.reports.variance_data.summarise`` gives it.
    """
    chosen = errors[(errors["source"] == "auto") & errors["budget"].isin(BUDGETS)]
    keys = [RUN, "budget", "method"]
    last = chosen[chosen["is_last"]].set_index(keys)
    groups = chosen[chosen["drawn"]].groupby(keys, sort=False)[list(STATISTICS)]
    means = groups.agg(lambda values: values.mean(skipna=False)).reindex(last.index)
    probes = chosen.groupby(keys, sort=False)["drawn"].size().reindex(last.index)
    drawn = chosen.groupby(keys, sort=False)["drawn"].sum().reindex(last.index)
    table = pd.DataFrame(
        {
            "layers": [f"{n} ({m})" for n, m in zip(last["layers"], last["inexact"], strict=True)],
            **{f"{name}, last": last[name].map(_cell) for name in STATISTICS},
            **{f"{name}, all": means[name].map(_cell) for name in STATISTICS},
            "probes": [f"{n} of {m}" for n, m in zip(drawn, probes, strict=True)],
        },
        index=last.index,
    )
    return _markdown(table) + ABOUT_ERRORS.replace("MISSING", MISSING)


def probe_table(errors: pd.DataFrame) -> str:
    """The total of each method at each probe, and how many times pps/lowrank lies below others."""
    chosen = errors[(errors["source"] == "auto") & errors["budget"].isin(BUDGETS)]
    table = chosen.pivot(index=[RUN, "budget", "step", "epoch"], columns="method", values="total")
    table = table.reindex(columns=chosen["method"].unique())
    ratios = {}
    for above, below in RATIOS:
        pair = table.reindex(columns=[above, below])
        ratios[f"{above} ÷ {below}"] = (pair[above] / pair[below]).map("{:.2f}".format)
    table = table.map(_cell).assign(**ratios).replace(["nan", "inf"], MISSING)
    return _markdown(table.rename_axis(columns=None)) + ABOUT_PROBES.replace("MISSING", MISSING)


def _cell(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if math.isfinite(value) else MISSING


def _markdown(table: pd.DataFrame) -> str:
    """With the index as first columns; numbers to the right."""
    text = table.rename(columns=label).reset_index()
    if "method" in text:
        text["method"] = text["method"].map(label)
    alignment = ["left" if name in (RUN, "method") else "right" for name in text]
    return text.to_markdown(index=False, disable_numparse=True, colalign=alignment) + "\n"
