import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from wtacrs_experiments.run import protocol


def logits(predicted: np.ndarray) -> np.ndarray:
    return np.eye(2)[predicted]


@pytest.mark.parametrize("rows", [2, 7, 1043])
def test_the_halves_are_the_rows_split_in_two(rows):
    picking, reporting = protocol.halves(rows)
    assert sorted([*picking, *reporting]) == list(range(rows))
    assert len(picking) == rows // 2
    assert protocol.halves(rows)[0].tolist() == picking.tolist()  # the same for every run


def test_each_half_is_scored_on_its_own_rows():
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 2, 40), random.integers(0, 2, 40)
    found = protocol.scores(["accuracy", "f1"], logits(predicted), labels)
    picking, reporting = protocol.halves(40)
    assert list(found) == ["accuracy", "f1", "picking_half", "reporting_half"]
    assert found["accuracy"] == accuracy_score(labels, predicted)
    assert found["picking_half"] == accuracy_score(labels[picking], predicted[picking])
    assert found["reporting_half"] == accuracy_score(labels[reporting], predicted[reporting])


def test_one_row_has_no_halves():
    assert list(protocol.scores(["accuracy"], logits(np.array([1])), np.array([1]))) == ["accuracy"]


def test_the_epoch_is_picked_on_one_half_and_reported_on_the_other():
    epochs = [
        {"epoch": 1.0, "accuracy": 0.9, "picking_half": 0.8, "reporting_half": 1.0},
        {"epoch": 2.0, "accuracy": 0.7, "picking_half": 0.9, "reporting_half": 0.5},
        {"epoch": 3.0, "accuracy": 0.8, "picking_half": 0.9, "reporting_half": 0.7},
    ]
    assert protocol.summary(epochs, "accuracy") == {
        **{"main": "accuracy", "best": 0.9, "best_epoch": 1.0, "last": 0.8},
        "held_out": {"score": 0.5, "picked_epoch": 2.0},
    }
