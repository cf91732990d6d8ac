"""What a run is called, and what lies beside its record while it goes on."""

import pytest
from omegaconf import OmegaConf

from experiments.records.record import record_path
from experiments.run import runner
from experiments.run.runner import run


def test_a_mark_lies_beside_the_record_while_it_runs(make_config, tmp_path, monkeypatch):
    def look(config, record, folder):
        found.extend(path.name for path in (tmp_path / "runs").iterdir())

    found = []
    monkeypatch.setattr(runner, "carry_out", look)
    run(make_config())
    (record,) = (tmp_path / "runs").iterdir()
    assert found == [f"{record.stem}.running"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["model=bert_base"], "bert_base"),
        (["model=mpnet_base"], "mpnet_base"),  # its path is of the environment
        (["model=bert_base", "model.path=google-bert/bert-base-uncased"], "bert_base"),
        (["model=bert_base", "model.path=some-one/roberta-x"], "roberta_x"),
        (["model=minilm", "model.source=folder", "model.path=/models/my-own v2.1/"], "my_own_v2.1"),
        (["model=minilm", "model.source=folder", "model.path=~/tuned"], "tuned"),
        (["model=minilm", "model.source=folder", "model.path=/"], "minilm"),
    ],
)
def test_a_run_is_named_after_the_model_that_it_loads(overrides, name, make_config, monkeypatch):
    monkeypatch.setenv("WTACRS_MODELS", "/elsewhere")
    config = runner.resolve(make_config(*overrides))
    assert config.model.name == name
    assert record_path(OmegaConf.to_container(config)).name.startswith(f"digits-{name}-full-")
    assert runner.resolve(config).model.name == name
