"""Other data, or other code of a plugin, is another run; the data of the first records is not."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from wtacrs import ESTIMATORS
from wtacrs_experiments.config import ROOT, as_record
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.plan import status
from wtacrs_experiments.plan.status import asked_for
from wtacrs_experiments.records import inputs
from wtacrs_experiments.records.inputs import code_sum, data_sum, file_sum, identified
from wtacrs_experiments.records.record import FIRST_DATA, config_hash, record_path
from wtacrs_experiments.run.own_task import settle
from wtacrs_experiments.run.runner import load_plugins, run

REAL = Path(os.environ.get("GLUE_DIR") or "/nonexistent")  # the tests themselves must not see it
OWN = """
import torch
from wtacrs import ESTIMATORS, Selection
def own(p, k, generator):
    return Selection(torch.topk(p, k).indices, torch.ones(k))
ESTIMATORS["own"] = own
"""


def key(config):
    return config_hash(as_record(identified(config)))


@pytest.fixture
def glue(make_config, tiny_glue, tmp_path):
    """The config of a run on tiny files of STS-B, and the file of its training rows."""
    return make_config(
        "model=minilm", *tiny_glue("stsb")
    ), tmp_path / "glue" / "STS-B" / "train.tsv"


def test_the_same_data_elsewhere_is_the_same_run(glue, tmp_path):
    config, _ = glue
    (tmp_path / "glue").rename(tmp_path / "moved")
    moved = replace(config, task=replace(config.task, data_dir=str(tmp_path / "moved")))
    there = key(moved)
    (tmp_path / "moved").rename(tmp_path / "glue")
    assert key(config) == there


def test_an_edit_of_what_runs_already_is_not_taken_for_what_runs(tmp_path, monkeypatch):
    """A module is imported once a process."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edited_later.py").write_text("ONE = 1\n")
    before = code_sum(("edited_later",))
    (tmp_path / "edited_later.py").write_text("ONE = 2\n")
    assert code_sum(("edited_later",)) != before
    changed = code_sum(("edited_later",))
    importlib.import_module("edited_later")
    (tmp_path / "edited_later.py").write_text("ONE = 3\n")
    assert code_sum(("edited_later",)) == changed


def test_a_plugin_whose_package_fails_has_no_sum(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing").mkdir()
    (tmp_path / "failing" / "__init__.py").write_text("undefined_name\n")
    (tmp_path / "failing" / "mine.py").touch()
    assert code_sum(("failing.mine",)) is None


@pytest.mark.parametrize("name", ["train.tsv", "dev.tsv"])
def test_other_data_of_the_same_size_is_another_run(name, glue):
    config, path = glue
    before, path = key(config), path.with_name(name)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes().replace(b"word 1", b"word 2"))
    os.utime(path, ns=times)
    assert key(config) != before


def test_a_file_that_the_task_does_not_read_does_not_count(glue):
    config, path = glue
    before = key(config)
    path.with_name("test.tsv").write_text("other")
    assert key(config) == before


def test_a_folder_that_is_not_there_has_no_sum(make_config):
    config = make_config("model=minilm", "task=rte", "task.data_dir=/nowhere")
    assert identified(config) == config


def test_a_run_on_other_data_is_not_completed_before(glue, make_record, capsys, monkeypatch):
    config, path = glue
    done = []
    monkeypatch.setattr("wtacrs_experiments.run.runner.carry_out", lambda *_: done.append(1))
    for _ in range(2):
        run(config)
    path.write_bytes(path.read_bytes().replace(b"word 1", b"word 2"))
    run(config)
    assert (len(done), capsys.readouterr().out.count("completed before")) == (2, 1)
    records = [json.loads(file.read_text()) for file in path.parents[2].glob("runs/*.json")]
    sums = {record["config"]["task"]["data_sha256"] for record in records}
    assert len(sums) == 2
    assert data_sum(config.task) in sums


