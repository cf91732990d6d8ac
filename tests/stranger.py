"""Starts Python as a stranger would: away from the repository, offline."""

import os
import subprocess
import sys

from wtacrs_experiments.config import ROOT


def run(tmp_path, *arguments):
    """As ``python ...`` in the empty folder ``tmp_path``; returns what it prints."""
    paths = {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    paths |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=tmp_path,
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        timeout=240,  # it takes less than a minute on two cores that are free
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
