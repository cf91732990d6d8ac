"""Steps of several batches, other optimizers, early stopping, padding, fewer rows to evaluate."""

import sys

import pytest
import torch

from tests.experiments.run.decoders import save_llama, write_jsonl
from tests.experiments.run.test_text2text import t5_tokenizer
from wtacrs_experiments.config import RunConfig, compose
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import RunRecord
from wtacrs_experiments.run import measure, runner, training
from wtacrs_experiments.run.interruption import Interruption
from wtacrs_experiments.run.models import load_model, load_tokenizer
from wtacrs_experiments.run.tasks import load_task
from wtacrs_experiments.run.text2text import TextToText

EPOCHS = ("task.max_train_rows=20", "training.max_steps=-1", "measure.warmup_steps=1")
EPOCHS += ("task.max_eval_rows=8",)
HALVES = ("training.batch_size=4", "training.gradient_accumulation_steps=2")


@pytest.fixture
def carry_out(monkeypatch, tmp_path):
    """Carries a run out, maybe cut off after a step; returns its record and its sampler."""
    samplers, cut, prepare = [], [None], runner.prepare

    class Cut(measure.StepTimer):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == cut[0]:
                raise KeyboardInterrupt

    def listen(config):
        prepared = prepare(config)
        samplers.append(prepared[-1].sampler)
        return prepared

    monkeypatch.setattr(measure, "StepTimer", Cut)
    monkeypatch.setattr(runner, "prepare", listen)

    def run(config, folder, cut_after=None):
        cut[0], record = cut_after, RunRecord("failed", {})
        runner.carry_out(config, record, tmp_path / folder, Interruption())
        return record, samplers[-1]

    return run


@pytest.fixture
def language_model(tmp_path):
    folder = save_llama(tmp_path / "tiny-llama")
    rows = [{"prompt": f"say {i}", "completion": "word " * (1 + i % 7)} for i in range(100)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)

    def make(*overrides):
        given = ["task=sft", f"task.train_file={file}", f"model.path={folder}", *overrides]
        given += ["training.save_model=false"]
        return runner.settle(compose(RunConfig, [*given, "training.device=cpu"]))

    return make


