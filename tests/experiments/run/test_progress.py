"""What one sees of a run: lines where no terminal is, bars where one is, and no dictionaries."""

import re
import sys

import pytest

from wtacrs_experiments.config import sweep
from wtacrs_experiments.records.record import record_path
from wtacrs_experiments.run import progress
from wtacrs_experiments.run.runner import run, training

EPOCHS = ("training.max_steps=-1", "training.epochs=2", "task.max_train_rows=16")
EPOCHS += ("measure.memory=false", "task.max_eval_rows=8")


def test_lines(make_config, capfd, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", -1.0)
    monkeypatch.setattr(sweep, "place", lambda: "run 3 of 12")
    record = run(make_config(*EPOCHS))
    out, err = capfd.readouterr()
    name = record_path(record.config).stem
    lines = [line for line in out.splitlines() if line.startswith("run 3 of 12")]
    assert lines[0] == f"run 3 of 12 · {name}"
    steps = [line.removeprefix(f"{lines[0]} · ") for line in lines if " · step " in line]
    assert len(steps) == 4
    end = r"ends about \d\d:\d\d \(0:\d\d:\d\d left\)"
    assert re.fullmatch(rf"step 1 of 4 · epoch 0.50 · loss \d\.\d{{4}} · {end}", steps[0])
    score = rf"accuracy {record.metrics['per_epoch'][0]['accuracy']:.4f} after epoch 1"
    assert re.fullmatch(rf"step 3 of 4 · epoch 1.50 · loss \d\.\d{{4}} · {score} · {end}", steps[2])
    losses = [float(re.search(r"loss (\S+)", line)[1]) for line in steps]
    assert sum(losses) / 4 == pytest.approx(record.metrics["train_loss"], abs=1e-4)
    assert f"{lines[0]} · evaluates after step 2, batch 1 of 1" in lines
    assert "{" not in out + err


@pytest.mark.parametrize("given", [["training.progress=false"], []])
def test_no_lines(given, make_config, capfd):
    """Where they are not wanted, or the run is over sooner."""
    run(make_config(*EPOCHS, *given))
    assert " · step " not in capfd.readouterr().out


def test_a_terminal_has_bars(make_config, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", -1.0)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(training.sweep, "place", lambda: "run 3 of 12")
    run(make_config(*EPOCHS))
    out, err = capsys.readouterr()
    assert " · step " not in out
    assert "{" not in out + err
    assert re.search(r"run 3 of 12: 100%.* 4/4 .*loss=\d\.\d{4}", err)


def test_failures_are_told_with_the_command_that_repeats_them():
    failed = [
        {"overrides": ["launcher=joblib", "seed=1", "task.name=a b"], "why": "too much"},
        {"overrides": ["mode=measure", "measure=memory", "seed=2"], "why": "no memory"},
    ]
    told = sweep.summary(failed, 9, "wtacrs run", ["-m", "--config-dir", "my folder"])
    assert told.splitlines() == [
        "2 of 9 failed",
        "  too much",
        "    wtacrs run --config-dir 'my folder' seed=1 'task.name=a b'",
        "  no memory",
        "    wtacrs run --config-dir 'my folder' mode=measure seed=2",
    ]
