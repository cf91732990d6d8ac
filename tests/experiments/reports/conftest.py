"""Records of runs that did not happen, where a run would write them."""

import pytest


@pytest.fixture
def two_seeds(add_run):
    """full and wtacrs with two seeds each."""
    add_run("estimator=full", "budget=1.0", best=0.90, peak=400, saved=300, speed=10.0)
    add_run("estimator=full", "budget=1.0", "seed=1", best=0.94, peak=400, saved=300, speed=14.0)
    add_run(best=0.80, peak=160, saved=100, speed=6.0)
    add_run("seed=1", best=0.90, peak=240, saved=100, speed=12.0)
