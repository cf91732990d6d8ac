"""How far a sweep is: states, errors, what is missing, time left."""

import os
import socket
import subprocess

import pytest

from wtacrs_experiments.config import RunConfig, as_record, compose
from wtacrs_experiments.plan import status
from wtacrs_experiments.plan.status import read_sweep
from wtacrs_experiments.records.record import record_path, write_record
from wtacrs_experiments.records.store import write_json
from wtacrs_experiments.run.own_task import settle

TINY = (
    *("model=digits_tiny", "task=digits", "task.max_train_rows=64", "task.max_length=16"),
    *("training.max_steps=4", "training.batch_size=8", "training.learning_rate=1e-3"),
)


@pytest.fixture
def leave(make_record, folder):
    """Writes the record of a run that ended like this; returns the name of its file."""

    def write(*overrides, state="completed", seconds=100.0, error=None):
        record = make_record(*overrides, status=state)
        record.provenance, record.error = {"seconds": seconds}, error
        path = record_path(record.config)
        write_record(record, path)
        return path.stem

    return write


@pytest.fixture
def mark(make_config, folder):
    """Leaves the mark of a run of process ``pid``; returns the name of its file."""

    def write(*overrides, pid):
        config = as_record(make_config(*overrides))
        path = record_path(config).with_suffix(".running")
        who = {"pid": pid, "host": socket.gethostname(), "started_at": "now"}
        write_json({**who, "config": config}, path)
        return path.stem

    return write


def dead():
    """The number of a process that has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_states(leave, mark, folder):
    leave("seed=0")
    failed = leave("seed=1", state="failed", error={"type": "KeyError", "message": "a\nb"})
    cut = leave("seed=2", state="interrupted")
    running, killed = mark("seed=3", pid=os.getpid()), mark("seed=4", pid=dead())
    leave("seed=5", state="failed")
    again = mark("seed=5", pid=os.getpid())  # it failed, and runs again
    sweep = read_sweep(folder)
    assert sweep.found["failed"] == [failed]
    assert sweep.found["interrupted"] == [cut, killed]
    assert sorted(sweep.found["running"]) == sorted([running, again])
    assert sweep.errors == {failed: "KeyError: a"}
    assert sweep.found["missing"] == []


def test_every_setting_is_asked_for_with_every_seed(leave, folder):
    for seed in (0, 1, 2):
        leave("estimator=full", f"seed={seed}", seconds=10.0 * 10**seed)
    leave("seed=0", seconds=200.0)
    leave("budget=0.1", "seed=1", state="failed")
    sweep = read_sweep(folder)
    assert sorted(name.split(" budget=")[1] for name in sweep.found["missing"]) == [
        *("0.1 seed=0", "0.1 seed=2", "0.3 seed=1", "0.3 seed=2"),
    ]
    assert sweep.seconds_left() == 5 * 150  # the failed one, too; median of 10, 100, 200, 1000


def test_runs_of_no_sweep_miss_nothing(leave, folder):
    """Each of a setting and a seed of its own, and one that measured memory alone."""
    leave("seed=0")
    leave("seed=7", "budget=0.1")
    leave("seed=7", "measure=memory")
    assert read_sweep(folder).found["missing"] == []


def test_overrides_say_what_is_asked_for(leave, folder):
    leave("estimator=full", "seed=0")
    leave("seed=0", "memory=lean")
    leave("seed=0", "budget=0.3", "training.world_size=2")  # by torchrun
    leave("seed=0", "budget=0.2", "training.learning_rate=0.5")  # another setting
    grid = ("estimator=full,wtacrs", "budget=0.2,0.3", "seed=0,1")
    missing = read_sweep(folder, [*TINY, *grid]).found["missing"]
    assert [" ".join(name.split()[3:]) for name in missing] == [
        "estimator=full memory=plain budget=1 seed=1",
        "estimator=wtacrs memory=linear budget=0.2 seed=0",
        "estimator=wtacrs memory=linear budget=0.2 seed=1",
        "estimator=wtacrs memory=linear budget=0.3 seed=1",
    ]
    assert read_sweep(folder, [*TINY, "memory=plain,lean", "seed=0"]).found["missing"] == []
    assert read_sweep(folder, [*TINY, "estimator=pps", "seed=0"]).found["missing"] != []


def test_own_rows_and_an_own_model_are_those_of_the_runs(saved_model, make_record, folder):
    """A run is named after its file and model, and other rows of one name are another run."""
    file = folder.parent / "my.csv"
    file.write_text("text,label\nfine,1\nbad,0\n")
    own = ["task=csv", f"task.train_file={file}", f"model.path={saved_model}"]
    record = make_record()
    record.config = as_record(settle(compose(RunConfig, [*own, "seed=0"])))
    write_record(record, folder / "a.json")

    def missing():
        return [name[-6:] for name in read_sweep(folder, [*own, "seed=0,1"]).found["missing"]]

    assert missing() == ["seed=1"]
    file.write_text("text,label\nfine,1\nworse,0\n")
    assert missing() == ["seed=0", "seed=1"]


def test_command(leave, folder, capsys):
    leave("seed=0", seconds=1800.0)
    name = leave("seed=1", state="failed", error={"type": "KeyError", "message": "gone"})
    assert status.main(["-m", str(folder)]) == 0  # as the command of the sweep has it
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("1 completed, 0 running, 1 failed, 0 out of memory")
    assert second == f"  failed: {name}  KeyError: gone"
    assert last == "30.0 min left, one by one at 1800 s a run (median of 1)"
    assert status.duration(3 * 3600 + 240) == "3 h 04 min"


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["runs", "task=chess"], "'task/chess'"),
        (["runs", "budget=0.1,"], "mismatched input"),
        (["foreign"], "a.json is not a valid record"),
        (["runs", "task=csv", "task.train_file=gone.csv"], "gone.csv"),
    ],
)
def test_bad_input_is_one_message(given, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.json").write_text("{}")
    assert status.main(given) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert part in error
    assert error.count("\n") == 1
