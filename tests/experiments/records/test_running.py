"""The mark of a run that is under way."""

import os
import subprocess
import sys

import pytest

from experiments.config import ROOT
from experiments.records.running import is_alive, marked, read_mark


def test_a_mark_is_there_while_the_run_is(tmp_path):
    record = tmp_path / "runs" / "a-b0.3.json"
    found = []

    def run():
        with marked(record, {"seed": 3}):
            (mark,) = record.parent.iterdir()
            found.extend([mark, read_mark(mark)])
            raise ValueError("cut off")

    with pytest.raises(ValueError, match="cut off"):
        run()
    mark, said = found
    assert mark.name == "a-b0.3.running"
    assert (said["config"], said["pid"]) == ({"seed": 3}, os.getpid())
    assert is_alive(said)
    assert list(record.parent.iterdir()) == []
    assert read_mark(mark) is None


def test_the_mark_of_a_killed_run_is_of_the_dead(tmp_path):
    code = f"""
import os
from pathlib import Path
from experiments.config import ROOT
from experiments.records.running import marked
with marked(Path({str(tmp_path / "a.json")!r}), {{}}):
    os._exit(9)
"""
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=paths).returncode == 9
    mark = read_mark(tmp_path / "a.running")
    assert not is_alive(mark)
    assert is_alive(mark | {"host": "another machine"})


@pytest.mark.parametrize("content", ["", "{", "3"])
def test_what_is_no_mark_says_nothing(content, tmp_path):
    (tmp_path / "a.running").write_text(content)
    assert read_mark(tmp_path / "a.running") is None
