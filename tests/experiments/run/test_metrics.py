"""The metrics, against values worked by hand."""

import numpy as np
import pytest

from wtacrs_experiments.run.metrics import compute


def test_metrics_by_hand():
    predicted, labels = [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]  # one false positive
    scores = compute(["f1", "accuracy", "matthews_correlation"], np.eye(2)[predicted], labels)
    assert list(scores) == ["f1", "accuracy", "matthews_correlation"]
    assert list(scores.values()) == pytest.approx([4 / 5, 5 / 6, 6 / np.sqrt(3 * 2 * 4 * 3)])
    # Sums of products of the deviations: 11.5, 38.75 and 5; ranks 1 3 2 4 against 1 2 3 4.
    scores = compute(["pearson", "spearman"], np.array([[1], [3], [2], [9]]), np.arange(4.0))
    assert scores == pytest.approx({"pearson": 11.5 / np.sqrt(38.75 * 5), "spearman": 0.8})


@pytest.mark.filterwarnings("error")
def test_undefined_correlation_is_zero_without_a_warning():
    for labels in ([0, 1, 1], [0, 0, 0]):
        scores = compute(["matthews_correlation", "f1"], np.eye(2)[[0, 0, 0]], np.array(labels))
        assert scores == {"matthews_correlation": 0.0, "f1": 0.0}
    scores = compute(["pearson", "spearman"], np.full((3, 1), 2.5), np.arange(3.0))
    assert scores == {"pearson": 0.0, "spearman": 0.0}


def test_metrics_are_refused():
    for name, predictions, message in (
        ("rouge", np.eye(3), "unknown metric 'rouge'; choose from accuracy, f1, matthews"),
        ("accuracy", np.ones((3, 1)), "'accuracy' needs at least two outputs"),
        ("pearson", np.eye(3), "'pearson' needs one output"),
        ("accuracy", np.full((3, 2), np.nan), "nan or inf"),
        ("accuracy", np.ones((4, 2)), "expected"),
    ):
        with pytest.raises(ValueError, match=message):
            compute([name], predictions, np.arange(3))
