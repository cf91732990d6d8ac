"""The figure of scores shows every estimator of every task, mean and spread."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from experiments.drawing import ablation_figure


@pytest.fixture
def table():
    def row(task, estimator, budget, best, std, n):
        metric = "accuracy" if task == "rte" else "matthews_correlation"
        return {
            **{"task": task, "metric": metric, "estimator": estimator, "budget": budget},
            **{"best": best, "best_std": std, "n": n},
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
    assert cola.get_title() == "cola (n = 1 to 3)"
    assert rte.get_title() == "rte (n = 1)"
    legend = rte.get_legend()  # crs is in the other panel only
    assert {text.get_text() for text in legend.get_texts()} == {"full", "crs", "pps"}
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
