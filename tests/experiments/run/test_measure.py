"""Memory of one step and times of many, against what is known beforehand."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import Trainer

from wtacrs_experiments.reports.tables import load_runs
from wtacrs_experiments.run import measure
from wtacrs_experiments.run.attribution import describe_held
from wtacrs_experiments.run.batch_facts import BatchFacts
from wtacrs_experiments.run.measure import StepTimer, describe_throughput, measure_memory
from wtacrs_experiments.run.memory import save_memory
from wtacrs_experiments.run.models import load_model
from wtacrs_experiments.run.runner import run
from wtacrs_experiments.run.tasks import load_task
from wtacrs_experiments.run.training import build_trainer, longest_batch


@pytest.fixture
def trained(make_config, tmp_path):
    """Factory: trains two steps; returns what ``measure_memory`` takes."""

    def train(*overrides):
        config = make_config("training.max_steps=2", *overrides)
        data = load_task(config.task, None)
        model = load_model(config.model, data.num_labels, data.regression)
        sampler = save_memory(model, config, len(data.train), data.max_tokens).sampler
        BatchFacts(model)
        trainer = build_trainer(config, model, None, data, tmp_path, [])
        trainer.eval_dataset = {"validation": data.train.select(range(2))}
        trainer.train()
        return trainer, model, longest_batch(data.train, 8), sampler

    return train


def test_memory_of_a_step(trained):
    full, sampled = trained("estimator=full"), trained("estimator=wtacrs")
    memory = {name: measure_memory(*what) for name, what in (("full", full), ("wtacrs", sampled))}
    for name, (_, model, _, _) in (("full", full), ("wtacrs", sampled)):
        measured = memory[name]
        weights = sum(p.nbytes for p in model.parameters())
        assert measured["parameter_bytes"] == measured["gradient_bytes"] == weights
        assert 2 * weights < measured["optimizer_bytes"] < 2.01 * weights  # AdamW: two, and steps
        assert measured["peak_bytes"] > weights * 4 + measured["saved_bytes"] / 2
        assert (measured["method"], measured["reserved_bytes"]) == ("storage tracker", None)
        assert sum(measured["at_peak"].values()) == measured["peak_bytes"]
        assert measured["at_peak"]["parameter"] == weights
        assert measured["at_peak"]["temporary"] == measured["temporary_bytes"] > 0
        assert all(p.grad is None for p in model.parameters())
    assert memory["full"]["host_cache_bytes"] == 0
    assert memory["wtacrs"]["host_cache_bytes"] == 8 * 64 * 16 * 2  # inputs, rows, tokens, bytes
    assert memory["wtacrs"]["peak_bytes"] < memory["full"]["peak_bytes"]
    assert memory["wtacrs"]["saved_bytes"] < memory["full"]["saved_bytes"]
    assert measure_memory(*sampled) == memory["wtacrs"]
    assert measure_memory(*full) == memory["full"]


def test_memory_shrinks_with_the_budget(trained):
    trainer, model, rows, sampler = trained()
    saved = []
    for budget in (1.0, 0.5, 0.1):
        object.__setattr__(sampler.config, "budget", budget)
        saved.append(measure_memory(trainer, model, rows, sampler)["saved_bytes"])
    assert saved == sorted(saved, reverse=True)
    assert len(set(saved)) == 3


def test_saved_bytes_are_attributed(trained):
    """All of the very step that is measured; the model is left as it was."""
    trainer, model, rows, sampler = trained()
    before = measure_memory(trainer, model, rows, sampler)
    found = describe_held(trainer, model, rows)
    assert found["saved_bytes"] == before["saved_bytes"]
    assert found["saved_bytes"] == sum(row["bytes"] for row in found["rows"])
    assert all(p.grad is None for p in model.parameters())
    assert measure_memory(trainer, model, rows, sampler) == before


def test_a_run_that_measures_memory_alone(make_config, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(Trainer, "evaluate")
    overrides = ("measure=memory", "training.max_steps=-1", "training.epochs=50")
    run(make_config(*overrides))
    (path,) = (tmp_path / "runs").glob("[!.]*")
    record = json.loads(path.read_text())
    assert (record["status"], record["metrics"], record["throughput"]) == ("completed", None, None)
    assert record["sampling"]["layers"] == 12
    found, memory = record["attribution"], record["memory"]
    assert found.keys() == {"saved_bytes", "rows", "sampled"}
    assert found["saved_bytes"] == memory["saved_bytes"]
    row = found["rows"][0]
    assert row.keys() == {"made_in", "operation", "count", "bytes", "share", "held_by"}
    out = capsys.readouterr().out
    assert "peak memory" in out
    assert "accuracy" not in out
    assert f"{row['made_in']} ({row['operation']})" in out
    assert all(layer["pattern"] in out for layer in found["sampled"])
    assert load_runs(tmp_path / "runs")["peak_bytes"].tolist() == [memory["peak_bytes"]]
    assert not (tmp_path / "checkpoints").exists()


def test_memory_alone_is_that_of_a_run(make_config, tmp_path):
    """One step of training makes no difference to what a step takes."""
    run(make_config("training.max_steps=4"))
    run(make_config("training.max_steps=4", "measure=memory"))
    alone, whole = sorted(
        (json.loads(path.read_text()) for path in (tmp_path / "runs").glob("[!.]*")),
        key=lambda record: record["metrics"] is not None,
    )
    assert "attribution" not in whole
    assert alone["memory"] == whole["memory"]


def facts(samples, tokens, warmup_steps):
    return SimpleNamespace(samples=samples, tokens=torch.tensor(tokens), warmup_steps=warmup_steps)


def test_throughput_leaves_the_warm_up_out():
    timer = StepTimer()
    timer.seconds = [9.0, 1.0, 2.0, 3.0]
    described = describe_throughput(timer, facts([8, 8, 8, 2], 30 + 20 + 10, 1))
    assert described["samples_per_second"] == pytest.approx(18 / 6)
    assert described["tokens_per_second"] == pytest.approx(60 / 6)
    assert described["step_seconds"] == pytest.approx({"median": 2.0, "p10": 1.2, "p90": 2.8})
    assert (described["steps_timed"], described["warmup_steps"]) == (3, 1)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_throughput_of_a_run_within_the_warm_up(steps):
    timer = StepTimer()
    timer.seconds = [1.0] * steps
    described = describe_throughput(timer, facts([8] * steps, 0, 2))
    unknown = ("samples_per_second", "tokens_per_second", "step_seconds")
    assert all(described[key] is None for key in unknown)
    assert (described["steps_timed"], described["warmup_steps"]) == (0, 2)


def test_timer_leaves_out_what_lies_between_steps(monkeypatch):
    clock = iter([1.0, 1.5, 7.0, 7.25])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    timer, args = StepTimer(), SimpleNamespace(device=torch.device("cpu"))
    for _ in range(2):
        timer.on_step_begin(args, None, None)
        timer.on_step_end(args, None, None)
    assert timer.seconds == [0.5, 0.25]


def test_longest_batch():
    data = Dataset.from_dict({"input_ids": [[1], [1, 2, 3], [1, 2], [4, 5, 6]]})
    assert [row["input_ids"] for row in longest_batch(data, 3)] == [[1, 2, 3], [4, 5, 6], [1, 2]]
    assert len(longest_batch(data, 9)) == 4
