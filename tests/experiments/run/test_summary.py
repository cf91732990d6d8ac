"""The heading of the short table at the end of a run names the method."""

from pathlib import Path

import pytest

from wtacrs_experiments.run.summary import show


@pytest.mark.parametrize(
    ("center", "method"), [("none", "pps@0.3"), ("lowrank", "pps/lowrank@0.3")]
)
def test_heading_names_the_method(center, method, make_record, capsys):
    record = make_record(
        "estimator=pps", f"estimator.center={center}", "seed=2", peak=None, speed=None
    )
    show(record, Path("r.json"))
    assert capsys.readouterr().out.splitlines()[0].endswith(f" · full · {method}, seed 2")
