"""What ``pip install`` brings: the wheel, unpacked, with nothing of the clone in reach."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from wtacrs_experiments.config import CONF, ROOT

TINY = ("model=digits_tiny", "task=digits", "training.epochs=1", "task.max_train_rows=64")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the packages of the wheel, in a project that has a repository of its own."""
    project = tmp_path_factory.mktemp("project")
    subprocess.run(["git", "init", "-q", project], check=True)
    sources = project / "sources"  # a copy, for setuptools leaves files beside what it builds
    for folder in ("wtacrs", "wtacrs_experiments", "conf"):
        shutil.copytree(ROOT / folder, sources / folder, symlinks=True)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, sources)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", project, sources], check=True)
    (wheel,) = project.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(project / "packages")
    return project / "packages"


@pytest.fixture
def wtacrs(installed):
    """Runs the command of the wheel in the folder of the project; returns what it printed."""

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "wtacrs_experiments.cli", *arguments],
            **{"cwd": installed.parent, "capture_output": True, "text": True},
            env={**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_no_name_of_others_at_the_top_level(installed):
    names = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert names == {"wtacrs", "wtacrs_experiments"}


def test_every_file_of_the_packages_is_in_the_wheel(installed):
    listed = ["git", "ls-files", "wtacrs", "wtacrs_experiments", "conf"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    inside = [
        f"wtacrs_experiments/{file}" if file.startswith("conf/") else file
        for file in files.split()
        if file != "wtacrs_experiments/conf"  # the link
    ]
    assert CONF.resolve() == ROOT / "conf"
    assert [file for file in inside if not (installed / file).is_file()] == []


def test_the_command_runs_without_a_clone(wtacrs, installed):
    assert "digits_tiny" in wtacrs("ls", "models")
    wtacrs("run", *TINY, "estimator=wtacrs", "budget=0.3", "seed=0")
    (path,) = (installed.parent / "outputs" / "runs").glob("*.json")
    record = json.loads(path.read_text())
    assert record["status"] == "completed"
    assert record["provenance"]["git_commit"] is None  # the project's is none of ours
    assert "digits" in wtacrs("table", "outputs/runs")
