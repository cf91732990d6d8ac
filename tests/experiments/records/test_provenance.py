"""Where a result comes from; what is unknown is None, not a guess."""

import platform
import subprocess
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import torch

from experiments.records import provenance as module
from experiments.records.provenance import provenance


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


def test_outside_a_repository(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance()["git_commit"] is provenance()["git_dirty"] is None


def test_dirty_is_about_tracked_files(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    user = ("-c", "user.name=a", "-c", "user.email=a@b")
    (tmp_path / "code.py").write_text("1")
    git("init")
    git("add", "code.py")
    git(*user, "commit", "-m", "first")
    (tmp_path / "notes").touch()
    assert provenance()["git_dirty"] is False
    (tmp_path / "code.py").write_text("2")
    assert provenance()["git_dirty"] is True


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance()["git_commit"] is None


def test_unknown_package(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    assert provenance()["packages"] == {"torch": version("torch"), "no-such-package": None}
