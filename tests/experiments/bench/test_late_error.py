"""The bench of late errors, on a few rows."""

import json

from wtacrs_experiments.bench import late_error


def test_each_method_is_measured_at_each_step(tiny_glue, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(late_error, "STEPS", (0, 1))
    monkeypatch.setattr(late_error, "DRAWS", 2)
    monkeypatch.setattr(late_error, "BUDGETS", (0.3,))
    methods = ("crs", "none"), ("pps", "lowrank")
    monkeypatch.setattr(late_error, "METHODS", methods)
    small = ("++model.config.num_hidden_layers=1", "seed=1")
    late_error.main([*tiny_glue("stsb", rows=12), *small, "--output", str(tmp_path)])
    found = json.loads((tmp_path / "late_error.json").read_text())["errors"]
    assert [(one["step"], one["estimator"], one["center"]) for one in found] == [
        (step, *method) for step in (0, 1) for method in methods
    ]
    assert all(one["relative_squared_error"] > 0 for one in found)
    assert capsys.readouterr().out.count("mean off") == 4
