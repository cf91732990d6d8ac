"""The section ``metrics`` of a record."""

from types import SimpleNamespace

import pytest

from wtacrs_experiments.run import training
from wtacrs_experiments.run.training import pad_pixels

FACTS = SimpleNamespace(mean_loss=1.5, mean_curve={"step": [10], "loss": [9.0]})


def trained(log, *splits):
    return SimpleNamespace(
        state=SimpleNamespace(log_history=log), eval_dataset=dict.fromkeys(("validation", *splits))
    )


def test_metrics_need_an_evaluation(make_config):
    trainer = trained([{"loss": 1.0, "step": 1}])
    with pytest.raises(ValueError, match="ended before any evaluation"):
        training.describe_metrics(make_config(), trainer, FACTS)


def test_metrics_from_the_log(make_config):
    log = [
        {"step": 2, "epoch": 1.0, "loss": 9.0},
        {"step": 2, "epoch": 1.0, "eval_validation_accuracy": 0.9, "eval_validation_runtime": 1},
        {"step": 2, "epoch": 1.0, "eval_validation_mismatched_accuracy": 0.7},
        {"step": 4, "epoch": 2.0, "eval_validation_accuracy": 0.8},
        {"step": 4, "epoch": 2.0, "eval_hard_accuracy": 0.3, "eval_hard_steps_per_second": 2},
        {"step": 4, "epoch": 2.0, "train_loss": 5.0},
    ]
    trainer = trained(log, "validation_mismatched", "hard")
    assert training.describe_metrics(make_config(), trainer, FACTS) == {
        **{"main": "accuracy", "best": 0.9, "best_epoch": 1.0, "last": 0.8, "train_loss": 1.5},
        **{"held_out": None, "loss_curve": {"step": [10], "loss": [9.0]}},
        "per_epoch": [
            {"epoch": 1.0, "step": 2, "accuracy": 0.9, "mismatched_accuracy": 0.7},
            {"epoch": 2.0, "step": 4, "accuracy": 0.8, "hard_accuracy": 0.3},
        ],
    }


def test_pad_pixels():
    rows = [
        {"input_ids": [3, 4, 5], "attention_mask": [1, 1, 1], "labels": 1, "sample_ids": 8},
        {"input_ids": [6], "attention_mask": [1], "labels": 0, "sample_ids": 2},
    ]
    batch = {key: value.tolist() for key, value in pad_pixels(rows).items()}
    assert batch == {
        "input_ids": [[3, 4, 5], [6, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [1, 0],
        "sample_ids": [8, 2],
    }
