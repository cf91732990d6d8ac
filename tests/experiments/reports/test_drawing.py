"""The figure of scores shows every estimator of every task, mean and spread."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from wtacrs_experiments.records.record import record_path, write_record
from wtacrs_experiments.reports.drawing import LOOKS, ablation_figure, looks, panels
from wtacrs_experiments.reports.figures import main

OKABE_ITO = {
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
    "#999999",  # and grey
}


@pytest.fixture
def table():
    def row(task, estimator, budget, best, std, n):
        metric = "accuracy" if task == "rte" else "matthews_correlation"
        return {
            **{"task": task, "model": "minilm", "metric": metric},
            **{"estimator": estimator, "budget": budget},
            **{"score": best, "score_std": std, "n": n},
            "memory": "plain" if estimator == "full" else "linear",
        }

    return pd.DataFrame(
        [
            row("cola", "full", 1.0, 0.28, 0.02, 3),
            row("cola", "crs", 0.1, 0.15, 0.03, 3),
            row("cola", "crs", 0.3, 0.21, float("nan"), 1),
            row("rte", "full", 1.0, 0.56, float("nan"), 1),
            row("rte", "pps", 0.1, 0.54, float("nan"), 1),
        ]
    )


def test_panels_have_their_own_metric_and_share_a_legend(table):
    figure = ablation_figure(table)
    cola, rte = figure.axes
    assert cola.get_ylabel().startswith("matthews correlation")
    assert rte.get_ylabel().startswith("accuracy")
    assert cola.get_title() == "cola · minilm (n = 1 to 3)"
    assert rte.get_title() == "rte · minilm (n = 1)"
    legend = rte.get_legend()  # crs is in the other panel only
    assert {text.get_text() for text in legend.get_texts()} == {"full", "crs", "pps"}
    plt.close(figure)


def test_a_preset_has_a_line_of_its_own(table):
    late = table[table["estimator"] == "pps"].assign(memory="leanest", score=0.6)
    figure = ablation_figure(pd.concat([table, late]))
    rte = figure.axes[1]
    drawn = {bars.get_label(): bars[0] for bars in rte.containers}
    assert drawn["pps"].get_ydata().tolist() == [54.0]
    assert drawn["pps, leanest"].get_ydata().tolist() == [60.0]
    assert drawn["pps"].get_linestyle() != drawn["pps, leanest"].get_linestyle()
    plt.close(figure)


def test_points_are_the_means_and_bars_the_deviations(table):
    figure = ablation_figure(table)
    cola = figure.axes[0]
    (bars,) = cola.containers
    line, _, (segments,) = bars
    assert line.get_xdata().tolist() == [0.1, 0.3]
    assert line.get_ydata().tolist() == pytest.approx([15, 21])
    first, second = segments.get_segments()
    assert first[:, 1].tolist() == pytest.approx([12, 18])
    assert second[:, 1].tolist() == pytest.approx([21, 21])  # one seed has no spread
    plt.close(figure)


def test_spreads_at_one_budget_lie_side_by_side(table):
    crs = table[table["estimator"] == "crs"]
    figure = ablation_figure(
        pd.concat([table, crs.assign(estimator="pps"), crs.assign(estimator="x")])
    )
    figure.canvas.draw()
    places = []
    for line, _, (segments,) in figure.axes[0].containers:
        assert line.get_xdata().tolist() == [0.1, 0.3]  # the data stay where they are
        (x, _) = line.get_transform().transform((0.1, 15))
        assert segments.get_transform().transform((0.1, 15))[0] == x  # a bar under its point
        places.append(x * 72 / figure.dpi)
        for end in segments.get_segments():  # inside the panel, not only in the legend
            pixels = segments.get_transform().transform(end)
            assert all(figure.axes[0].bbox.contains(*pixel) for pixel in pixels)
    budget = figure.axes[0].transData.transform((0.1, 15))[0] * 72 / figure.dpi
    assert [place - budget for place in places] == pytest.approx([-4, 0, 4])
    plt.close(figure)


def test_methods_differ_in_more_than_colour():
    methods = [name for name in LOOKS if name != "full"]
    given = looks([*methods[1:], "crs/classes"])  # the last has no look of its own
    for part in ("color", "marker"):
        assert len({look[part] for look in given.values()}) == len(given)
        assert "None" not in {look[part] for look in given.values()}
    assert {look["color"] for look in given.values()} <= OKABE_ITO
    dashed = [name for name, look in given.items() if look["linestyle"] == "--"]
    assert dashed == ["deterministic"]


def test_centred_method_has_its_own_look_and_label(table):
    pps = table[table["estimator"] == "pps"]
    figure = ablation_figure(pd.concat([table, pps.assign(estimator="pps/lowrank")]))
    rte = figure.axes[1]
    plain, centred = (bars[0] for bars in rte.containers)
    assert [bars.get_label() for bars in rte.containers] == ["pps", "pps/lowrank"]
    assert (plain.get_color(), plain.get_marker()) == LOOKS["pps"]
    assert (centred.get_color(), centred.get_marker()) == LOOKS["pps/lowrank"]
    plt.close(figure)


@pytest.mark.parametrize(("names", "grid"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3))])
def test_panels_share_axes_and_one_legend(names, grid):
    def draw(axis, name):
        axis.plot([0, int(name)], [0, int(name)], label=f"line {name}")

    figure = panels([str(name) for name in range(1, names + 1)], draw, "error")
    shape = figure.axes[0].get_subplotspec().get_gridspec()
    assert (shape.nrows, shape.ncols) == grid
    assert len(figure.axes) == names
    assert len({(axis.get_xlim(), axis.get_ylim()) for axis in figure.axes}) == 1
    figure.canvas.draw()
    below = [any(text.get_text() for text in a.get_xticklabels()) for a in figure.axes]
    assert below == [place + grid[1] >= names for place in range(names)]  # where nothing is below
    (legend,) = figure.legends
    assert len(legend.get_texts()) == names
    plt.close(figure)


@pytest.mark.parametrize("name", ["centred", "ablation"])
def test_figure_of_scores_is_named_after_the_folder_of_its_records(name, make_record, tmp_path):
    (tmp_path / name).mkdir()
    record = make_record()
    write_record(record, tmp_path / name / record_path(record.config).name)
    assert main(["ablation", str(tmp_path / name), "--output", str(tmp_path)]) == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.svg",
        f"{name}.png",
    }


def test_a_folder_of_failures_alone_has_no_figure(make_record, tmp_path, capsys):
    record = make_record(status="failed")
    write_record(record, tmp_path / record_path(record.config).name)
    assert main(["ablation", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "no completed run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
