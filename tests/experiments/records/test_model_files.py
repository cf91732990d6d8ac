"""Other files of a model in a local folder are another run; where they lie makes no difference."""

import pytest

from wtacrs_experiments.config import CONF, as_record
from wtacrs_experiments.records import inputs
from wtacrs_experiments.records.grid import record_of
from wtacrs_experiments.records.inputs import identified
from wtacrs_experiments.records.record import FIRST_MODEL, config_hash, record_path
from wtacrs_experiments.run.own_task import settle
from wtacrs_experiments.run.weights import FILES

READ = ("config.json", "model.safetensors", "vocab.txt", "merges.bpe", "chat_template.jinja")
NOT_READ = ("README.md", "run.json")


def key(config):
    return config_hash(as_record(config))


@pytest.fixture
def folder(tmp_path):
    """A folder with some of the files of a model."""
    (tmp_path / "mine").mkdir()
    for name in (*READ, *NOT_READ):
        (tmp_path / "mine" / name).write_text("{}")
    return tmp_path / "mine"


@pytest.fixture
def on(make_config):
    """The key of a run on the model in a folder."""
    given = ("model=bert_base", "task=rte")
    return lambda folder: key(settle(make_config(*given, f"model.path={folder}")))


@pytest.mark.parametrize("name", READ)
def test_other_files_of_a_local_model_are_another_run(name, folder, on):
    before = on(folder)
    (folder / name).write_text('{"other": 1}')
    assert on(folder) != before


@pytest.mark.parametrize("name", NOT_READ)
def test_what_no_model_reads_does_not_count(name, folder, on):
    before = on(folder)
    (folder / name).write_text("other")
    assert on(folder) == before


def test_the_same_model_elsewhere_is_the_same_run(folder, on, tmp_path):
    before = on(folder)
    (tmp_path / "elsewhere").mkdir()
    assert on(folder.rename(tmp_path / "elsewhere" / folder.name)) == before


def test_the_model_of_the_first_records_keeps_its_name(make_config, tmp_path, monkeypatch):
    """The sum is made from those of run/weights.py, which make models holds the files against."""
    config = make_config("model=mpnet_base", "task=cola")
    monkeypatch.setenv("WTACRS_MODELS", str(tmp_path))
    (tmp_path / "mpnet_base").mkdir()
    for name in FILES:
        (tmp_path / "mpnet_base" / name).touch()
    monkeypatch.setattr(inputs, "file_sum", lambda path: FILES[path.name])
    assert identified(config).model.files_sha256 == FIRST_MODEL
    assert key(identified(config)) == key(config)


def test_what_is_no_file_does_not_hide_the_others(folder, on):
    before = on(folder)
    (folder / "gone.txt").symlink_to(folder / "nothing")
    (folder / "folder.bin").mkdir()
    assert on(folder) == before
    (folder / "vocab.txt").write_text("other")
    assert on(folder) != before


def test_a_folder_has_one_name_however_it_is_written(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("WTACRS_MODELS", str(tmp_path))
    (tmp_path / "mpnet_base").mkdir()
    plain = settle(make_config("model=mpnet_base", "task=rte"))
    for path in (tmp_path / "mpnet_base", f"{tmp_path}/mpnet_base/", f"{tmp_path}/x/../mpnet_base"):
        other = settle(make_config("model=mpnet_base", "task=rte", f"model.path={path}"))
        assert as_record(other) == as_record(plain)


def test_a_group_that_moved_is_the_same_run(folder, make_config, tmp_path, monkeypatch):
    """The sizes that its group has are those of its files."""
    folder = folder.rename(tmp_path / "mpnet_base")
    moved = settle(make_config("model=mpnet_base", "task=rte", f"model.path={folder}"))
    monkeypatch.setenv("WTACRS_MODELS", str(tmp_path))
    assert key(moved) == key(settle(make_config("model=mpnet_base", "task=rte")))


def test_a_sum_that_is_given_is_not_believed(make_config):
    given = make_config("model=bert_base", "task=rte", "model.files_sha256=aa")
    assert settle(given).model.files_sha256 is None


@pytest.mark.parametrize("model", [path.stem for path in (CONF / "model").glob("*.yaml")])
def test_a_grid_looks_where_a_run_writes(model, make_config):
    task = "digits" if "tiny" in model else "rte"
    config = make_config(f"model={model}", f"task={task}")
    assert record_of(config) == record_path(as_record(settle(config)))
