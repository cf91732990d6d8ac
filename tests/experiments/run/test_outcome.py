"""How a run ends: what record is kept, what lies beside it, what a signal does."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from wtacrs_experiments.config import ROOT, as_record
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.claims import claimed
from wtacrs_experiments.records.record import read_record, record_path, write_record
from wtacrs_experiments.run import outcome, runner
from wtacrs_experiments.run.interruption import SIGNALS, Interrupted, Interruption
from wtacrs_experiments.run.own_task import settle
from wtacrs_experiments.run.runner import checkpoint_folder, run


@pytest.fixture
def path(make_config):
    return record_path(as_record(make_config()))


@pytest.fixture
def ends(monkeypatch):
    """Lets the training of a run end with an error, or by itself."""

    def end(error=None, work=lambda folder: None):
        def stand_in(config, record, folder, interruption):
            work(folder)
            if error is not None:
                raise error

        monkeypatch.setattr(runner, "carry_out", stand_in)
        monkeypatch.setattr(runner, "show", lambda record, path: None)

    return end


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), UserError("no"), KeyError()])
def test_a_completed_record_is_replaced_by_a_completed_one_only(
    error, make_config, make_record, path, ends, capsys
):
    path.parent.mkdir()
    write_record(make_record(), path)
    before = path.read_bytes()
    ends(error)
    with pytest.raises((runner.RunError, KeyboardInterrupt)):
        run(make_config("overwrite=true"))
    assert path.read_bytes() == before
    assert f"the record that was completed before stays: {path}" in capsys.readouterr().out
    ends()
    run(make_config("overwrite=true"))
    assert path.read_bytes() != before


def test_what_a_completed_run_left_is_removed(make_config, make_record, path, ends):
    """One killed after its record was written left checkpoints; those of one that is to replace the
    record, and was cut off, are gone on from."""
    path.parent.mkdir()
    write_record(make_record(), path)
    folder = checkpoint_folder(path)
    (folder / "checkpoint-2").mkdir(parents=True)
    ends(KeyboardInterrupt(), work=lambda folder: (folder / "checkpoint-4").mkdir())
    run(make_config())
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt):
        run(make_config("overwrite=true"))
    run(make_config())
    assert (folder / "checkpoint-4").exists()


def test_a_run_that_is_under_way_is_left_alone(make_config, path, ends, capsys):
    ends(AssertionError("it must not run"))
    with claimed(path, {}):
        assert run(make_config()) is None
        assert run(make_config("overwrite=true")) is None
    assert capsys.readouterr().out.count(f"skipped, process {os.getpid()} on") == 2
    assert not path.exists()


def test_a_record_that_cannot_be_written_is_shown_and_checkpoints_stay(
    make_config, path, ends, monkeypatch, capsys
):
    def full(record, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    ends(work=lambda folder: (folder / "checkpoint-2").mkdir(parents=True))
    monkeypatch.setattr(outcome, "write_record", full)
    with pytest.raises(runner.RunError, match=r"cannot be written.*No space left.*stands above"):
        run(make_config())
    (shown,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert json.loads(shown)["status"] == "completed"
    assert (checkpoint_folder(path) / "checkpoint-2").is_dir()


def test_checkpoints_go_when_the_record_is_there(make_config, path, ends, monkeypatch):
    ends(work=lambda folder: (folder / "checkpoint-2").mkdir(parents=True))
    there = []
    write = outcome.write_record

    def look(record, path):
        there.append(checkpoint_folder(path).exists())
        write(record, path)

    monkeypatch.setattr(outcome, "write_record", look)
    run(make_config())
    assert there == [True]
    assert not checkpoint_folder(path).exists()


def test_each_folder_of_results_has_its_own_checkpoints(tmp_path):
    folders = {checkpoint_folder(tmp_path / name / "a-s0.json") for name in ("one", "two")}
    assert len(folders) == 2


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_before_training_ends_the_run_at_once(name):
    before = signal.getsignal(getattr(signal, name))

    def work():
        with Interruption():
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(5)

    with pytest.raises(Interrupted, match=name):
        work()
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_signal_while_the_record_is_written_waits():
    with Interruption() as interruption:
        interruption.hold()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert interruption.asked == "SIGTERM"


def test_a_signal_while_a_record_is_written_ends_the_sweep_after_it(
    make_config, path, ends, monkeypatch
):
    def write(record, path):
        os.kill(os.getpid(), signal.SIGTERM)
        write_record(record, path)

    ends()
    monkeypatch.setattr(outcome, "write_record", write)
    with pytest.raises(Interrupted, match="SIGTERM"):
        run(make_config())
    assert read_record(path).status == "completed"


# A run of 40 steps that says which step it has done.
STEPS = """
import sys, time
from transformers import Trainer
import run
step = Trainer.training_step
def slow(self, *args, **kwargs):
    loss = step(self, *args, **kwargs)
    print("step", self.state.global_step, loss.item(), flush=True)
    time.sleep(0.05)
    return loss
Trainer.training_step = slow
sys.exit(run.main())
"""


@pytest.fixture
def start(tmp_path):
    given = ["task=digits", "model=digits_tiny", "training.max_steps=40", f"results_dir={tmp_path}"]
    given += ["measure.memory=false", "training.batch_size=8", "estimator=wtacrs"]

    def go():
        return subprocess.Popen(
            [sys.executable, "-c", STEPS, *given],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return go


def losses(text):
    lines = [line.split() for line in text.splitlines() if line.startswith("step ")]
    return {int(step): loss for _, step, loss in lines}


@pytest.mark.slow
def test_a_run_that_is_told_to_end_goes_on_from_there(start, tmp_path):
    """SIGTERM and SIGUSR1, one after the other; the third command finishes, each step once."""
    done = {}
    for name in ("SIGTERM", "SIGUSR1"):
        process, seen = start(), ""
        for line in process.stdout:
            seen += line
            if len(losses(seen)) == 5:
                process.send_signal(getattr(signal, name))
                break
        rest, _ = process.communicate(timeout=120)
        assert process.returncode == 130, seen + rest
        assert f"{name}: a checkpoint after this step" in rest
        (record,) = tmp_path.glob("*.json")
        assert read_record(record).status == "interrupted"
        assert read_record(record).error == {"type": "Interrupted", "message": name}
        assert not done.keys() & losses(seen + rest).keys()
        done |= losses(seen + rest)
    process = start()
    rest, _ = process.communicate(timeout=240)
    assert process.returncode == 0, rest
    assert read_record(record).status == "completed"
    assert not done.keys() & losses(rest).keys()
    done |= losses(rest)
    assert sorted(done) == [*range(40)]
    record.unlink()
    whole, _ = start().communicate(timeout=240)
    assert losses(whole) == done


def test_checkpoints_of_another_number_of_processes_are_told(make_config, ends, capsys):
    """This run begins anew, for its draws would be others."""
    two = settle(make_config())
    two = replace(two, training=replace(two.training, world_size=2))
    folder = checkpoint_folder(record_path(as_record(two)))
    ends()
    run(make_config())
    assert "processes" not in capsys.readouterr().out
    folder.mkdir(parents=True)
    run(make_config("overwrite=true"))
    told = f"{folder} is of 2 processes, and this run of 1 begins anew; start 2 to go on with it"
    assert told in capsys.readouterr().out
