"""The group ``memory``: presets train, are told apart, and leave the names of earlier records."""

import pytest
from omegaconf import OmegaConf

from experiments import runner
from experiments.errors import UserError
from experiments.records import config_hash, record_path
from experiments.saving import save_memory

PRESETS = ("plain", "linear", "paper", "lean", "leanest", "checkpoint")


@pytest.fixture
def hash_of(make_resolved):
    return lambda *overrides: config_hash(OmegaConf.to_container(make_resolved(*overrides)))


@pytest.mark.parametrize("preset", PRESETS)
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
        for preset in PRESETS
    }
    assert sorted(saved, key=saved.get) == [
        *("leanest", "checkpoint", "lean", "paper", "linear", "plain"),
    ]


def test_exact_presets_train_as_the_plain_model(make_config):
    plain = runner.run(make_config("memory=plain", "memory.attention=eager"))
    for preset in ("lean", "checkpoint"):
        record = runner.run(make_config(f"memory={preset}", "estimator=wtacrs", "budget=1.0"))
        loss = record.metrics["train_loss"]
        assert loss == pytest.approx(plain.metrics["train_loss"], abs=1e-5), preset


def test_resumed_run_rounds_on(make_config, monkeypatch, tmp_path):
    """A cut-off run under leanest, whose derivatives are rounded at random, is the same run."""
    chosen = ("memory=leanest", "training.checkpoint_steps=2")
    whole = runner.run(make_config(*chosen))
    folder = "results_dir=" + str(tmp_path / "again")

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("experiments.training.describe_metrics", cut)
        with pytest.raises(KeyboardInterrupt):
            runner.run(OmegaConf.merge(make_config(*chosen), OmegaConf.from_dotlist([folder])))
    resumed = runner.run(OmegaConf.merge(make_config(*chosen), OmegaConf.from_dotlist([folder])))
    assert resumed.metrics == whole.metrics


def test_records_made_before_the_group_keep_their_names(make_resolved, hash_of):
    config = OmegaConf.to_container(make_resolved("memory=linear"))
    before = {key: value for key, value in config.items() if key != "memory"}
    assert record_path(config) == record_path(before)
    assert hash_of("memory=plain") == hash_of("estimator=full")
    assert hash_of("memory=lean") != hash_of("memory=linear")
    assert hash_of("memory=lean", "memory.recompute=none") != hash_of("memory=lean")


def test_name_of_a_record_says_the_preset(make_resolved):
    config = OmegaConf.to_container(make_resolved("memory=lean", "estimator=crs"))
    assert record_path(config).name.startswith("digits-digits_tiny-full-crs-lean-b0.3-s0-")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("memory.attention=flash", "recompute, sampled"),
        ("memory.recompute=blocks", "none, attention, block"),
        ("memory.gelu=8bit", "exact, rounded"),
        ("memory.lossless=[norms]", "norm, dropout, relu"),
        ("memory.lossless=norm", "list"),
        ("memory.sample_linears=1", "true or false"),
    ],
)
def test_unknown_value(make_config, override, message):
    with pytest.raises(runner.RunError, match=message):
        runner.run(make_config(override))


def test_sampled_attention_needs_an_estimator(make_config):
    with pytest.raises(runner.RunError, match="not full"):
        runner.run(make_config("memory=paper", "estimator=full"))


def test_model_without_such_layers(make_resolved):
    from torch import nn

    with pytest.raises(UserError, match=r"memory=lean.*norm, dropout, relu"):
        save_memory(nn.Sequential(nn.Linear(2, 2)), make_resolved("memory=lean").memory)


def test_checkpointing_that_is_on_already(make_resolved):
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(num_hidden_layers=1))
    model.bert.encoder.gradient_checkpointing = True  # what the Trainer's flag sets
    with pytest.raises(UserError, match="gradient checkpointing enabled already"):
        save_memory(model, make_resolved("memory=leanest").memory)


def test_sampled_attention_needs_a_sampled_layer_in_each(make_config):
    with pytest.raises(runner.RunError, match=r"attention\.self has no sampled one"):
        runner.run(make_config("memory=paper", "estimator.include=['*.output.dense']"))


def test_linear_with_something_else_stays_linear(make_resolved):
    config = make_resolved("estimator=full", "memory=linear", "memory.recompute=block")
    assert config.memory.name == "linear"
