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
