"""The hash of the code that made a record: of files as they are, and of a commit, alike."""

import ast
import subprocess

import pytest

from wtacrs_experiments.config import ROOT
from wtacrs_experiments.records.code import BENCHES, PLANNER, code_hash, code_hash_at

PATHS = ("library", "planner.py")


@pytest.fixture
def repository(tmp_path):
    """A repository of one commit; gives a function that runs git in it."""

    def git(*arguments):
        user = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *user, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    (tmp_path / "library" / "deep").mkdir(parents=True)
    for name in ("library/a.py", "library/deep/b.py", "planner.py", "other.py", "library/c.txt"):
        (tmp_path / name).write_text(f"# {name}\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    return git


@pytest.mark.parametrize("name", ["library/a.py", "library/deep/b.py", "planner.py"])
def test_a_change_is_another_hash(name, repository, tmp_path):
    before = code_hash(PATHS, tmp_path)
    assert len(before) == 12
    (tmp_path / name).write_text("pass\n")
    assert code_hash(PATHS, tmp_path) != before


def test_a_new_name_is_another_hash_and_other_files_are_none(repository, tmp_path):
    before = code_hash(PATHS, tmp_path)
    for name in ("other.py", "library/c.txt"):
        (tmp_path / name).write_text("changed")
    assert code_hash(PATHS, tmp_path) == before
    (tmp_path / "library/a.py").rename(tmp_path / "library/aa.py")  # in the same place of the order
    assert code_hash(PATHS, tmp_path) != before


def test_hash_of_a_commit_is_that_of_its_files(repository, tmp_path):
    there = code_hash(PATHS, tmp_path)
    (tmp_path / "planner.py").write_text("changed")
    assert code_hash_at(repository("rev-parse", "HEAD"), PATHS, tmp_path) == there
    assert code_hash(PATHS, tmp_path) != there
    assert code_hash_at("0" * 40, PATHS, tmp_path) is None


def test_a_commit_of_before_the_framework_had_its_name(repository, tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/a.py").write_text("pass\n")
    there = code_hash(["experiments"], tmp_path)
    repository("add", ".")
    repository("commit", "-m", "second")
    head = repository("rev-parse", "HEAD")
    assert code_hash_at(head, ["wtacrs_experiments"], tmp_path) == there


@pytest.mark.parametrize("paths", [PLANNER, BENCHES])
def test_what_is_hashed_is_there(paths):
    assert [path for path in paths if not (ROOT / path).exists()] == []


def imported(path):
    """The files of the rooms plan and run that this one imports."""
    modules = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = {f"{module.replace('.', '/')}.py" for module in modules}
    rooms = ("wtacrs_experiments/plan/", "wtacrs_experiments/run/")
    return {file for file in files if file.startswith(rooms) and (ROOT / file).exists()}


def test_all_that_a_plan_is_made_by_is_hashed():
    """Or what it imports could change, and its records would not be stale."""
    asked, found = (
        {"wtacrs_experiments/plan/rehearsal.py", "wtacrs_experiments/plan/search.py"},
        set(),
    )
    while asked:
        file = asked.pop()
        found.add(file)
        asked |= imported(file) - found
    assert "wtacrs_experiments/run/memory.py" in found
    assert found <= {*PLANNER}
