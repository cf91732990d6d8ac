"""LoRA: what is trained, what is sampled, what the frozen base saves; and the refusals."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from tests.saved import SavedBytes
from wtacrs import SampledLinear, SamplingConfig, sample_linears_
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.run import measure, tuning
from wtacrs_experiments.run.models import load_model
from wtacrs_experiments.run.runner import run

LORA = ("tuning=lora", "tuning.rank=4")


@pytest.fixture
def bert(make_config):
    """Factory: a plain BERT of two layers of width 64, and the same with LoRA."""

    def make(*overrides):
        config = make_config(*LORA, *overrides)
        torch.manual_seed(0)
        plain = load_model(config.model, 10, False).train()
        tuned = copy.deepcopy(plain)
        tuning.tune(tuned, config.tuning)
        return plain, tuned

    return make


def batch():
    torch.manual_seed(1)
    return {"input_ids": torch.randint(0, 17, (4, 16)), "labels": torch.arange(4)}


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_full_tuning_leaves_the_model_alone(make_config):
    config = make_config("tuning=full")
    model = load_model(config.model, 10, False)
    before = str(model)
    tuning.tune(model, config.tuning)
    assert str(model) == before
    assert trained_names(model) == {name for name, _ in model.named_parameters()}


def test_lora_trains_a_b_and_the_head(bert):
    plain, tuned = bert()
    added = {
        f"bert.encoder.layer.{layer}.attention.self.{linear}.lora_{matrix}.default.weight"
        for layer in range(2)
        for linear in ("query", "key", "value")
        for matrix in "AB"
    }
    assert trained_names(tuned) == added | {"classifier.weight", "classifier.bias"}
    assert type(tuned) is type(plain)
    inputs = batch()
    assert torch.equal(tuned(**inputs).logits, plain(**inputs).logits)  # B is zero at first


def test_numbers_of_the_group_count(bert):
    _, tuned = bert("tuning.rank=3", "tuning.alpha=12", "tuning.dropout=0.25")
    query = tuned.bert.encoder.layer[0].attention.self.query
    assert query.lora_A["default"].weight.shape == (3, 64)
    assert query.scaling == {"default": 4.0}
    assert query.lora_dropout["default"].p == 0.25


def test_lora_of_t5_trains_no_head(make_config):
    model = T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=8, d_ff=8, num_layers=1))
    tuning.tune(model, make_config(*LORA).tuning)
    adapted = {re.sub(r"\.lora_[AB].*", "", name) for name in trained_names(model)}
    attention = ("encoder.block.0.layer.0.Self", "decoder.block.0.layer.0.Self")
    attention += ("decoder.block.0.layer.1.EncDec",)
    assert adapted == {f"{name}Attention.{linear}" for name in attention for linear in "qkv"}


def test_a_and_b_are_what_is_sampled(bert):
    _, tuned = bert()
    sampler = sample_linears_(tuned, SamplingConfig(budget=0.25))
    assert {f"{name}.weight" for name in sampler.names} == {
        name for name in trained_names(tuned) if "lora" in name
    }
    frozen = [name for name, why in sampler.skipped.items() if why == "frozen: it saves nothing"]
    assert len(frozen) == 2 * 6
    assert sampler.skipped["classifier"] == "outside the transformer blocks"


@pytest.mark.parametrize(("dropout", "selections"), [(0.0, 1), (0.5, 3)])
def test_q_k_and_v_share_one_selection(dropout, selections, bert):
    """But for dropout, which makes an input for each: why the shipped value is 0."""
    _, tuned = bert(f"tuning.dropout={dropout}")
    sample_linears_(tuned, SamplingConfig(budget=0.25))
    with SavedBytes(tuned) as saved:
        tuned(**batch()).loss.backward()
    layers, k = 2, 16  # of 64 rows
    shapes = [shape for shape, _ in saved.tensors]
    assert shapes.count((k, 64)) == layers * selections
    assert shapes.count((k, 4)) == layers * 3  # A's outputs, for B
    assert not {(64, 4), (4, 16, 4)} & {*shapes}


def test_shipped_dropout_is_zero(make_config):
    assert make_config("tuning=lora").tuning.dropout == 0


def test_frozen_base_saves_no_input(bert):
    _, tuned = bert()
    query = tuned.bert.encoder.layer[0].attention.self.query
    x = torch.randn(4, 16, 64, requires_grad=True)
    with SavedBytes(tuned) as saved:
        query.base_layer(x)
    assert saved.tensors == []
    with SavedBytes(tuned) as saved:
        query(x)
    assert sorted(shape for shape, _ in saved.tensors) == [(64, 4), (64, 64)]  # for B and A
    sample_linears_(tuned, SamplingConfig(budget=0.25))
    assert not isinstance(query.base_layer, SampledLinear)
    with SavedBytes(tuned) as saved:
        query(x)
    rows = {(16, 64), (16, 4)}
    assert {shape for shape, _ in saved.tensors} == rows | {(16,)}  # rows; indices and scales
    assert len(saved.tensors) == 2 * 3


@pytest.mark.parametrize("estimator", ["full", "wtacrs"])
def test_lora_run(estimator, make_config, capsys):
    record = run(make_config(*LORA, f"estimator={estimator}"))
    assert record.status == "completed"
    memory = record.memory
    assert memory["gradient_bytes"] == 4 * (2 * 3 * 2 * 4 * 64 + 64 * 10 + 10)  # A, B; the head
    assert memory["gradient_bytes"] < memory["parameter_bytes"] / 5
    assert record.sampling["layers"] == (0 if estimator == "full" else 2 * 3 * 2)
    if estimator == "wtacrs":
        inputs = 2 * (1 + 3)  # x for the A's of a layer, and each A's output
        assert memory["host_cache_bytes"] == inputs * 64 * 16 * 2
    assert capsys.readouterr().out.startswith(f"digits · digits_tiny · lora · {estimator}@")


def test_resumed_lora_run_is_the_same_run(make_config, monkeypatch, capsys):
    class Cut(measure.StepTimer):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 3:
                raise KeyboardInterrupt

    given = (*LORA, "training.learning_rate=0.1", "measure.memory=false")
    whole = run(make_config(*given))
    given += ("training.checkpoint_steps=2",)
    with monkeypatch.context() as patched:
        patched.setattr(measure, "StepTimer", Cut)
        with pytest.raises(KeyboardInterrupt):
            run(make_config(*given, "overwrite=true"))
    assert run(make_config(*given, "overwrite=true")).metrics == whole.metrics
    assert "checkpoint-2\n" in capsys.readouterr().out


def test_target_that_is_no_layer(bert):
    message = (
        r"tuning.targets.bert: no linear layer is named 'kye'; linear layers of this "
        r"BertForSequenceClassification: attention.output.dense, attention.self.key, "
    )
    with pytest.raises(UserError, match=message):
        bert("tuning.targets.bert=[query,kye]")


def test_a_type_without_targets_gets_all_linear_layers_in_its_blocks(bert, make_config):
    config = replace(make_config(*LORA).tuning, targets={"t5": ("q",)})
    model = bert()[0]
    tuning.tune(model, config)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_modules() if "lora_A" in name}
    inside = {name for name, layer in bert()[0].named_modules() if isinstance(layer, nn.Linear)}
    assert adapted == {name for name in inside if ".layer." in name}


def test_conv1d_is_adapted(make_config):
    """GPT-2's linear layers, which are none of torch's."""
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32, "n_positions": 8}
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    with pytest.warns(UserWarning, match="fan_in_fan_out"):  # peft sets it right
        tuning.tune(model, make_config("tuning=lora", "tuning.rank=2").tuning)
    trained = {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"c_attn", "c_proj", "c_fc"}
    config = make_config("tuning=lora", "tuning.rank=17").tuning
    with pytest.raises(UserError, match=r"tuning.rank=17 is above 16, the most .* has"):
        tuning.tune(GPT2LMHeadModel(GPT2Config(**sizes)), config)


def test_rank_above_the_width(bert):
    with pytest.raises(UserError, match=r"tuning.rank=65 is above 64, the most that bert\..*query"):
        bert("tuning.rank=65")
