"""Where a result comes from; what is unknown is None, not a guess."""

import platform
import subprocess
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import pytest
import torch

from wtacrs_experiments.records import provenance as module
from wtacrs_experiments.records.provenance import provenance


def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=module.ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def test_fields():
    found = provenance()
    assert found["git_commit"] == (git("rev-parse", "HEAD") or None)
    assert found["packages"]["torch"] == version("torch")
    assert found["packages"]["wtacrs"] == version("wtacrs")
    assert None not in found["packages"].values()
    assert found["python"] == platform.python_version()
    assert found["threads"] == torch.get_num_threads()
    assert datetime.now(UTC) - datetime.fromisoformat(found["started_at"]) < timedelta(minutes=1)
    assert found.keys() == {
        *("git_commit", "git_dirty", "packages", "python", "platform", "cpu", "threads"),
        *("device_name", "started_at"),
    }


def test_a_cpu_that_computes_bf16_by_float32_is_told(monkeypatch):
    for multiplies in (False, True):
        monkeypatch.setattr(module, "multiplies_bf16", lambda answer=multiplies: answer)
        assert provenance()["cpu"].endswith(", bf16 by float32") != multiplies


def test_outside_a_repository(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance()["git_commit"] is provenance()["git_dirty"] is None


@pytest.fixture
def repository(monkeypatch, tmp_path):
    """A clean repository with one source file; its folder."""
    monkeypatch.setattr(module, "ROOT", tmp_path)
    user = ("-c", "user.name=a", "-c", "user.email=a@b")
    for name in ("code.py", "results/a.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    (tmp_path / ".gitignore").write_text("outputs/\n")
    git("init")
    git("add", ".")
    git(*user, "commit", "-m", "first")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "dirty"),
    [
        *(("code.py", True), ("new.py", True), ("conf/model/new.yaml", True)),
        *(("notes", False), ("results/a.json", False), ("results/new.json", False)),
        *(("results/new.py", False), ("outputs/new.py", False)),
    ],
)
def test_dirty_is_about_sources(file, dirty, repository):
    assert provenance()["git_dirty"] is False
    (repository / file).parent.mkdir(parents=True, exist_ok=True)
    (repository / file).write_text("2")
    assert provenance()["git_dirty"] is dirty


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance()["git_commit"] is None


def test_unknown_package(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    assert provenance()["packages"] == {"torch": version("torch"), "no-such-package": None}
