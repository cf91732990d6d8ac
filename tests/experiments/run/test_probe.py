"""The variance experiment on a real run: what is caught, what its record holds, what it shows."""

import json

import pytest
import torch

from wtacrs import apply_
from wtacrs_experiments.config import RunConfig, compose
from wtacrs_experiments.reports.figures import main
from wtacrs_experiments.reports.variance_data import error_frame, load_probes, summarise
from wtacrs_experiments.run.models import load_model
from wtacrs_experiments.run.probe import catch
from wtacrs_experiments.run.runner import RunError, run

OVERRIDES = [
    "experiment=variance",
    "model=digits_tiny",
    "task=digits",
    "task.max_train_rows=32",
    "training.epochs=2",
    "training.batch_size=8",
    "training.progress=false",
    "measure.probe_steps=[1,6]",
    "measure.budgets=[0.1,0.3]",
]
RUN = "digits · digits_tiny"


@pytest.fixture(scope="module")
def records(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("records") / "variance"
    run(compose(RunConfig, [*OVERRIDES, f"results_dir={folder}"]))
    return folder


def test_probes_hold_every_choice(records):
    probes = load_probes(records)
    assert [(probe["step"], probe["epoch"]) for probe in probes[RUN]] == [(1, 1), (6, 2)]
    errors = error_frame(probes)
    assert set(errors.groupby(["step", "budget", "layer"]).size()) == {8 * 5}  # methods × sources
    assert errors["layer"].nunique() == 2 * 6
    found = summarise(errors)
    last = found[found["is_last"] & (found["budget"] == 0.3)]
    total = last.set_index(["method", "source"])["total"]
    assert total["wtacrs", "oracle"] < total["wtacrs", "none"]
    assert total["crs", "oracle"] < total["uniform", "oracle"]
    assert total["pps", "auto"] != total["pps/lowrank", "auto"]


def test_probing_changes_nothing_of_the_training_run(records, tmp_path, request):
    """The run without probes has the same losses and scores."""
    kept = [text for text in OVERRIDES if not text.startswith("measure.")]
    plain = ["measure=default", "measure.memory=false", f"results_dir={tmp_path}"]
    without = run(compose(RunConfig, [*kept, *plain]))
    with_probes = json.loads(next(records.glob("*.json")).read_text())
    assert without.metrics == with_probes["metrics"]


@pytest.mark.parametrize("preset", ["linear", "lean"])
def test_catch_gives_the_gradients_of_the_plain_model(preset, request):
    torch.manual_seed(0)
    config = compose(RunConfig, OVERRIDES).model
    model = load_model(config, num_labels=10, regression=False).train()
    inputs = {
        "input_ids": torch.randint(0, 17, (4, 64)),
        "attention_mask": torch.ones(4, 64, dtype=torch.long),
        "labels": torch.arange(4),
    }
    model(**inputs).loss.backward()
    exact = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    sampler = apply_(model, preset).sampler
    caught = catch(model, sampler, inputs)
    assert sorted(caught.dy) == sorted(sampler.names)
    assert sorted(name for names in caught.groups.values() for name in names) == sorted(caught.dy)
    assert all(p.grad is None for p in model.parameters())
    for leader, names in caught.groups.items():
        for name in names:
            dw = caught.dy[name].T @ caught.x[leader].flatten(0, -2)
            torch.testing.assert_close(dw, exact[f"{name}.weight"], rtol=1e-4, atol=1e-6)
            squares = float(exact[f"{name}.weight"].square().sum())
            assert caught.squared_norm[name] == pytest.approx(squares, rel=1e-4)
    assert len([names for names in caught.groups.values() if len(names) == 3]) == 2  # q, k, v


def test_layers_that_are_computed_in_parts_are_refused(make_config):
    chosen = ("measure=variance", "measure.probe_steps=[1]", "estimator=pps", "memory=leanest")
    with pytest.raises(RunError, match=r"computed in parts, .* memory=linear or lean"):
        run(make_config(*chosen))


def test_figures_and_tables_are_written(records, tmp_path):
    assert main(["variance", str(records), "--output", str(tmp_path)]) == 0
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    kinds = ("budget", "source", "winner_mass", "winners")
    assert figures == {f"variance_{kind}.{end}" for kind in kinds for end in ("png", "svg")}
    table = (tmp_path / "tables" / "variance.md").read_text().splitlines()
    assert len([line for line in table if line.startswith(f"| {RUN} ")]) == 2 * 8
    probes = (tmp_path / "tables" / "variance_probes.md").read_text().splitlines()
    assert len([line for line in probes if line.startswith(f"| {RUN} ")]) == 2 * 2


def test_files_are_named_as_asked(records, tmp_path):
    command = ["variance", str(records), "--output", str(tmp_path), "--name", "other"]
    assert main(command) == 0
    assert (tmp_path / "figures" / "other_budget.svg").exists()
    assert (tmp_path / "tables" / "other_probes.md").exists()
