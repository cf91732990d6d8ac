"""Ten kills of runs, as `python -m tests.faults.kills` makes hundreds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONS = ("--random", "5", "--aimed", "5")
VARIANTS = ("lean", "by length", "sweep of LoRA")


@pytest.mark.slow
def test_ten_kills():
    """In a process of its own, for it forks: 5 at random moments, 5 at lines aimed at. The longer
    variants are left to the command."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kills", *OPTIONS, "--variants", *VARIANTS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "every record is that of a run that was not killed" in done.stdout
