"""The trained model on disk: transformers and peft load it by themselves, and it is the same."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
)

from tests.experiments.run.decoders import ROWS, save_llama, write_jsonl
from wtacrs_experiments.config import RunConfig, as_record, compose
from wtacrs_experiments.config.places import RUN_FILE
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import config_hash, record_path
from wtacrs_experiments.run.predict import main as predict
from wtacrs_experiments.run.runner import RunError, run, settle
from wtacrs_experiments.run.saving import load_trained, model_folder

QUICK = ("training.max_steps=2", "training.batch_size=4", "training.learning_rate=0.05")
QUICK += ("measure.memory=false", "task.max_train_rows=16")
LORA = ("tuning=lora", "tuning.rank=4")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def sft(llama, tmp_path):
    """Factory: the config of a run on Python's documentation."""
    data = write_jsonl(tmp_path / "my.jsonl", ROWS)

    def make(*overrides):
        given = ("task=sft", f"task.train_file={data}", f"model.path={llama}")
        return compose(RunConfig, [*given, *QUICK, f"results_dir={tmp_path / 'runs'}", *overrides])

    return make


@pytest.fixture
def mnli(saved_model, make_config, tiny_glue):
    def make(*overrides):
        given = (f"model.path={saved_model}", *tiny_glue("mnli"), *QUICK, *overrides)
        return make_config("model=minilm", "model.source=folder", *given)

    return make


@pytest.fixture
def trained(monkeypatch):
    """The logits of the model at the end of the run, on fixed tokens."""
    found = []
    train = Trainer.train

    def then_look(self, *args, **kwargs):
        done = train(self, *args, **kwargs)
        model = self.model.eval()
        with torch.no_grad():
            found.append(model(**tokens()).logits)
        return done

    monkeypatch.setattr(Trainer, "train", then_look)
    return found


def tokens():
    return {"input_ids": torch.arange(2, 14)[None], "attention_mask": torch.ones(1, 12).long()}


def folder_of(config):
    return model_folder(record_path(as_record(settle(config))))


@torch.no_grad()
def logits(model):
    return model.eval()(**tokens()).logits


@pytest.mark.parametrize("memory", ["memory=linear", "memory=leanest"])
def test_transformers_loads_what_was_trained(memory, sft, trained):
    config = sft(memory)
    run(config)
    folder = folder_of(config)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(model), trained[0])
    assert model.config.use_cache
    assert model.generation_config.use_cache
    assert AutoTokenizer.from_pretrained(folder)("json").input_ids
    assert {path.name for path in folder.iterdir()} >= {"model.safetensors", "config.json"}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    assert [path.name for path in folder.parent.glob(".*")] == [".claims.lock"]


def test_peft_loads_the_adapters_of_a_decoder(sft, trained, llama):
    config = sft(*LORA, "memory=lean")
    run(config)
    folder = folder_of(config)
    base = AutoModelForCausalLM.from_pretrained(llama)
    assert not torch.allclose(logits(base), trained[0], atol=1e-3)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, folder)), trained[0])
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(folder)), trained[0])
    assert not (folder / "model.safetensors").exists()
    torch.testing.assert_close(logits(load_trained(folder)[1]), trained[0])


def test_an_adapter_that_is_damaged_is_said(sft):
    run(config := sft(*LORA))
    weights = folder_of(config) / "adapter_model.safetensors"
    sizes = folder_of(config) / "adapter_config.json"
    other_rank = json.dumps(json.loads(sizes.read_text()) | {"r": 3}).encode()
    for file, content in (
        (weights, weights.read_bytes()[:-20]),
        (sizes, b"{"),
        (sizes, b"{}"),
        (sizes, other_rank),
    ):
        whole = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged \(.+\); run the training again"):
            load_trained(folder_of(config))
        file.write_bytes(whole)
    weights.unlink()
    with pytest.raises(UserError, match=r"lacks adapter_model.safetensors; run"):
        load_trained(folder_of(config))


def test_peft_loads_the_adapters_and_the_new_head_of_a_classifier(mnli, trained, saved_model):
    config = mnli(*LORA, "training.save_model=true")
    run(config)
    folder = folder_of(config)
    names = load_file(folder / "adapter_model.safetensors")
    assert "base_model.model.classifier.weight" in names
    base = AutoModelForSequenceClassification.from_pretrained(
        saved_model, num_labels=3, dtype=torch.float32
    )
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, folder)), trained[0])


def test_a_classifier_knows_the_names_of_its_labels(mnli, trained):
    config = mnli("training.save_model=true")
    run(config)
    model = AutoModelForSequenceClassification.from_pretrained(folder_of(config))
    torch.testing.assert_close(logits(model), trained[0])
    assert model.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}


def test_who_saves(sft, make_config):
    assert sft().saves_model
    assert not sft("training.save_model=false").saves_model
    assert not sft("measure=memory", "measure.memory=true").saves_model
    assert not make_config().saves_model
    assert make_config("training.save_model=true").saves_model
    with pytest.raises(UserError, match="ladder of tuning=lst"):
        make_config("tuning=lst", "training.save_model=true")
    with pytest.raises(UserError, match="mode=measure does not train"):
        make_config("measure=memory", "training.save_model=true")


def test_a_model_from_scratch(make_config, tmp_path, capsys):
    """Whole, with a tokenizer of bytes; an adapter would have no base to be put on."""
    file = write_jsonl(tmp_path / "my.jsonl", ROWS[:8])
    own = ("model=llama_tiny", "task=sft", f"task.train_file={file}", "task.max_length=128")
    config = settle(make_config(*own, *QUICK))
    run(config)
    assert predict([str(folder_of(config)), str(file), "--new-tokens", "3"]) == 0
    assert not make_config(*own, "tuning=lora").saves_model
    with pytest.raises(UserError, match="an adapter from scratch has no base"):
        make_config(*own, "tuning=lora", "training.save_model=true")


def test_saving_is_no_other_run(make_config):
    one, other = (as_record(make_config(*more)) for more in ((), ("training.save_model=true",)))
    assert config_hash(one) == config_hash(other)


def test_a_run_whose_model_is_missing_runs_again(sft, capsys):
    run(sft("training.save_model=false"))
    assert not folder_of(sft()).exists()
    run(sft())
    assert "running again, its model is not at" in capsys.readouterr().out
    assert folder_of(sft()).is_dir()
    run(sft())
    assert "skipped" in capsys.readouterr().out


def test_a_model_that_cannot_be_written_leaves_the_scores(sft, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    config = sft()
    with pytest.raises(RunError, match=r"trained model cannot be written to .*No space left"):
        run(config)
    record = json.loads(Path(record_path(as_record(settle(config)))).read_text())
    assert record["status"] == "failed"
    assert record["metrics"]["best"] > 0
    assert not folder_of(config).exists()


def test_the_config_of_the_run_lies_beside_the_model(sft):
    config = settle(sft())
    run(config)
    assert json.loads((folder_of(config) / RUN_FILE).read_text()) == as_record(config)
    assert load_trained(folder_of(config))[0] == config
