"""The figures of the variance, from records made by hand."""

import matplotlib.pyplot as plt
import pytest

from tests.experiments.probes import PPS, probe
from wtacrs_experiments.reports.figures import main
from wtacrs_experiments.reports.variance_data import load_probes, winner_frame
from wtacrs_experiments.reports.variance_figures import (
    budget_figure,
    source_figure,
    winner_mass_figure,
    winners_figure,
)

LOW, HIGH, EXACT = [0.125, 0.8, 0.2], [0.45, 1.4, 1.0], [0.0] * 3  # totals 0.2, 0.6, 0


def test_budget_figure_shows_mean_and_range_over_probes_that_draw(add, found):
    budgets = ("pps__0.1", "pps__0.3", "pps__0.5")
    biased = {"deterministic__0.1": HIGH, "deterministic__0.3": LOW}
    add(
        probe(1, **biased, **dict(zip(budgets, (HIGH, LOW, LOW), strict=True))),
        probe(7, **biased, **dict(zip(budgets, (HIGH, HIGH, EXACT), strict=True))),
    )
    add(probe(1, **{"pps__0.05": [9.0] * 3}), model="mpnet")
    figure = budget_figure(found())
    ours, other = figure.axes
    assert (ours.get_xlim(), ours.get_ylim()) == (other.get_xlim(), other.get_ylim())
    assert (ours.get_xscale(), ours.get_yscale()) == ("log", "log")
    assert [ours.get_title(), other.get_title()] == ["cola · minilm", "cola · mpnet"]
    shown = {bars.get_label(): (bars[0], bars[2][0]) for bars in ours.containers if bars[2]}
    line, ranges = shown["pps"]
    assert line.get_xdata().tolist() == [0.1, 0.3, 0.5]
    assert line.get_ydata().tolist() == pytest.approx([0.6, 0.4, 0.2])
    ends = [segment[:, 1].tolist() for segment in ranges.get_segments()]
    assert ends == [pytest.approx([0.6, 0.6]), pytest.approx([0.2, 0.6]), pytest.approx([0.2, 0.2])]
    assert line.get_linestyle() == "-"
    assert shown["deterministic"][0].get_linestyle() == "--"
    plt.close(figure)


@pytest.mark.parametrize("other", [{"crs__0.5": EXACT}, {"crs__0.5": EXACT, "pps__0.5": EXACT}])
def test_panels_have_the_budgets_at_which_no_method_is_exact(other, add, found):
    """In the other run some method is exact at 0.5, or all are."""
    add(probe(1, **{"pps__0.3": LOW, "pps__0.5": LOW}))
    add(probe(1, **{"pps__0.3": LOW, "pps__0.5": LOW, **other}), model="mpnet")
    figure = budget_figure(found())
    for axis in figure.axes:
        lines = [bars[0].get_xdata() for bars in axis.containers if bars.get_label() == "pps"]
        assert [line.tolist() for line in lines] == [[0.3]]
    plt.close(figure)


def test_budget_figure_says_what_an_average_over_steps_leaves(add, found):
    add(probe(1, deterministic=LOW, wtacrs=HIGH, pps=HIGH))
    figure = budget_figure(found())
    drawn = {bars.get_label(): bars[0] for bars in figure.axes[0].containers}
    unbiased, wtacrs, averaged, pps, biased, deterministic = drawn
    assert (wtacrs, pps, deterministic) == ("wtacrs", "pps", "deterministic")
    assert (unbiased.split(":")[0], biased.split(":")[0]) == ("Unbiased", "Biased")
    assert "averaged\nby momentum 0.9" in averaged
    assert drawn[averaged].get_ydata() == pytest.approx([0.6 / 19])
    # As the variance of sum (1 - beta) beta^i e_i, with e_i independent of variance 1, is.
    assert sum((0.1 * 0.9**step) ** 2 for step in range(999)) == pytest.approx(1 / 19)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*drawn]
    plt.close(figure)


def test_source_figure_is_the_course_of_one_method_by_option(add, found):
    names = ("wtacrs__0.3__none", "wtacrs__0.3__oracle", "wtacrs", "pps", "wtacrs__0.3__sample")
    add(*(probe(step, **dict.fromkeys(names, [total] * 3)) for step, total in ((1, 1.0), (7, 2.0))))
    figure = source_figure(found())
    (axis,) = figure.axes
    shown = {line.get_label(): line for line in axis.lines}
    assert [*shown] == ["none", "position", "auto", "late selection:\ntrue norms"]
    assert shown["auto"].get_xdata().tolist() == [1, 7]
    assert shown["auto"].get_ydata().tolist() == pytest.approx([1, 2])
    assert shown["position"].get_xdata().tolist() == []  # not measured
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1\n(1)", "7\n(2)"]
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
