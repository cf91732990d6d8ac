"""Records: written whole or not at all, valid JSON whatever a run did, one file a run."""

import copy
import json
import os
import re

import pytest

from wtacrs_experiments.config import as_record
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import (
    RecordError,
    check_writable,
    config_hash,
    read_record,
    record_path,
    write_record,
)


@pytest.fixture
def hash_of(make_config):
    return lambda *overrides: config_hash(as_record(make_config(*overrides)))


def test_round_trip(make_record, tmp_path):
    record = make_record()
    record.error = {"type": "ValueError", "message": 'a "b" [ c ]\n\t– é [', "list": ["[ x ", "]"]}
    write_record(record, tmp_path / "a.json")
    assert read_record(tmp_path / "a.json") == record
    assert os.listdir(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_variance_is_in_the_file_only_if_measured(make_record, tmp_path):
    record = make_record()
    write_record(record, tmp_path / "a.json")
    assert "variance" not in json.loads((tmp_path / "a.json").read_text())
    record.variance = {"probes": []}
    write_record(record, tmp_path / "a.json")
    assert read_record(tmp_path / "a.json") == record


@pytest.mark.parametrize("where", ["replace", "fsync"])
def test_failed_write_leaves_the_old_record(where, make_record, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_record(make_record(best=0.5), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(OSError, match="disk full"):
        write_record(make_record(best=0.6), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_number_that_is_not_finite_is_null(number, make_record, tmp_path):
    record = make_record()
    record.metrics |= {"train_loss": float(number), "per_epoch": [{"loss": float(number)}]}
    write_record(record, tmp_path / "a.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    written = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert written["metrics"]["train_loss"] is None
    assert written["metrics"]["per_epoch"] == [{"loss": None}]


def test_texts_of_a_task_are_part_of_a_text_to_text_run_alone(hash_of):
    other = 'task.text_to_text.input="{0} {1}?"'
    assert hash_of("task=rte", "model=minilm") == hash_of("task=rte", "model=minilm", other)
    assert hash_of("task=rte", "model=t5_small") != hash_of("task=rte", "model=t5_small", other)


def test_presets_are_what_they_were_before_the_loss_was_among_their_kinds(make_config):
    """Records from then, which have no clock of checkpoints, keep their name
    and stand in the row of their method."""
    now = as_record(make_config("memory=leanest"))
    before = copy.deepcopy(now)
    before["memory"]["lossless"].remove("loss")
    chosen = copy.deepcopy(before)  # by a user of today
    del before["training"]["checkpoint_minutes"]
    for part in (None, ("memory",)):
        assert config_hash(before, only=part) == config_hash(now, only=part)
        assert config_hash(chosen, only=part) != config_hash(now, only=part)


def test_what_is_not_there_is_not_hashed():
    assert config_hash({}) == "44136fa3"  # of "{}": of a plan, which has no task, and of a method


def test_name_says_what_the_run_is(make_config, tmp_path):
    config = as_record(make_config("seed=3", "estimator=crs", "budget=0.05"))
    path = record_path(config)
    assert path.parent == tmp_path / "runs"
    assert re.fullmatch(r"digits-digits_tiny-full-crs-b0\.05-s3-[0-9a-f]{8}\.json", path.name)
    assert path.name.endswith(f"-{config_hash(config)}.json")


@pytest.mark.parametrize(
    "override",
    [
        *("results_dir=elsewhere", "overwrite=true", "logging=wandb", "plugins=[mine]"),
        *("task.data_dir=/glue", "training.progress=false", "training.checkpoint_steps=9"),
    ],
)
def test_what_does_not_change_the_result_is_not_hashed(override, hash_of):
    assert hash_of(override) == hash_of()


@pytest.mark.parametrize(
    "override",
    [
        *("seed=1", "budget=0.31", "training.learning_rate=0.5", "training.precision=bf16"),
        *("estimator=crs", "estimator.floor=0.02", "estimator.grad_norms=none"),
        *("task.max_train_rows=63", "model.config.hidden_dropout_prob=0.1", "measure.memory=false"),
    ],
)
def test_what_changes_the_result_is_hashed(override, hash_of):
    assert hash_of(override) != hash_of()


def test_hash_does_not_depend_on_order_and_changes_nothing(make_config):
    config = as_record(make_config())
    before = json.dumps(config)
    assert config_hash(dict(reversed(config.items()))) == config_hash(config)
    assert config_hash(config, without=("seed",)) == config_hash(config | {"seed": 5}, ("seed",))
    assert json.dumps(config) == before


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"3", b"null", b"{}", b"\xff\xfe"),
        b'{"status": "completed", "config": 3}',
        b'{"status": "done", "config": {}}',
        b'{"status": "completed", "config": {}, "score": 1}',
    ],
)
def test_what_is_not_a_record_is_refused_and_left(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"not a valid record .* overwrite=true") as error:
        read_record(path)
    assert str(path) in str(error.value)
    assert path.read_bytes() == content


def test_missing_record_is_refused(tmp_path):
    with pytest.raises(RecordError, match="No such file"):
        read_record(tmp_path / "a.json")


def test_results_folder_is_made(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert not any((tmp_path / "a" / "b").iterdir())


@pytest.mark.parametrize("below", ["", "runs"])
def test_results_folder_that_cannot_be_written(below, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .* choose another folder"):
        check_writable(tmp_path / "file" / below)
