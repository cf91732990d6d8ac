"""The scores of a run, from logits and labels alone.

They come from scikit-learn and scipy rather than from a metric hub: a score must not depend on a
download. Each metric knows which shape of prediction it is defined for, because an argmax over a
single regression output would quietly score class 0 for every row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from wtacrs_experiments.errors import UserError


class Diverged(UserError):
    """The run has lost what it had learnt."""


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    return accuracy_score(labels, predicted)


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    # With no positive label and no positive prediction F1 is 0/0; 0 is the GLUE convention.
    return f1_score(labels, predicted, zero_division=0.0)


def _correlation(
    function: Callable[[np.ndarray, np.ndarray], float], x: np.ndarray, y: np.ndarray
) -> float:
    # A collapsed model predicts one value, and its correlation is 0/0. Such a model has learnt
    # nothing, which is what 0.0 says; nan would also make it impossible to pick a best epoch.
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return function(x, y)


def _matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    return _correlation(matthews_corrcoef, labels, predicted)


def _pearson(predicted: np.ndarray, labels: np.ndarray) -> float:
    return _correlation(lambda x, y: pearsonr(x, y).statistic, predicted, labels)


def _spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    return _correlation(lambda x, y: spearmanr(x, y).statistic, predicted, labels)


Metric = Callable[[np.ndarray, np.ndarray], float]
CLASSIFICATION: dict[str, Metric] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
}
REGRESSION: dict[str, Metric] = {"pearson": _pearson, "spearman": _spearman}
# Of rows (n, 3): sum of the tokens' losses, their number, how many were right.
LANGUAGE: dict[str, Callable[[np.ndarray], float]] = {
    "perplexity": lambda sums: float(np.exp(sums[:, 0].sum() / sums[:, 1].sum())),
    "token_accuracy": lambda sums: float(sums[:, 2].sum() / sums[:, 1].sum()),
}


def compute(names: Sequence[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Score `predictions` (n, classes), or (n, 1) for regression, against `labels` (n,); of a
    language model the sums (n, 3) of `LANGUAGE`, whatever the labels.

    Returns one float per name, in the order of `names`; F1 is that of class 1 of two. An undefined
    correlation (all predictions or all labels equal) is 0.0.

    Raises ValueError for an unknown metric and for shapes the metric is not defined for, Diverged
    for predictions that are not finite: their argmax is 0, and such a run must not get a score.
    """
    known = sorted({*CLASSIFICATION, *REGRESSION, *LANGUAGE})
    for name in names:
        if name not in known:
            raise ValueError(f"unknown metric {name!r}; choose from {', '.join(known)}")
    predictions, labels = np.asarray(predictions, dtype=np.float64), np.asarray(labels)
    if predictions.ndim != 2 or labels.shape != predictions.shape[:1] or not len(labels):
        raise ValueError(
            f"predictions {predictions.shape} and labels {labels.shape}: expected (n, classes) or"
            " (n, 1), and (n,), with n >= 1"
        )
    if not np.isfinite(predictions).all():
        raise Diverged("predictions hold nan or inf, so no score is defined")
    return {name: float(_score(name, predictions, labels)) for name in names}


def _score(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    outputs = predictions.shape[1]
    if name in LANGUAGE:
        if outputs != 3 or not predictions[:, 1].any():
            raise ValueError(f"metric {name!r} needs the sums of rows with tokens to predict")
        return LANGUAGE[name](predictions)
    if (name in REGRESSION) != (outputs == 1):
        rule = "one output" if name in REGRESSION else "at least two outputs"
        raise ValueError(f"metric {name!r} needs {rule} per row, the predictions have {outputs}")
    if name in REGRESSION:
        return REGRESSION[name](predictions[:, 0], labels.astype(np.float64))
    return CLASSIFICATION[name](predictions.argmax(axis=1), labels)
