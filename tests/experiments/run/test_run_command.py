"""``python run.py`` as a user meets it: exit status, messages, sweeps, what it does not touch."""

import json
import logging
import runpy
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from accelerate.utils import DistributedType
from hydra.core.hydra_config import HydraConfig

from wtacrs_experiments.records.record import record_path
from wtacrs_experiments.run import ranks

RUN = Path(__file__).parents[3] / "run.py"
# Hydra opens a log file for each run and leaves closing it to the end of the process.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def command(tmp_path, monkeypatch, tiny_overrides, capfd):
    """Runs run.py with these arguments in this process; returns exit status, stdout, stderr."""
    root = logging.getLogger()
    handlers, level = root.handlers.copy(), root.level
    monkeypatch.chdir(tmp_path)  # Hydra's own files go below the working directory

    def run(*arguments, tiny=True):
        given = [*(tiny_overrides if tiny else ()), "results_dir=runs", *arguments]
        given.sort(key=lambda argument: not argument.startswith("-"))
        monkeypatch.setattr(sys, "argv", ["run.py", *given])
        try:
            runpy.run_path(str(RUN), run_name="__main__")
            status = 0
        except SystemExit as done:
            status = done.code
        return status, *capfd.readouterr()

    yield run
    root.handlers[:], root.level = handlers, level
    HydraConfig.instance().cfg = None  # of a sweep, of which a later test is no part


@pytest.fixture
def records(tmp_path):
    return lambda: [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")]


def test_run_touches_no_network_and_no_tracker(command, records, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("reached out")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    status, out, _ = command()
    assert status == 0
    (record,) = records()
    assert record["status"] == "completed"
    assert out.startswith("digits · digits_tiny · full · wtacrs@0.3, seed 0\n")


@pytest.mark.slow
def test_run_in_a_process_of_its_own(tmp_path, tiny_overrides):
    given = [*tiny_overrides, "results_dir=runs"]
    done = subprocess.run(
        [sys.executable, str(RUN), *given], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    (path,) = (tmp_path / "runs").glob("[!.]*")
    assert done.stdout.splitlines()[-1] == f"runs/{path.name}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.batch_size=7",
            "training.world_size=2 processes cannot share a batch of training.batch_size=7 evenly",
        ),
        ("mode=measure", "run in one process, without torchrun"),
        ("training.device=cpu", "shards (FSDP) on accelerators only"),
    ],
)
def test_what_processes_cannot_do_together(override, message, command, records, monkeypatch):
    """One of two, alone: each sees it by itself."""
    for name, value in {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    on_cpu = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
    monkeypatch.setattr(ranks, "PartialState", lambda cpu: on_cpu)
    status, _, error = command(override)
    assert status == 1
    assert message in error
    assert records() == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["budget=0"], ["budget=0 ", "(0, 1]"]),
        (["budget=1.5"], ["budget=1.5 ", "(0, 1]"]),
        (["estimator.name=best"], ["'best' is unknown", "uniform, crs, deterministic, wtacrs"]),
        (["estimator=best"], ["'estimator/best'", "crs", "deterministic", "full", "wtacrs"]),
        (["task=chess"], ["'task/chess'", "cola", "digits", "mnli", "sst2"]),
        (["model=gpt9"], ["'model/gpt9'", "bert_base", "digits_tiny", "minilm"]),
        (
            ["estimator.include=[nothing*]"],
            ["no linear layer matches", "bert.encoder.layer.0.output.dense: not included"],
        ),
        (["results_dir=file/runs"], ["results_dir=file/runs cannot be written"]),
        (["plugins=[no_such]"], ["module 'no_such' cannot be imported"]),
    ],
)
def test_bad_input_is_one_clear_message(arguments, parts, command, tmp_path):
    (tmp_path / "file").touch()
    groups = ("estimator=", "task=", "model=")
    status, out, error = command(*arguments, tiny=not arguments[0].startswith(groups))
    assert status == 1
    assert [part for part in parts if part not in error] == []
    assert "Traceback" not in out + error


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["model=minilm", "task.data_dir=/nowhere"],
            ["task.data_dir='/nowhere' (or GLUE_DIR) is not a folder", "leave it null"],
        ),
        (["model=minilm", "task.data_dir=glue"], ["glue/SST-2 is missing", "holds: nothing"]),
        (["model=minilm"], ["the hub", "task.data_dir=", "GLUE_DIR", "experiment=demo"]),
        ([], ["the hub", "model=minilm", "model.path=FOLDER", "experiment=demo"]),
    ],
)
def test_data_or_model_that_cannot_be_had(arguments, parts, command, records, tmp_path):
    (tmp_path / "glue").mkdir()
    status, out, error = command(*arguments, tiny=False)
    assert status == 1
    assert [part for part in parts if part not in error] == []
    assert "Traceback" not in out + error
    (record,) = records()
    assert record["status"] == "failed"
    assert record["error"]["message"] in error


def test_broken_record_is_left_alone(command, tmp_path):
    assert command("measure.memory=false")[0] == 0
    (path,) = (tmp_path / "runs").glob("[!.]*")
    path.write_text("{")
    status, _, error = command("measure.memory=false")
    assert (status, path.read_text()) == (1, "{")
    assert f"runs/{path.name} is not a valid record" in error
    assert "overwrite=true" in error
    assert "Traceback" not in error


def test_sweep_goes_on_after_a_failure(command, records):
    sweep = ("-m", "budget=0.1,1.5,0.2", "training.max_steps=1", "measure.memory=false")
    status, out, error = command(*sweep)
    assert status == 1
    assert sorted(record["config"]["budget"] for record in records()) == [0.1, 0.2]
    assert error.startswith("error: budget=1.5 is ")
    names = {r["config"]["budget"]: record_path(r["config"]).stem for r in records()}
    assert "Traceback" not in out + error
    first, why, again = error.splitlines()[-3:]
    assert first == "1 of 3 failed"
    assert why.startswith("  budget=1.5 is ")
    assert again.startswith(f"    python {RUN} ")
    assert [line for line in out.splitlines() if line.startswith("run ")] == [
        f"run {k} of 3 · {name}" for k, name in ((1, names[0.1]), (3, names[0.2]))
    ]
    assert "{" not in out  # no dictionary of the Trainer's
    status, _, error = command(*shlex.split(again)[2:], tiny=False)
    assert (status, error.splitlines()[-1][:20]) == (1, "error: budget=1.5 is")
    status, out, _ = command(*sweep[:1], "budget=0.1,0.2", *sweep[2:])
    assert status == 0
    assert out.count("skipped, completed before") == out.count("overwrite=true runs it again") == 2


def test_each_run_of_a_sweep_is_a_run_of_wandb(command, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    sweep = ("-m", "logging=wandb", "seed=0,1", "training.max_steps=1")
    assert command(*sweep)[0] == 0
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len({run.name.rsplit("-", 1)[1] for run in runs}) == 2
    for run in runs:
        (log,) = run.glob("*.wandb")
        content = log.read_bytes()
        assert all(word in content for word in (b"preset", b"peak_bytes", b"best_epoch"))


def test_wandb_that_is_not_installed(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    status, _, error = command("logging=wandb")
    assert status == 1
    assert "pip install wandb, or logging=none" in error
    assert "Traceback" not in error
