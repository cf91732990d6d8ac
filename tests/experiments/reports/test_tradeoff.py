"""The picture of what a method costs and gives: what tells its marks apart."""

import pandas as pd
import pytest

from wtacrs_experiments.reports.tradeoff import tradeoff_figure
from wtacrs_experiments.words import MIB


@pytest.fixture
def table():
    """Full and its rival, one method at two budgets, another at one."""
    rows = [
        ("full", 1.0, "plain", 100, 13.25, 1.0),
        ("full", 1.0, "checkpoint", 40, 13.25, 0.75),
        ("wtacrs", 0.1, "leanest", 30, 15.3, 0.8),
        ("wtacrs", 0.3, "leanest", 31, 13.3, 0.8),
        ("deterministic", 0.1, "leanest", 30, 23.4, 0.8),
    ]
    columns = ["estimator", "budget", "memory", "peak", "score", "speed_ratio"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["peak_bytes"] = frame.pop("peak") * MIB
    same = {"task": "docstrings", "model": "llama_tiny", "tuning": "full", "n": 2}
    return frame.assign(metric="perplexity", score_std=0.1, **same)


def test_marks(table):
    figure = tradeoff_figure(table)
    score, time = figure.axes
    marks = {line.get_label(): line for line in time.lines if not line.get_label().startswith("_")}
    names = ["full", "full, checkpoint", "wtacrs@0.1, leanest", "wtacrs@0.3, leanest"]
    assert {*marks} == {*names, "deterministic@0.1, leanest (biased control)"}
    hollow = {name for name, mark in marks.items() if mark.get_markerfacecolor() == "none"}
    assert hollow == {"wtacrs@0.1, leanest"}
    assert marks["full, checkpoint"].get_ydata().tolist() == pytest.approx([4 / 3])
    assert marks["full, checkpoint"].get_xdata().tolist() == [40]
    assert score.get_ylabel() == "perplexity, best epoch\n(less is better)"
    assert [bars[0].get_ydata().tolist() for bars in score.containers[2:4]] == [[15.3], [13.3]]
