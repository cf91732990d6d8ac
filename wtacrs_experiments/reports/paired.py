"""A method's score against full's, paired by seed: difference, 95 % interval, and a word for it.

Two runs of one seed see the same batches in the same order, so part of the spread over seeds is
common to both and cancels in the difference d. With n pairs the interval is
mean(d) ± t_{0.975, n - 1} std(d) / sqrt(n).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from wtacrs_experiments.words import LOWER_IS_BETTER

LEVEL = 0.95
LEAST_PAIRS = 3  # of two, the interval is 12.7 standard errors to each side: no word is due


def half_width(std: Any, n: Any) -> Any:
    """Half of the 95 % interval of the mean of ``n`` values of standard deviation ``std``; numbers
    or columns of them. Of fewer than two values ``std`` is missing, and so is this."""
    n = np.maximum(n, 2)
    return t.ppf((1 + LEVEL) / 2, n - 1) * std / np.sqrt(n)


def paired_to_full(runs: pd.DataFrame, group: list[str], keys: list[str]) -> pd.DataFrame:
    """Columns ``keys``, pairs, difference, difference_low, difference_high and against_full.

    against_full is "worse" or "better" where the interval lies on one side of 0 (less
    perplexity is better), "not told apart" where 0 is in it. With fewer than two pairs, and for the
    plain full itself, all but pairs is missing.

    Args:
        runs: a row a run, as ``wtacrs_experiments.reports.runs.load_runs`` gives it.
        group: columns within which runs are compared.
        keys: columns that name a method within its group, ``group``, with the metric, among them.
    """
    plain = (runs["estimator"] == "full") & (runs["memory"] == "plain")
    full = runs[plain].groupby([*group, "seed"])["score"].mean().rename("full")
    # A seed that ran twice, with other things measured, is one pair.
    scores = runs.groupby([*keys, "seed"], dropna=False)["score"].mean().reset_index()
    scores = scores.join(full, on=[*group, "seed"])
    scores["difference"] = scores["score"] - scores["full"]
    itself = (scores["estimator"] == "full") & (scores["memory"] == "plain")
    scores.loc[itself, "difference"] = np.nan
    found = scores.groupby(keys, dropna=False)["difference"].agg(["count", "mean", "std"])
    pairs, mean, std = found["count"], found["mean"].where(found["count"] > 1), found["std"]
    half = half_width(std, pairs)
    low, high = mean - half, mean + half
    losses = found.index.get_level_values("metric").isin(LOWER_IS_BETTER)
    words = pd.Series("not told apart", found.index)
    words = words.mask((low > 0) & ~losses | (high < 0) & losses, "better")
    words = words.mask((high < 0) & ~losses | (low > 0) & losses, "worse")
    return pd.DataFrame(
        {
            "pairs": pairs,
            "difference": mean,
            "difference_low": low,
            "difference_high": high,
            "against_full": words.where(pairs >= LEAST_PAIRS),
        }
    ).reset_index()