def test_status_asks_for_the_data_that_there_is(glue, make_config):
    _, path = glue
    asked = ("model=minilm", "task=stsb", f"task.data_dir={path.parents[1]}")
    (before,) = asked_for(asked)
    path.write_bytes(path.read_bytes().replace(b"word 1", b"word 2"))
    (after,) = asked_for(asked)
    assert before != after


def test_the_data_of_the_first_records_keep_their_name(make_config):
    first = as_record(make_config("model=minilm", "task=cola"))
    for found, same in ((FIRST_DATA[0], True), ("0" * 16, False)):
        now = first | {"task": first["task"] | {"data_sha256": found}}
        assert (config_hash(now) == config_hash(first)) == same


@pytest.mark.skipif(not REAL.is_dir(), reason="needs GLUE_DIR")
def test_the_data_of_glue_are_those_of_the_first_records(make_config):
    tasks = ("cola", "mrpc", "rte", "sst2", "stsb", "wnli")
    given = [make_config("model=minilm", f"task={t}", f"task.data_dir={REAL}") for t in tasks]
    assert tuple(data_sum(config.task) for config in given) == FIRST_DATA


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path, monkeypatch):
    reads, path = [], tmp_path / "a"
    monkeypatch.setattr(inputs, "_read", lambda path: reads.append(path.read_text()) or reads[-1])
    path.write_text("one")
    assert file_sum(path) == file_sum(path) == "one"
    assert len(reads) == 2  # it has just changed, and may do so again within a tick of the clock
    monkeypatch.setattr(inputs, "SETTLED_NS", -(10**9))
    assert file_sum(path) == file_sum(path) == "one"
    assert len(reads) == 3
    path.write_text("two")
    assert file_sum(path) == "two"


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes a module of plugins; forgets it and its estimator afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_plugin.py").write_text(OWN)
    yield tmp_path / "own_plugin.py"
    sys.modules.pop("own_plugin", None)
    ESTIMATORS.pop("own", None)


def test_other_code_of_a_plugins_estimator_is_another_run(plugin, make_config):
    config = make_config("plugins=[own_plugin]", "estimator=wtacrs", "estimator.name=own")
    first = key(config)
    assert key(config) == first
    plugin.write_text(OWN.replace("topk(p, k)", "topk(-p, k)"))
    assert key(config) != first
    method = [config_hash(as_record(c), only=("estimator",)) for c in (config, identified(config))]
    assert method[0] != method[1]  # so that a table does not average them


def test_all_files_of_a_package_count(plugin, tmp_path, make_config):
    config = make_config("plugins=[package]", "estimator=wtacrs", "estimator.name=own")
    (tmp_path / "package").mkdir()
    for name in ("__init__", "helper"):
        (tmp_path / "package" / f"{name}.py").write_text("")
    first = key(config)
    (tmp_path / "package" / "helper.py").write_text("SCALE = 2")
    assert key(config) != first


def test_a_probed_estimator_of_a_plugin_counts(plugin, make_config):
    probed = make_config(
        *("plugins=[own_plugin]", "measure=variance", "estimator=wtacrs", "memory=linear"),
        *("measure.methods=[own,wtacrs]", "measure.probe_steps=[0]"),
    )
    found = identified(probed)
    assert found.measure.code_sha256 is not None
    assert found.estimator == probed.estimator


def test_a_plugin_whose_estimators_are_not_used_does_not_count(plugin, make_config):
    config = make_config("plugins=[own_plugin]", "estimator=pps")
    assert identified(config) == config


def test_a_plugin_cannot_replace_an_estimator_of_the_library(plugin, make_config, monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "pps", ESTIMATORS["pps"])  # put back afterwards
    plugin.write_text(OWN.replace('"own"', '"pps"'))
    with pytest.raises(UserError, match="'pps' of the library was replaced"):
        load_plugins(make_config("plugins=[own_plugin]", "estimator=pps"))


def test_a_settled_config_has_the_sums(glue):
    config, _ = glue
    assert settle(config).task.data_sha256 == data_sum(config.task)
    assert record_path(as_record(settle(config))) != record_path(as_record(config))


def test_status_does_without_torch():
    loaded = f"import sys, {status.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT).returncode == 0
