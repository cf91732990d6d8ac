"""A run that has diverged fails at its step, and keeps what it had before."""

import json

import pytest
import torch

from wtacrs_experiments.config import as_record
from wtacrs_experiments.records.record import record_path
from wtacrs_experiments.run import runner
from wtacrs_experiments.run.batch_facts import BatchFacts
from wtacrs_experiments.run.divergence import Divergence
from wtacrs_experiments.run.metrics import Diverged
from wtacrs_experiments.run.runner import RunError, checkpoint_folder, run

TWO_EPOCHS = ("training.max_steps=-1", "training.epochs=2", "measure.memory=false")  # of 8 steps


@pytest.fixture
def record_there(tmp_path):
    """Reads the one record that there is."""

    def read():
        (path,) = (tmp_path / "runs").glob("*.json")
        return json.loads(path.read_text())

    return read


def poisoned(step):
    """Facts of batches that make the model's output nan at ``step``, from 1, and later."""

    class Poisoned(BatchFacts):
        def __call__(self, model, args, kwargs):
            super().__call__(model, args, kwargs)
            if model.training and self.steps + 1 == step:
                with torch.no_grad():
                    next(model.parameters()).fill_(float("nan"))

    return Poisoned


@pytest.mark.parametrize(("step", "kept"), [(3, None), (11, 1.0)])
def test_a_diverged_run_keeps_its_best_epoch(
    step, kept, make_config, record_there, monkeypatch, capsys
):
    monkeypatch.setattr(runner, "BatchFacts", poisoned(step))
    config = make_config("training.checkpoint_steps=1", *TWO_EPOCHS)
    with pytest.raises(RunError, match=rf"^diverged at step {step}: the loss is nan or inf; lower"):
        run(config)
    record = record_there()
    assert (record["status"], record["error"]["type"]) == ("failed", "Diverged")
    metrics = record["metrics"] or {}
    assert metrics.get("best_epoch") == kept
    assert [epoch["epoch"] for epoch in metrics.get("per_epoch", [])] == [kept] * (kept is not None)
    assert "Traceback" not in capsys.readouterr().err
    checkpoints = checkpoint_folder(record_path(as_record(config))).glob("checkpoint-*")
    assert [int(path.name.split("-")[1]) for path in checkpoints] == [step - 1]


def test_predictions_that_are_not_finite_are_of_the_step_before(make_config, record_there, capsys):
    wild = ("training.learning_rate=1e30", "training.max_grad_norm=0", "training.max_steps=1")
    with pytest.raises(RunError, match=r"^diverged at step 1: predictions hold nan or inf"):
        run(make_config(*wild, "training.warmup_ratio=0", "measure.memory=false"))
    assert record_there()["metrics"] is None
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_ends_the_run(loss):
    facts = BatchFacts(torch.nn.Linear(1, 1))
    callback = Divergence(facts)
    callback.on_step_end(None, None, None)
    facts.loss_sum = torch.tensor(loss)
    with pytest.raises(Diverged):
        callback.on_step_end(None, None, None)
