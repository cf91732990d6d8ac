"""Which room may import which: imports go down the list only, and a report starts nothing."""

import ast
from pathlib import Path

import pytest

from wtacrs_experiments.config import ROOT

BASE = {"config", "errors", "words"}  # what every room may use
MAY_IMPORT = {
    **{"config": {"errors", "words"}, "errors": set(), "words": set()},
    "records": BASE,
    "run": {*BASE, "records"},
    "plan": {*BASE, "records", "run"},
    "bench": {*BASE, "records", "run", "plan"},
    "reports": {*BASE, "records"},
}
DOORS = ("cli", "main")  # hand over to every room
FILES = sorted((ROOT / "wtacrs_experiments").rglob("*.py"))


def room(parts):
    """The room of ("wtacrs_experiments", "run", "runner.py"), or of the same as a module's name."""
    return Path(parts[1]).stem if len(parts) > 1 else "__init__"


def imported(source):
    """The rooms that a file of Python imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room they reach"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        split = [name.split(".") for name in names]
        found |= {room(parts) for parts in split if parts[0] == "wtacrs_experiments"}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    of = room(path.relative_to(ROOT).parts)
    if of in (*DOORS, "__init__"):
        return
    assert of in MAY_IMPORT, f"{of} is no room: say here what it may import"
    assert imported(path.read_text()) <= MAY_IMPORT[of] | {of}


@pytest.mark.parametrize("path", sorted((ROOT / "wtacrs").rglob("*.py")), ids=str)
def test_the_library_knows_nothing_of_the_framework(path):
    assert imported(path.read_text()) == set()


def test_every_way_to_import_is_seen():
    text = "import wtacrs_experiments.run.tasks\n"
    text += "def f():\n    from wtacrs_experiments import bench, errors"
    assert imported(text) == {"run", "bench", "errors"}
    assert imported("from wtacrs_experiments.plan.search import plan\nimport torch") == {"plan"}
