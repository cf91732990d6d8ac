"""Other files of a model in a local folder are another run; where they lie makes no difference."""

from pathlib import Path

import pytest

from wtacrs_experiments.config import as_record
from wtacrs_experiments.records import inputs
from wtacrs_experiments.records.inputs import identified
from wtacrs_experiments.records.record import FIRST_MODEL, config_hash
from wtacrs_experiments.run.own_task import settle
from wtacrs_experiments.run.weights import FILES


def key(config):
    return config_hash(as_record(config))


@pytest.fixture
def folder(tmp_path):
    """A folder with some of the files of a model."""
    (tmp_path / "mine").mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt", "README.md", "run.json"):
        (tmp_path / "mine" / name).write_text("{}")
    return tmp_path / "mine"


@pytest.fixture
def on(make_config):
    """The key of a run on the model in a folder."""
    given = ("model=bert_base", "task=rte")
    return lambda folder: key(settle(make_config(*given, f"model.path={folder}")))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_other_files_of_a_local_model_are_another_run(name, folder, on):
    before = on(folder)
    (folder / name).write_text('{"other": 1}')
    assert on(folder) != before


@pytest.mark.parametrize("name", ["README.md", "run.json"])
def test_what_no_model_reads_does_not_count(name, folder, on):
    before = on(folder)
    (folder / name).write_text("other")
    assert on(folder) == before


def test_the_same_model_elsewhere_is_the_same_run(folder, on, tmp_path):
    before = on(folder)
    (tmp_path / "elsewhere").mkdir()
    assert on(folder.rename(tmp_path / "elsewhere" / folder.name)) == before


def test_the_model_of_the_first_records_keeps_its_name(make_config, monkeypatch):
    """The sum is made from those of run/weights.py, which make models holds the files against."""
    config = make_config("model=mpnet_base", "task=cola")
    monkeypatch.setattr(inputs, "file_sum", lambda path: FILES[path.name])
    names = [Path(name) for name in FILES]
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(names))
    assert identified(config).model.files_sha256 == FIRST_MODEL
    assert key(identified(config)) == key(config)
