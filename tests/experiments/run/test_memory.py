"""The group ``memory``: presets train, are told apart, and leave the names of earlier records."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from wtacrs import PRESETS
from wtacrs.integrations.checkpointing import checkpoints
from wtacrs_experiments.config import as_record
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import config_hash, record_path
from wtacrs_experiments.run import runner
from wtacrs_experiments.run.memory import memory_config, save_memory

ON_CPU = tuple(name for name in PRESETS if name != "checkpoint_offload")
OUTPUTS = (("lean", "recomputed"), ("leanest", "kept"), ("leanest", "recomputed"))


@pytest.fixture
def hash_of(make_config):
    return lambda *overrides: config_hash(as_record(make_config(*overrides)))


@pytest.fixture
def prepared(make_config):
    """Factory: the model and the handle of a run with these overrides."""
    return lambda *overrides: runner.prepare(make_config(*overrides))[2:]


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_null_is_what_the_preset_has(preset, prepared, monkeypatch):
    applied = []
    monkeypatch.setattr(
        "wtacrs_experiments.run.memory.apply_", lambda _, memory, **__: applied.append(memory)
    )
    prepared(f"memory={preset}")
    (memory,) = applied
    assert memory == replace(PRESETS[preset], sampling=memory.sampling)
    assert memory.samples == PRESETS[preset].samples


def test_what_is_given_counts_and_the_rest_is_the_preset(make_config):
    chosen = ("memory=lean", "memory.recompute=none", "memory.lossless=[norm]")
    assert vars(make_config(*chosen).memory) == {
        **{"name": "lean", "sample_linears": True, "lossless": ("norm",), "gelu": "exact"},
        **{"attention": "recompute", "recompute": "none", "attention_output": "auto"},
    }
    nothing = make_config("memory=lean", "memory.lossless=[]", "memory.attention=default")
    assert (nothing.memory.lossless, nothing.memory.attention) == ((), "default")
    for preset, output in OUTPUTS:
        other = make_config(f"memory={preset}", f"memory.attention_output={output}")
        assert memory_config(other).attention_output == output
    with pytest.raises(UserError, match="memory=linear: attention_output='kept' needs"):
        memory_config(make_config("memory.attention_output=kept"))


@pytest.mark.parametrize("preset", ON_CPU)
def test_preset_trains(make_config, preset):
    record = runner.run(make_config(f"memory={preset}", "estimator=wtacrs"))
    assert record.status == "completed"
    sampled = preset not in ("plain", "checkpoint")
    assert record.config["estimator"]["name"] == ("wtacrs" if sampled else "full")
    assert (record.sampling["layers"] > 0) == sampled
    assert record.config["memory"]["name"] == preset


def test_presets_save_less_and_less(make_config):
    saved = {
        preset: runner.run(make_config(f"memory={preset}")).memory["saved_bytes"]
        for preset in ON_CPU
    }
    assert sorted(saved, key=saved.get) == [
        *("leanest", "checkpoint", "lean", "paper", "linear", "plain"),
    ]


def test_exact_presets_train_as_the_plain_model(make_config):
    plain = runner.run(make_config("memory=plain", "memory.attention=eager"))
    for preset in ("lean", "leanest", "checkpoint"):
        record = runner.run(make_config(f"memory={preset}", "estimator=wtacrs", "budget=1.0"))
        loss = record.metrics["train_loss"]
        assert loss == pytest.approx(plain.metrics["train_loss"], abs=1e-5), preset


@pytest.mark.parametrize(
    ("preset", "early", "late"),
    [  # of two blocks, each of q, k, v, o and two of the feed-forward sublayer
        ("linear", 12, 0),
        ("paper", 4, 8),  # late: those whose input is the output of a norm, which is kept anyway
        ("lean", 2, 10),  # early: those that read what is neither recomputed nor kept anyway
        ("leanest", 0, 12),
    ],
)
def test_record_says_when_layers_pick(preset, early, late, make_config):
    sampling = runner.run(make_config(f"memory={preset}")).sampling
    assert (sampling["early"], sampling["late"], sampling["layers"]) == (early, late, 12)
    kept = sampling["rows_kept_fraction"]
    assert kept == (pytest.approx(0.3, abs=0.01) if early else None)


def test_checkpoint_is_the_switch_of_transformers(prepared):
    model, handle = prepared("memory=checkpoint")
    assert checkpoints(model)
    assert handle.sampler is None
    handle.undo()
    assert not checkpoints(model)
    for other in ("plain", "lean", "leanest"):
        model, _ = prepared(f"memory={other}")
        assert not checkpoints(model), other


def test_checkpoint_beside_sampling(make_config):
    """Not what the preset is for, but what its keys say; such layers keep their first pick."""
    chosen = ("memory=checkpoint", "memory.sample_linears=true", "estimator=wtacrs")
    record = runner.run(make_config(*chosen))
    assert record.config["estimator"]["name"] == "wtacrs"
    assert (record.sampling["early"], record.sampling["late"]) == (12, 0)


def test_offloading_needs_an_accelerator(make_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(runner.RunError, match=r"memory=checkpoint_offload: .* needs an acc"):
        runner.run(make_config("memory=checkpoint_offload"))


@pytest.mark.parametrize("preset", ["leanest", "lean"])
def test_resumed_run_rounds_on(preset, make_config, monkeypatch, tmp_path):
    """A cut-off run whose layers pick late, and whose derivatives are rounded at random."""
    chosen = (f"memory={preset}", "memory.gelu=rounded", "training.checkpoint_steps=2")
    whole = runner.run(make_config(*chosen))
    config = replace(make_config(*chosen), results_dir=str(tmp_path / "again"))

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wtacrs_experiments.run.training.describe_metrics", cut)
        with pytest.raises(KeyboardInterrupt):
            runner.run(config)
    resumed = runner.run(config)
    assert resumed.metrics == whole.metrics


def test_records_made_before_the_group_keep_their_names(make_config, hash_of):
    config = as_record(make_config("memory=linear"))
    before = {key: value for key, value in config.items() if key != "memory"}
    assert record_path(config) == record_path(before)
    assert hash_of("memory=plain") == hash_of("estimator=full")
    assert hash_of("memory=lean") != hash_of("memory=linear")
    assert hash_of("memory=lean", "memory.recompute=none") != hash_of("memory=lean")
    for preset, output in OUTPUTS:
        other = f"memory.attention_output={output}"
        assert hash_of(f"memory={preset}", other) != hash_of(f"memory={preset}")


def test_name_of_a_record_says_the_preset(make_config):
    config = as_record(make_config("memory=lean", "estimator=crs"))
    assert record_path(config).name.startswith("digits-digits_tiny-full-crs-lean-b0.3-s0-")


def test_model_without_such_layers(make_config):
    chosen = make_config("memory=lean", "memory.attention=default")
    with pytest.raises(UserError, match=r"memory=lean: no linear layer matches"):
        save_memory(nn.Sequential(nn.Linear(2, 2)), chosen, 1, 1)
    chosen = make_config("memory=lean", "memory.recompute=none")
    with pytest.raises(UserError, match=r"memory=lean.*needs a transformers model"):
        save_memory(nn.Sequential(nn.Linear(2, 2)), chosen, 1, 1)


def test_checkpointing_that_is_on_already(make_config):
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=1))
    model.bert.encoder.gradient_checkpointing = True  # what the Trainer's flag sets
    with pytest.raises(UserError, match="gradient checkpointing enabled already"):
        save_memory(model, make_config("memory=leanest"), 1, 1)


def test_sampled_attention_needs_a_sampled_layer_in_each(make_config):
    with pytest.raises(runner.RunError, match=r"attention\.self has no sampled one"):
        runner.run(make_config("memory=paper", "estimator.include=['*.output.dense']"))


def test_linear_with_something_else_stays_linear(make_config):
    config = make_config("estimator=full", "memory=linear", "memory.recompute=block")
    assert config.memory.name == "linear"
