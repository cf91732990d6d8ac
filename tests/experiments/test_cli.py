"""The one command: what it lists, where it hands over, and what it does without torch."""

import os
import runpy
import shutil
import subprocess
import sys

import pytest

from wtacrs_experiments import cli, main
from wtacrs_experiments.config import CONF, ROOT
from wtacrs_experiments.records.record import write_record


@pytest.mark.parametrize("given", ["--help", "ls", "status --help", "status runs"])
def test_without_torch(given, tmp_path):
    code = f"""
import sys
from wtacrs_experiments import cli
try:
    cli.main({given.split()!r})
finally:
    assert "torch" not in sys.modules
"""
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-c", code]
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=paths)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_ls_has_a_line_for_each_file(capsys):
    assert cli.main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for word, group in cli.GROUPS.items():
        at = lines.index(f"{word} ({group}=...)")
        files = sorted((CONF / group).glob("*.yaml"))
        for file, line in zip(files, lines[at + 1 :], strict=False):
            name, _, told = line.strip().partition(" ")
            assert (name, told.strip()[:5] != "") == (file.stem, True)
    assert cli.main(["ls", "tunings"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "tunings (tuning=...)"


def test_help_tells_every_command(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    for name, (_, text) in cli.COMMANDS.items():
        assert f"  {name:<8} {text}" in out


def test_report_is_the_short_table_of_a_record(make_record, tmp_path, capsys):
    record = make_record()
    record.memory |= {"device": "cpu", "host_cache_bytes": 0}
    record.throughput["step_seconds"] = {"median": 0.5}
    record.metrics["train_loss"] = float("nan")  # null in the file
    write_record(record, tmp_path / "a.json")
    assert cli.main(["report", str(tmp_path / "a.json")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("digits · digits_tiny · full · wtacrs@0.3, seed 0")
    assert "accuracy, best" in out
    record = make_record(status="failed")
    record.error = {"type": "KeyError", "message": "gone"}
    record.metrics = record.memory = record.throughput = None
    write_record(record, tmp_path / "b.json")
    assert cli.main(["report", str(tmp_path / "b.json")]) == 0
    assert capsys.readouterr().out.startswith("failed: KeyError: gone\n")
    assert cli.main(["report", str(tmp_path / "c.json")]) == 1
    assert "c.json is not a valid record" in capsys.readouterr().err


def test_report_of_a_folder_is_a_page(make_record, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    write_record(make_record(), tmp_path / "runs" / "a.json")
    assert cli.main(["report", "runs"]) == 0
    assert capsys.readouterr().out.startswith("outputs/reports/runs.html (")
    assert (tmp_path / "outputs/reports/runs.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("command", ["plan", "status", "report", "table", "figure", "audit"])
def test_commands_hand_over(command, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_run_is_run_py(monkeypatch):
    monkeypatch.setattr(main, "main", lambda: 7)
    monkeypatch.setattr(sys, "argv", ["wtacrs"])
    assert cli.main(["run", "-m", "seed=0,1"]) == 7
    assert sys.argv[1:] == ["-m", "seed=0,1"]
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    assert done.value.code == 7


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("wtacrs re", {"report"}),
        ("wtacrs run estimator=wta", {"estimator=wtacrs", "estimator=wtacrs_exact"}),
        ("wtacrs run -m task=cola training.learning_r", {"training.learning_rate="}),
    ],
)
def test_completion(line, found, tmp_path, capsys):
    """In a bash, as Tab asks it, with this interpreter's command on the path."""
    command = tmp_path / "wtacrs"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m wtacrs_experiments.cli "$@"\n')
    command.chmod(0o755)
    assert cli.main(["completion"]) == 0
    asks = f'COMP_LINE="{line}" COMP_POINT={len(line)} COMP_WORDS=({line})\n'
    asks += f"COMP_CWORD={len(line.split()) - 1}; _wtacrs; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(
        ["bash", "-c", capsys.readouterr().out + asks],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "check": True},
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
    )
    assert {*done.stdout.split()} == found


@pytest.mark.parametrize("arguments", [[], ["train"]])
def test_what_is_no_command_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(arguments)
    assert done.value.code == 2
    assert "COMMAND" in capsys.readouterr().err