@pytest.mark.parametrize("task", ["digits", "sft"])
def test_two_batches_of_four_are_one_of_eight(task, make_config, language_model, carry_out):
    """Of 20 rows the last step of an epoch has one batch of four, in both."""
    make = make_config if task == "digits" else language_model
    common = (*EPOCHS, "estimator=full", "training.epochs=4", "measure.memory=false")
    common += ("training.learning_rate=1e-2",)
    whole, _ = carry_out(make(*common, "training.batch_size=8"), "whole")
    parts, _ = carry_out(make(*common, *HALVES), "parts")
    of, also = parts.metrics, whole.metrics
    assert of["loss_curve"]["step"] == also["loss_curve"]["step"] == [10]
    assert of["loss_curve"]["loss"] == pytest.approx(also["loss_curve"]["loss"], rel=1e-4)
    assert of["train_loss"] == pytest.approx(also["train_loss"], rel=1e-4)
    for one, other in zip(of["per_epoch"], also["per_epoch"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert of["per_epoch"][-1]["loss"] != pytest.approx(of["per_epoch"][0]["loss"], rel=0.01)
    assert [epoch["step"] for epoch in of["per_epoch"]] == [3, 6, 9, 12]
    assert parts.throughput["steps_timed"] == whole.throughput["steps_timed"] == 11


def test_each_batch_of_a_step_is_sampled_by_its_own_facts(make_config, carry_out):
    config = make_config(*EPOCHS, *HALVES, "training.epochs=2", "measure.memory=false")
    record, sampler = carry_out(config, "sampled")
    rows = 4 * 16  # of each batch, of each layer
    assert record.sampling["rows_kept_fraction"] == pytest.approx(round(0.3 * rows) / rows)
    assert sampler.rows_seen == 12 * 2 * 20 * 16
    norms = sampler.grad_norms
    assert norms._table.shape == (len(norms.names), 20, 16)
    assert (norms._table >= 0).all()  # each sample has left its norms under its own number


def test_memory_is_that_of_a_batch_with_the_gradients_of_another(make_config, carry_out):
    one = ("training.batch_size=4", "training.max_steps=1", "memory=linear")
    alone = carry_out(make_config(*one), "alone")[0].memory
    several = carry_out(make_config(*one, *HALVES), "several")[0].memory
    assert several["at_peak"]["gradient"] == several["gradient_bytes"] == alone["gradient_bytes"]
    assert several["saved_bytes"] == alone["saved_bytes"]
    assert several["peak_bytes"] >= alone["peak_bytes"]
    assert sum(several["at_peak"].values()) == several["peak_bytes"]


def test_probes_of_steps_with_several_batches(make_config, carry_out):
    """They change nothing of the run, and a probe's number is that of its step."""
    common = (*EPOCHS, *HALVES, "training.epochs=2", "measure.memory=false")
    probed = ("measure=variance", "measure.probe_steps=[1,5]", "measure.budgets=[0.3]")
    probed += ("measure.methods=[wtacrs]", "measure.sources=[auto]", "measure.warmup_steps=1")
    plain, _ = carry_out(make_config(*common), "plain")
    record, _ = carry_out(make_config(*common, *probed), "probed")
    assert record.metrics == plain.metrics
    assert [probe["step"] for probe in record.variance["probes"]] == [1, 5]
    with pytest.raises(UserError, match="beyond the 6 steps"):
        carry_out(make_config(*common, *probed, "measure.probe_steps=[6]"), "beyond")


@pytest.mark.parametrize("name", ["adamw_torch", "adafactor"])
def test_optimizer(name, make_config, carry_out):
    record, _ = carry_out(make_config("training.max_steps=1", f"training.optimizer={name}"), name)
    memory = record.memory
    states = memory["optimizer_bytes"] / memory["parameter_bytes"]
    assert (1.9 < states < 2.1) if name == "adamw_torch" else (states < 0.3)


def test_optimizer_that_is_not_installed(make_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"adamw_8bit needs a package: pip install bitsandbytes"):
        runner.run(make_config("training.optimizer=adamw_8bit"))


STOPPING = (*EPOCHS, "training.learning_rate=0", "training.epochs=5", "measure.memory=false")


def test_early_stopping_also_of_a_resumed_run(make_config, carry_out):
    """Nothing is learnt: epochs 2 and 3 are no better than the first, whoever counted them."""
    given = (*STOPPING, "training.batch_size=8", "training.early_stopping_patience=2")
    whole, _ = carry_out(make_config(*given), "whole")
    assert [epoch["epoch"] for epoch in whole.metrics["per_epoch"]] == [1.0, 2.0, 3.0]
    assert whole.metrics["stopped_epoch"] == 3.0
    given += ("training.checkpoint_steps=7",)
    with pytest.raises(KeyboardInterrupt):
        carry_out(make_config(*given), "cut", cut_after=8)
    resumed, _ = carry_out(make_config(*given), "cut")
    assert resumed.throughput["steps_timed"] == 2 - 1  # of steps 8 and 9, after the warm-up
    assert resumed.metrics == whole.metrics


def test_the_epoch_that_stops_a_run_leaves_no_checkpoint(make_config, carry_out, tmp_path):
    """The Trainer would train on from it."""
    given = (*STOPPING, "training.early_stopping_patience=1", "training.checkpoint_steps=3")
    record, _ = carry_out(make_config(*given), "stopped")
    assert record.metrics["stopped_epoch"] == 2.0
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["checkpoint-3"]


def test_a_run_that_goes_to_its_end_was_not_stopped(make_config, carry_out):
    given = (*EPOCHS, "training.epochs=2", "training.early_stopping_patience=1")
    record, _ = carry_out(make_config(*given, "measure.memory=false"), "end")
    assert len(record.metrics["per_epoch"]) == 2
    assert record.metrics["stopped_epoch"] is None
    plain, _ = carry_out(make_config(*given[:-1], "measure.memory=false"), "plain")
    assert "stopped_epoch" not in plain.metrics


def test_early_stopping_of_what_is_better_when_lower(language_model, tmp_path):
    config = language_model("training.early_stopping_patience=1")
    args = training.training_arguments(config, tmp_path)
    assert (args.metric_for_best_model, args.greater_is_better) == (
        "eval_validation_perplexity",
        False,
    )


@pytest.mark.parametrize("most", [3, 300])
def test_rows_to_evaluate(most, make_config, language_model):
    config = make_config(f"task.max_eval_rows={most}")
    digits = load_task(config.task, None)
    assert {len(split) for split in digits.validation.values()} == {most}
    assert len(digits.train) == 64
    config = language_model(f"task.max_eval_rows={most}", "task.max_train_rows=5")
    rows = load_task(config.task, load_tokenizer(config.model))
    assert len(rows.validation["validation"]) == min(most, 10)
    assert len(rows.train) == 5


def batches(config, tokenizer, text=None):
    rows = [{"input_ids": [5] * n, "attention_mask": [1] * n, "labels": 0} for n in (3, 5)]
    if config.task.source == "sft":
        rows = [{**row, "labels": row["input_ids"]} for row in rows]
    return training.collator(config.task, tokenizer, text)(rows)


def test_rows_are_padded_to_one_length(language_model, make_config, saved_model, tmp_path):
    pad = ("task.max_length=16", "task.pad_to_max_length=true")
    minilm = ("task=rte", "model=minilm")
    for given, length in ((pad, 16), (pad[:1], 5)):
        config = make_config(*minilm, *given)
        batch = batches(config, load_tokenizer(config.model))
        assert batch["attention_mask"].sum(1).tolist() == [3, 5]
        assert batch["input_ids"].shape == (2, length)
        config = language_model(*given)
        batch = batches(config, load_tokenizer(config.model))
        assert batch["labels"].shape == batch["input_ids"].shape == (2, length)
        assert (batch["labels"] != -100).sum(1).tolist() == [3, 5]
        config = make_config(*minilm, *given)
        text = TextToText(config.task, t5_tokenizer())
        assert batches(config, text.tokenizer, text)["input_ids"].shape == (2, length)


def test_a_run_whose_rows_are_padded(make_config, carry_out, tmp_path, saved_model):
    """The table of gradient norms has room for them, and padding is never kept."""
    (tmp_path / "my.csv").write_text("text,label\n" + "good,a\nbad one,b\n" * 8)
    given = ["task=csv", f"task.train_file={tmp_path / 'my.csv'}", f"model.path={saved_model}"]
    given += ["task.max_length=16", "task.pad_to_max_length=true", "training.save_model=false"]
    config = runner.settle(compose(RunConfig, [*given, "training.epochs=1"]))
    record, sampler = carry_out(config, "padded")
    assert sampler.grad_norms.table_shape == (15, 16)
    assert record.status == "failed"  # as it was given: nothing was raised
    config = runner.settle(compose(RunConfig, [*given, "task.max_length=1000"]))
    with pytest.raises(UserError, match=r"max_length=1000, and model=\w+ has 512 positions; lower"):
        carry_out(config, "too long")


def test_weights_in_bf16(make_config, carry_out, monkeypatch):
    """As the planner plans them: gradients and optimizer state too."""
    config = make_config("training.precision=bf16", "training.max_steps=1")
    model = load_model(config.model, 10, False)
    weights = sum(p.numel() for p in model.parameters())
    memory = carry_out(config, "bf16")[0].memory
    assert memory["parameter_bytes"] == memory["gradient_bytes"] == 2 * weights
    assert memory["optimizer_bytes"] == pytest.approx(4 * weights, rel=0.01)
    assert torch.get_default_dtype() == torch.float32
