"""The variance experiment: what is caught, the sources, the frames and the figures."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments.errors import UserError
from experiments.figures import main
from experiments.models import load_model
from experiments.priors import PRIORS, BucketMeans
from experiments.runner import run
from experiments.variance import catch
from experiments.variance_data import error_frame, geometric_mean, layer_type, load_probes
from wtacrs import sample_linears_

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


@pytest.fixture(scope="module")
def records(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("variance")
    conf = str(request.config.rootpath / "conf")
    with initialize_config_dir(conf, version_base="1.3"):
        run(compose("config", [*OVERRIDES, f"results_dir={folder}"]))
    return folder


def test_probes_hold_every_choice(records):
    probes = load_probes(records)["digits"]
    assert [(probe["step"], probe["epoch"]) for probe in probes] == [(1, 1), (6, 2)]
    sources = ["none", "position", "sample", "auto", "oracle", *PRIORS]
    errors = error_frame({"digits": probes})
    choices = errors.groupby(["step", "budget", "layer"]).size()
    assert set(choices) == {5 * len(sources)}  # a layer that some choice has exactly is left out
    assert errors["error"].min() > 0
    assert len(choices) > 2 * 2 * 6
    last = errors[errors["is_last"] & (errors["budget"] == 0.3)]
    by = last.groupby(["estimator", "source"])["error"].apply(geometric_mean)
    assert by["wtacrs", "oracle"] < by["wtacrs", "none"]
    assert by["crs", "oracle"] < by["uniform", "oracle"]


def test_probing_changes_nothing_of_the_training_run(records, tmp_path, request):
    """The run without probes has the same losses and scores."""
    with initialize_config_dir(str(request.config.rootpath / "conf"), version_base="1.3"):
        plain = [*OVERRIDES, "measure.probe_steps=[]", f"results_dir={tmp_path}"]
        without = run(compose("config", plain))
    with_probes = json.loads(next(records.glob("*.json")).read_text())
    assert without.metrics == with_probes["metrics"]


def test_catch_gives_the_gradients_of_the_plain_model(request):
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    config = OmegaConf.load(request.config.rootpath / "conf/model/digits_tiny.yaml")
    model = load_model(config, num_labels=10, regression=False).train()
    inputs = {
        "input_ids": torch.randint(0, 17, (4, 64)),
        "attention_mask": torch.ones(4, 64, dtype=torch.long),
        "labels": torch.arange(4),
    }
    model(**inputs).loss.backward()
    exact = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    caught = catch(model, sample_linears_(model), inputs)
    assert all(p.grad is None for p in model.parameters())
    for leader, names in caught.groups.items():
        for name in names:
            dw = caught.dy[name].T @ caught.x[leader].flatten(0, -2)
            torch.testing.assert_close(dw, exact[f"{name}.weight"], rtol=1e-4, atol=1e-6)
    assert len([names for names in caught.groups.values() if len(names) == 3]) == 2  # q, k, v


@pytest.mark.parametrize("prior", PRIORS)
def test_prior_learns_what_its_bucket_tells(prior):
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 8]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0]]),
        "labels": torch.tensor([1]),
    }
    means = BucketMeans(PRIORS[prior])
    assert means.estimate("layer", inputs) is None
    means.observe("layer", inputs, torch.tensor([1.0, 2.0, 3.0, 99.0]))
    estimate = means.estimate("layer", inputs)
    assert estimate[:3].tolist() == pytest.approx([1, 2, 3])


def test_layer_type():
    assert layer_type("bert.encoder.layer.11.output.dense") == "output.dense"


def test_figures_and_table_are_written(records, tmp_path):
    assert main(["variance", str(records), "--output", str(tmp_path)]) == 0
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert len(figures) == 8
    assert {name.split(".")[1] for name in figures} == {"png", "svg"}
    probes = (tmp_path / "tables" / "variance_probes.md").read_text().splitlines()
    assert len(probes) == 2 + 2  # head, and a row for each probe
    assert "wtacrs, none" in probes[0]
    assert "| digits | all" in (tmp_path / "tables" / "variance.md").read_text()


def test_figures_need_records(tmp_path, capsys):
    assert main(["variance", str(tmp_path)]) == 1
    assert "experiment=variance" in capsys.readouterr().err
    with pytest.raises(UserError, match="no record"):
        load_probes(tmp_path)
