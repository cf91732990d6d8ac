"""Sweeps whose runs are processes of their own: joblib's, submitit's as on Slurm, and Ray's."""

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from wtacrs_experiments.config import ROOT, sweep
from wtacrs_experiments.config.command import command
from wtacrs_experiments.errors import UserError

TINY = ["task=digits", "model=digits_tiny", "training.max_steps=1", "task.max_train_rows=16"]
TINY += ["measure.memory=false", "training.batch_size=8", "training.device=cpu"]


def start(tmp_path, *overrides, **more):
    hydra = f"hydra.sweep.dir={tempfile.mkdtemp(dir=tmp_path)}"
    return subprocess.Popen(
        [sys.executable, "run.py", "-m", *TINY, *overrides, f"results_dir={tmp_path}/runs", hydra],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def records(tmp_path):
    return [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit"])
def test_what_fails_stops_no_other(launcher, tmp_path):
    """And is said at the end, and by the exit status."""
    process = start(tmp_path, f"launcher={launcher}", "seed=0,1", "training.learning_rate=-1,1e-3")
    _, err = process.communicate(timeout=280)
    assert process.returncode == 1
    assert "2 of 4 failed" in err
    assert err.count("training.learning_rate=-1") >= 2
    assert [record["status"] for record in records(tmp_path)] == ["completed"] * 2
    process = start(tmp_path, f"launcher={launcher}", "seed=0", "training.learning_rate=1e-3")
    _, err = process.communicate(timeout=280)
    assert process.returncode == 0, err


@pytest.mark.slow
def test_a_sweep_started_twice_does_each_cell_once(tmp_path):
    both = [start(tmp_path, "launcher=joblib", "seed=0,1") for _ in range(2)]
    told = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert len(records(tmp_path)) == 2
    output = "".join(out for out, _ in told)
    assert output.count("training loss") == 2
    assert output.count("skipped, ") == 2


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("ray") is None, reason="needs hydra-ray-launcher, which CI puts beside the rest"
)
def test_ray(tmp_path):
    """Three cells, three that fail, and all of it twice at once: on a cluster each. Ray may end
    before it has told a worker's last lines."""
    own = "hydra.launcher.ray.init.address=local"
    cells = (own, "seed=0,1,2", "training.learning_rate=-1,1e-3")
    more = {"HOME": str(tmp_path), "RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    both = [start(tmp_path, "launcher=ray", *cells, **more) for _ in range(2)]
    told = [process.communicate(timeout=400) for process in both]
    assert [process.returncode for process in both] == [1, 1], told
    assert all("3 of 6 failed" in err for _, err in told)
    assert [record["status"] for record in records(tmp_path)] == ["completed"] * 3
    output = "".join(out for out, _ in told)
    assert output.count("training loss") <= 3
    assert 1 <= output.count("skipped, ") <= 3


def test_a_worker_begins_where_the_command_was_typed(monkeypatch, tmp_path):
    """One of Ray's is in another folder, and the folder of the sweep is a relative one."""
    here = {"mode": RunMode.MULTIRUN, "sweep": {"dir": "."}, "job": {"chdir": None}}
    node = OmegaConf.create({**here, "runtime": {"cwd": str(tmp_path)}})
    monkeypatch.setattr(sweep.HydraConfig, "get", lambda: node)
    monkeypatch.chdir(ROOT)
    sweep.begin()
    assert (tmp_path / sweep.BEGUN).read_text() == ".\n"
    node.job.chdir = True
    monkeypatch.chdir(ROOT / "docs")
    node.sweep.dir = str(tmp_path)
    sweep.begin()
    assert Path.cwd() == ROOT / "docs"


def test_a_launcher_whose_package_is_missing(monkeypatch):
    monkeypatch.setattr("wtacrs_experiments.config.sweep.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"launcher=slurm needs a package: .*'wtacrs\[slurm\]'"):
        command(["-m", "launcher=slurm", "seed=0,1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launcher=joblib", "seed=0"], "launcher=joblib is of a sweep; add -m"),
        (["-m", "launcher=local,joblib"], "a sweep has one launcher"),
    ],
)
def test_a_launcher_with_nothing_to_launch(arguments, message):
    with pytest.raises(UserError, match=message):
        command(arguments)


def test_an_earlier_sweep_in_the_same_folder_says_nothing(tmp_path):
    for name in (sweep.BEGUN, sweep.FAILED):
        (tmp_path / name).write_text("of before\n")
    sweep.Sweep().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    try:
        assert sweep.failures() == ([], 0)
    finally:
        sweep.Sweep.folder = None


def test_a_launcher_that_there_is_not():
    with pytest.raises(UserError, match="launcher is one of joblib, local, ray, slurm, submitit"):
        command(["launcher=jobs"])
