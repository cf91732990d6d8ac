"""The command of Table 1: counts, planned costs, what it says where something is missing."""

import pytest
import torch

from tests.experiments.records.test_grid import TINY
from wtacrs_experiments.plan import start, table1
from wtacrs_experiments.records.grid import cells

PLANNED = {"memory": {"peak_bytes": 3 * 2**30}, "flops": 4e12}
GRID = {
    **{key: TINY[key] for key in ("seeds", "tasks", "methods")},
    "rows": {"digits": 100},
    "warmup_steps": 2,
    "blocks": [
        {
            "models": ["digits_tiny"],
            "settings": {"training.batch_size": 30, "training.epochs": 3},
        }
    ],
}


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs the command on a tiny grid with plans made by hand; what it printed."""
    grid = {**GRID, "all": [f"results_dir={tmp_path / 'runs'}"], "needs_gpu": True}
    planned = []

    def plan(overrides, folder):
        planned.append(overrides)
        return PLANNED

    monkeypatch.setattr(table1, "load_grid", lambda name, results: grid)
    monkeypatch.setattr(table1, "planned_step", plan)
    monkeypatch.setattr(start, "start", lambda cell: command.calls.append(cell) or True)

    def command(*arguments, status=0):
        assert table1.main([*arguments]) == status
        said = capsys.readouterr()
        return said.out + said.err

    command.calls, command.planned = [], planned
    return command


def test_costs(command):
    out = command("paper", "--tflops", "2")
    steps = 3 * 4
    hours = steps * 4e12 / 2e12 / 3600
    assert table1.hours(PLANNED, steps, 2.0) == pytest.approx(hours)
    assert "3.00" in out
    assert "4 runs: 0 done, 4 to go" in out
    assert not command.calls
    (full, *_), half = command.planned[0], command.planned[-1]
    assert full == "model=digits_tiny"
    assert {"estimator=wtacrs", "budget=0.5", "batch_size=30", "device=cuda"} <= {*half}


def test_laptop_lists_what_is_to_go(command, monkeypatch):
    grid = {key: value for key, value in GRID.items() if key not in ("rows", "warmup_steps")}
    monkeypatch.setattr(table1, "load_grid", lambda name, results: grid | {"all": []})
    count, *left = command("laptop", "--only", "half").splitlines()
    assert count == "2 runs: 0 done, 2 to go"
    assert left == [f"digits_tiny · half · digits · seed {seed}" for seed in (0, 1)]
    assert "planned at the scale paper alone" in command("laptop", "--tflops", "2", status=1)


def test_hours_need_a_rate(command):
    out = command("paper")
    assert "hours need a rate: --tflops 60" in out
    assert table1.hours(PLANNED, 1, None) is None
    assert table1.hours("no such model", 1, 2.0) is None


def test_total_is_that_of_all_seeds():
    of = cells({**GRID, "all": []})
    found = {(cell.model, cell.method, cell.task): PLANNED for cell in of}
    table = table1.cost_table(of, found, 1e-6)
    one = 12 * 4e12 / 1e6 / 3600
    assert list(table.columns[-1].cells) == [f"{2 * one:.2f}"] * 2
    assert list(table.columns[-2].cells) == [f"{one:.2f}"] * 2
    assert list(table.columns[2].cells) == ["2", "2"]


def test_no_gpu_is_said_and_nothing_is_started(command, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with monkeypatch.context() as now:
        now.setattr(start, "missing", lambda *_: "the weights")  # of each of the four runs
        out = command("paper", "--run", status=1)
    assert "missing: a CUDA device" in out
    assert out.count("missing: the weights\n") == 1
    assert not command.calls
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    out = command("paper", "--run", "--tflops", "1")
    assert "0 done, 0 completed, 0 failed, 4 under way, 0 lacking" in out
    assert len(command.calls) == 4


@pytest.mark.parametrize("what", ["failed", "lacking"])
def test_what_did_not_run_is_in_the_status(what, command, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(table1, "run_all", lambda _: {"failed": 0, "lacking": 0, what: 1})
    assert f"1 {what}" in command("paper", "--run", status=1)


def test_words_choose_runs(command):
    assert "2 runs: " in command("paper", "--only", "half")
    assert "1 runs: " in command("paper", "--only", "1", "half", "digits")
    assert "--only='third' is unknown; choose 0, 1, digits" in command(
        *("paper", "--only", "third"), status=1
    )
    assert "no run is of all of these" in command("paper", "--only", "half", "full", status=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--tflops", "0"), "--tflops=0 must be above 0"),
        (("--results", __file__), "is a file; give a folder"),
    ],
)
def test_wrong_arguments(given, message, command):
    assert message in command("paper", *given, status=1)
