"""Every shipped YAML file composes, is one decision, and every experiment starts."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wtacrs import ESTIMATORS, PRESETS
from wtacrs_experiments.config import RunConfig, compose
from wtacrs_experiments.run import runner

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
# A file beside the groups is no choice: a command's own, or what the files of a group share.
CHOICES = [f"{path.parent}={path.stem}" for path in FILES if path.parent.name]
EXPERIMENTS = [choice for choice in CHOICES if choice.startswith("experiment=")]
TINY = (
    *("model=digits_tiny", "task=digits", "task.max_train_rows=16", "task.max_length=8"),
    *("training.max_steps=2", "training.batch_size=8"),
)
# What a choice cannot be without.
NEEDED = {
    "model=digits_tiny": ("task=digits",),
    "task=digits": ("model=digits_tiny",),
    "measure=variance": ("estimator=pps",),
    "task=sft": ("task.train_file=rows.jsonl",),
    "task=csv": ("task.train_file=rows.csv",),
    "model=llama_tiny": ("task=docstrings",),
}
SMALLER = {"experiment=variance": ("measure.probe_steps=[1]", "measure.budgets=[0.3]")}


def composed(*overrides):
    return compose(RunConfig, overrides)


@pytest.fixture(autouse=True)
def _away_from_the_world(monkeypatch, tmp_path):
    monkeypatch.delenv("GLUE_DIR", raising=False)
    monkeypatch.setattr(runner, "CHECKPOINTS", tmp_path / "checkpoints")


def test_default_run():
    config = composed()
    assert config.model.path == "google-bert/bert-base-uncased"
    assert (config.task.name, config.estimator.name, config.budget) == ("sst2", "wtacrs", 0.3)
    assert (config.tuning.name, config.logging.name, config.seed) == ("full", "none", 0)
    assert config.task.data_dir is None
    assert config.training.checkpoint_minutes == 5


@pytest.mark.parametrize("choice", CHOICES)
def test_choice_composes(choice):
    group, name = choice.split("=")
    config = composed(choice, *NEEDED.get(choice, ()))
    if "name" in vars(getattr(config, group, object)):
        assert getattr(config, group).name == name


@pytest.mark.parametrize("file", FILES, ids=str)
def test_file_is_one_decision(file):
    text = (CONF / file).read_text()
    assert len(text.splitlines()) <= 25
    assert text.startswith("# ")
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("choice", EXPERIMENTS)
def test_experiment_starts(choice, tmp_path):
    overrides = (*TINY, *SMALLER.get(choice, ()), f"results_dir={tmp_path}")
    record = runner.run(composed(choice, *overrides))
    assert record.status == "completed"


@pytest.mark.parametrize("choice", ["seed=0", *EXPERIMENTS])
def test_what_is_published_is_not_written_unasked(choice):
    assert composed(choice).results_dir.startswith("outputs/")


def test_environment_names_the_glue_folder(monkeypatch):
    monkeypatch.setenv("GLUE_DIR", "/glue")
    assert composed().task.data_dir == "/glue"
    assert composed("task=digits", "model=digits_tiny").task.data_dir is None


def test_every_estimator_has_a_file():
    shipped = {path.stem for path in FILES if path.parent.name == "estimator"}
    assert shipped == {"full", *ESTIMATORS}


def test_presets_are_what_is_offered():
    """And nothing else: what the files of the presets share lies beside the groups."""
    assert {path.stem for path in FILES if path.parent.name == "memory"} == {*PRESETS}
    command = [sys.executable, "run.py", "--help"]
    found = subprocess.run(command, cwd=CONF.parent, capture_output=True, text=True, check=True)
    assert f"\nmemory: {', '.join(sorted(PRESETS))}\n" in found.stdout
