"""What the pages tell a stranger to write is written here as they have it, and runs."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import wtacrs
from tests.docs.pages import blocks
from wtacrs_experiments.config import ROOT, ModelConfig
from wtacrs_experiments.records.record import read_record
from wtacrs_experiments.run.models import new_model

SMALL = ("training.max_steps=2", "training.batch_size=4", "measure.warmup_steps=0")
DIGITS = ("model=digits_tiny", "task=digits", "task.max_train_rows=16", "task.max_length=8")
PYTHON = [block for block in blocks("python") if "# my_estimators.py" not in block.text]


@pytest.fixture
def folder(tmp_path):
    """An empty folder with each YAML file of a page, and the estimator of its page."""
    for block in blocks("yaml"):
        path = tmp_path / block.text.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    (own,) = [b.text for b in blocks("python") if b.text.startswith("# my_estimators.py")]
    (tmp_path / "my_estimators.py").write_text(own)
    return tmp_path


@pytest.fixture
def run(folder):
    """``python run.py`` there; returns the one new record."""

    def go(*words):
        paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
        paths |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *words, *SMALL],
            cwd=folder,
            env={**os.environ, **paths},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        (path,) = (folder / "outputs" / "runs").glob("*.json")
        return read_record(path)

    return go


def test_every_file_is_here(folder):
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.yaml")}
    assert found == {
        "mine/model/small_bert.yaml",
        "mine/task/reviews.yaml",
        "mine/memory/quick.yaml",
    }


@pytest.mark.slow
def test_a_task_of_your_own(folder, run):
    task = yaml.safe_load((folder / "mine/task/reviews.yaml").read_text())
    data = folder / task["data_dir"] / task["folder"]
    data.mkdir(parents=True)
    for file in task["files"].values():
        rows = [f"a {word} film\t{label}" for label, word in enumerate(("bad", "good"))] * 6
        (data / file).write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    record = run("--config-dir=mine", "task=reviews", "model=minilm")
    assert record.status == "completed"
    assert record.config["task"]["name"] == "reviews"
    assert record.metrics["main"] == task["metrics"][0]


@pytest.mark.slow
def test_a_preset_of_your_own(run):
    record = run("--config-dir=mine", "memory=quick", *DIGITS)
    assert record.config["memory"]["recompute"] == "none"
    assert "norm" in record.config["memory"]["lossless"]


@pytest.mark.slow
def test_an_estimator_of_your_own(run):
    given = ("plugins=[my_estimators]", "estimator=wtacrs", "estimator.name=simple")
    assert run(*given, *DIGITS).config["estimator"]["name"] == "simple"


def test_the_estimator_of_the_page_is_unbiased(folder, monkeypatch):
    monkeypatch.setitem(wtacrs.ESTIMATORS, "simple", None)  # and gone again after the test
    space = {}
    exec((folder / "my_estimators.py").read_text(), space)
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.1, 0.1, 0.1])
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(6)
    for _ in range(4000):
        indices, scales = space["simple"](probabilities, 2, generator)
        total.index_add_(0, indices, scales)
    expected = (probabilities > 0).float()
    torch.testing.assert_close(total / 4000, expected, atol=0.08, rtol=0)  # 4 standard errors


def test_a_model_of_your_own(folder):
    text = (folder / "mine/model/small_bert.yaml").read_text()
    model = new_model(ModelConfig(**yaml.safe_load(text)))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"{millions:.0f} M parameters" in text


def tiny():
    """What the Python of a page finds there: a model, its batches, what a Trainer is given."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    sizes |= {"num_hidden_layers": 2, "vocab_size": 50, "max_position_embeddings": 16}
    batch = {"input_ids": torch.randint(50, (4, 8)), "labels": torch.tensor([0, 1, 1, 0])}
    rows = [{"input_ids": ids.tolist(), "labels": 1} for ids in batch["input_ids"]]
    return {
        "model": BertForSequenceClassification(BertConfig(**sizes)).train(),
        **{"batch": batch, "loader": [batch] * 2, "data": rows},
        **{"torch": torch, "wtacrs": wtacrs, "Trainer": Trainer},
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page}:{block.text[:30]!r}")
def test_python_of_a_page_runs(block, tmp_path):
    space = tiny()
    space["args"] = TrainingArguments(
        str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    exec(compile(block.text, block.page, "exec"), space)
    found = SimpleNamespace(**space)
    if "trainer" in space:
        found.trainer.train()
    if "handle" in space:
        assert found.handle.swapped
    if "PeakMemory" in space:
        assert found.memory.peak_bytes > 0
