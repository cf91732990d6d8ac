"""Which epoch's score counts, and on which rows.

Two protocols, both in every record. **paper**: the best epoch on the whole validation split. It is
picked on the rows that it is reported on, so it flatters, and flatters most where the score is
noisy. **held_out**: validation is halved once, by a fixed seed; the epoch that is best on one half
is reported on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wtacrs_experiments.run import metrics
from wtacrs_experiments.words import LOWER_IS_BETTER

HALVING_SEED = 0
PICKING, REPORTING = "picking_half", "reporting_half"


def halves(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the half that picks the epoch and of the half that reports it, sorted."""
    order = np.random.default_rng(HALVING_SEED).permutation(rows)
    return np.sort(order[: rows // 2]), np.sort(order[rows // 2 :])


def scores(names: Sequence[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``metrics.compute`` over all rows, and the first metric on each half of two rows or more."""
    found = metrics.compute(names, predictions, labels)
    if len(labels) > 1:
        for half, rows in zip((PICKING, REPORTING), halves(len(labels)), strict=True):
            (found[half],) = metrics.compute(names[:1], predictions[rows], labels[rows]).values()
    return found


def summary(per_epoch: Sequence[dict[str, Any]], main: str) -> dict[str, Any]:
    """What both protocols report: the keys main, best, best_epoch, last and held_out.

    Args:
        per_epoch: of each evaluation, in order, its epoch and its ``scores``.
        main: the metric that picks the epoch; of equals the first.
    """
    pick = min if main in LOWER_IS_BETTER else max
    best = pick(per_epoch, key=lambda epoch: epoch[main])
    held_out = None
    if all(PICKING in epoch for epoch in per_epoch):
        picked = pick(per_epoch, key=lambda epoch: epoch[PICKING])
        held_out = {"score": picked[REPORTING], "picked_epoch": picked["epoch"]}
    return {
        "main": main,
        "best": best[main],
        "best_epoch": best["epoch"],
        "last": per_epoch[-1][main],
        "held_out": held_out,
    }
