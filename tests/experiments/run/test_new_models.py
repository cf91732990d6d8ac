"""Models with new weights, from sizes; and the refusals, with their remedies."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import (
    BertForSequenceClassification,
    MPNetForSequenceClassification,
    T5ForConditionalGeneration,
)

from wtacrs_experiments.run.models import ModelError, load_model, new_model

PARAMETERS = {  # as published; an encoder's with a head for two classes
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "bert_base": 109_482_240 + 2 * 769,
    "bert_large": 335_141_888 + 2 * 1025,
    "minilm": 22_713_216 + 2 * 385,
    "mpnet_base": 109_486_464 + 2 * 769,  # the published pooler is as large as the head's dense
    "digits_tiny": 109_698,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_new_model_has_the_published_size(name, model_config, monkeypatch):
    monkeypatch.setenv("WTACRS_MODELS", "/nowhere")
    with FakeTensorMode():
        model = new_model(model_config(f"model={name}"))
    assert all(isinstance(parameter.data, FakeTensor) for parameter in model.parameters())
    assert model.num_parameters() == PARAMETERS[name]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    if name.startswith("t5"):
        assert type(model) is T5ForConditionalGeneration
        assert not model.config.use_cache
        assert not model.decoder.config.use_cache
        assert model.lm_head.weight is model.shared.weight
    else:
        bert, mpnet = BertForSequenceClassification, MPNetForSequenceClassification
        assert type(model) is (mpnet if name == "mpnet_base" else bert)
        assert model.config.num_labels == 2


def test_new_t5_3b_takes_a_fake_training_step(model_config):
    with FakeTensorMode():
        model = new_model(model_config("model=t5_3b")).train()
        ids = torch.ones(2, 16, dtype=torch.long)
        model(input_ids=ids, attention_mask=ids, labels=ids).loss.backward()
        assert model.shared.weight.grad.shape == (32128, 1024)


def test_new_model_is_random_and_real(model_config):
    config = model_config("model=minilm")
    torch.manual_seed(0)
    first, second, trained = new_model(config), new_model(config), load_model(config, 2, False)
    weights = [m.bert.encoder.layer[0].output.dense.weight.data for m in (first, second, trained)]
    assert not torch.equal(weights[0], weights[1])
    assert weights[0].std() == pytest.approx(0.02, rel=0.02)
    assert weights[2].std() != pytest.approx(0.02, rel=0.02)
    assert [*first.state_dict()] == [*trained.state_dict()]


def test_sizes_of_a_new_model(model_config, saved_model):
    """Those of a folder are in its config.json; those of the config can be overridden."""
    folder = model_config("model=bert_base", f"model.path={saved_model}")
    smaller = replace(model_config("model=bert_base"), config={"num_hidden_layers": 1})
    with FakeTensorMode():
        assert new_model(folder).config.hidden_size == 16
        assert new_model(smaller).config.num_hidden_layers == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=minilm", "model.path=no_such_package"], "; pip install no-such-package"),
        (["model=minilm", "model.source=hub"], "model=minilm has no sizes; give model.architectu"),
    ],
)
def test_new_model_that_cannot_be_had(overrides, message, model_config):
    with pytest.raises(ModelError, match=message):
        new_model(model_config(*overrides))


def test_sizes_of_a_model_of_images(model_config):
    sizes = {"model_type": "vit", "hidden_size": 16}
    config = replace(model_config("model=bert_base"), architecture=sizes)
    with pytest.raises(ModelError, match="a vit reads pixel_values, and the tasks here are text"):
        new_model(config)
