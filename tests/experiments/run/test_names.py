"""What a run is called, and what lies beside its record while it goes on."""

from dataclasses import replace

import pytest

from wtacrs_experiments.config import RunConfig, compose
from wtacrs_experiments.config.own_model import settled
from wtacrs_experiments.run import runner
from wtacrs_experiments.run.runner import run


def test_a_claim_lies_beside_the_record_while_it_runs(make_config, tmp_path, monkeypatch):
    def look(config, record, folder, interruption):
        found.extend(path.name for path in (tmp_path / "runs").glob("[!.]*"))

    found = []
    monkeypatch.setattr(runner, "carry_out", look)
    run(make_config())
    (record,) = (tmp_path / "runs").glob("[!.]*")
    assert found == [f"{record.stem}.running"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["model=bert_base"], "bert_base"),
        (["model=mpnet_base"], "mpnet_base"),  # wherever it lies
        (["model=bert_base", "model.path=google-bert/bert-base-uncased"], "bert_base"),
        (["model=bert_base", "model.path=some-one/roberta-x"], "roberta_x"),
        (["model=minilm", "model.source=folder", "model.path=/models/my-own v2.1/"], "my_own_v2.1"),
        (["model=minilm", "model.source=folder", 'model.path="~/tuned"'], "tuned"),
        (["model=minilm", "model.source=folder", "model.path=/"], "minilm"),
    ],
)
def test_a_run_is_named_after_the_model_that_it_loads(overrides, name, monkeypatch):
    monkeypatch.setenv("WTACRS_MODELS", "/elsewhere")
    model = compose(RunConfig, ["task=sst2", *overrides]).model
    assert settled(model).name == name
    assert settled(replace(model, name=name)).name == name


@pytest.mark.parametrize("name", ["llama_1b", "qwen3_600m", "gemma3_1b", "mixtral_2b"])
def test_a_decoder_classifies_where_the_task_has_classes(name):
    """The groups say language_model, which is what plans and task=sft are about."""
    model = compose(RunConfig, ["task=rte", f"model={name}"]).model
    assert [settled(model, words).head for words in (None, True, False)] == [
        *("language_model", "language_model"),
        None,
    ]
