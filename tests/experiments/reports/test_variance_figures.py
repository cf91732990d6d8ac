"""The figures of the variance, from records made by hand."""

import math

import matplotlib.pyplot as plt
import pytest

from experiments.reports.figures import (
    budget_figure,
    main,
    source_figure,
    winner_mass_figure,
    winners_figure,
)
from experiments.reports.variance_data import load_probes, winner_frame
from tests.experiments.probes import PPS, probe


def test_budget_figure_shows_mean_and_range_over_probes_that_draw(add, found):
    low, high = [0.125, 0.8, 0.2], [0.45, 1.4, 1.0]  # totals 0.2, 0.6
    exact, budgets = [0.0] * 3, ("pps__0.1", "pps__0.3", "pps__0.5")
    biased = {"deterministic__0.1": exact, "deterministic__0.3": low}
    add(
        probe(1, **dict(zip(budgets, (high, low, low), strict=True)), **biased),
        probe(7, **dict(zip(budgets, (high, high, exact), strict=True)), **biased),
    )
    add(probe(1, **{"pps__0.05": [9.0] * 3}), model="mpnet")
    figure = budget_figure(found())
    ours, other = figure.axes
    assert (ours.get_xlim(), ours.get_ylim()) == (other.get_xlim(), other.get_ylim())
    assert (ours.get_xscale(), ours.get_yscale()) == ("log", "log")
    assert [ours.get_title(), other.get_title()] == ["cola · minilm", "cola · mpnet"]
    shown = {bars.get_label(): (bars[0], bars[2][0]) for bars in ours.containers}
    line, ranges = shown["pps"]
    assert line.get_xdata().tolist() == [0.1, 0.3, 0.5]
    assert line.get_ydata().tolist() == pytest.approx([0.6, 0.4, 0.2])
    ends = [segment[:, 1].tolist() for segment in ranges.get_segments()]
    assert ends == [pytest.approx([0.6, 0.6]), pytest.approx([0.2, 0.6]), pytest.approx([0.2, 0.2])]
    assert line.get_linestyle() == "-"
    biased, _ = shown["deterministic (all bias²)"]
    assert (biased.get_xdata().tolist(), biased.get_linestyle()) == ([0.3], "--")
    plt.close(figure)


def test_source_figure_shows_three_methods_and_the_first_and_last_probe(add, found):
    names = ("pps__0.3__none", "pps__0.3__oracle", "crs", "wtacrs", "pps_lowrank", "pps__0.3__old")
    add(
        probe(1, **dict.fromkeys(names, [1.0] * 3)),
        probe(3, **dict.fromkeys(names, [2.0] * 3)),
        probe(7, **dict.fromkeys(names, [3.0] * 3)),
    )
    figure = source_figure(found())
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["none", "auto", "true norms"]
    shown = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
    methods = ("wtacrs", "pps", "pps/lowrank")
    assert [*shown] == [f"{m}, {p} probe" for m in methods for p in ("first", "last")]
    assert shown["pps, first probe"] == pytest.approx([1, math.nan, 1], nan_ok=True)
    assert shown["pps/lowrank, last probe"] == pytest.approx([math.nan, 3, math.nan], nan_ok=True)
    plt.close(figure)


def test_winners_figure_leaves_out_budgets_without_a_draw(add, found, tmp_path):
    add(probe(1, pps=PPS, **{"pps__0.5": [0.0] * 3}))
    figure = winners_figure(winner_frame(load_probes(tmp_path / "v")), found())
    (line,) = figure.axes[0].lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([0.3], [pytest.approx(0.2)])
    plt.close(figure)


def test_winner_mass_is_named_by_what_reads_the_input(add, tmp_path):
    add(probe(1, pps=PPS))
    figure = winner_mass_figure(load_probes(tmp_path / "v"))
    bound, curve = figure.axes[0].lines
    assert (bound.get_label(), curve.get_label()) == ("c / k at budget 0.3", "into output.dense")
    assert curve.get_xdata().tolist() == [0, 0.5, 1]
    assert curve.get_ydata().tolist() == [0, 0.5, 1]
    plt.close(figure)


def test_what_was_not_measured_is_an_empty_panel(add, tmp_path):
    path = add(probe(1, **{"pps__0.2__none": PPS}))
    assert main(["variance", str(path.parent), "--output", str(tmp_path)]) == 0
