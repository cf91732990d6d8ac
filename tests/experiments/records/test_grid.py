"""Grids: the cells they describe, which are done, and that what fails or lacks stops no other."""

import shutil
import signal

import huggingface_hub
import pandas as pd
import pytest

from wtacrs_experiments.config import PAPER, RunConfig, compose
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.plan import start as starting
from wtacrs_experiments.plan.start import missing, run_all
from wtacrs_experiments.records.grid import (
    Cell,
    cells,
    configs,
    is_done,
    load_grid,
    record_of,
    training_steps,
)
from wtacrs_experiments.records.record import read_record, write_record

TINY = {
    "all": ["model=digits_tiny", "task.max_train_rows=16", "training.max_steps=1"],
    "seeds": [0, 1],
    "tasks": ["digits"],
    "methods": {"full": ["estimator=full"], "half": ["estimator=wtacrs", "budget=0.5"]},
    "blocks": [
        {"models": ["digits_tiny"], "methods": ["full"]},
        {"models": ["digits_tiny"], "methods": ["half"], "settings": {"training.batch_size": 8}},
    ],
}


@pytest.fixture
def tiny(tmp_path):
    """The configs of a grid of four cells, with their records in tmp_path."""
    grid = {**TINY, "all": [*TINY["all"], f"results_dir={tmp_path / 'runs'}"]}
    return configs(cells(grid))


@pytest.fixture
def leave(make_record):
    """Writes the record of a cell that did not run."""

    def write(config, status="completed"):
        record_of(config).parent.mkdir(exist_ok=True)
        write_record(make_record(status=status), record_of(config))

    return write


@pytest.fixture
def start(monkeypatch, leave):
    """Stands for the process of a cell: records its calls; the cells in ``fails`` fail, those in
    ``completes`` leave their record."""

    def stand_in(cell):
        stand_in.calls.append(str(cell))
        if cell in stand_in.completes:
            leave(stand_in.completes[cell])
        return str(cell) not in stand_in.fails

    stand_in.calls, stand_in.fails, stand_in.completes = [], (), {}
    monkeypatch.setattr(starting, "start", stand_in)
    return stand_in


NAMES = [f"digits_tiny · {method} · digits · seed {s}" for method in ("full", "half") for s in "01"]


def test_cells_in_their_order(tiny):
    assert [str(cell) for cell in tiny] == NAMES
    for cell, config in tiny.items():
        assert config.seed == cell.seed
        assert config.estimator.name == {"full": "full", "half": "wtacrs"}[cell.method]
        assert config.training.batch_size == {"full": 32, "half": 8}[cell.method]
    assert len({record_of(config) for config in tiny.values()}) == 4


def test_what_is_done_is_skipped_and_a_failure_stops_nothing(tiny, leave, start, capsys):
    of = list(tiny.values())
    leave(of[0])
    leave(of[1], status="failed")
    assert [is_done(config) for config in of] == [True, False, False, False]
    start.fails, third = NAMES[1:2], list(tiny)[2]
    start.completes = {third: tiny[third]}
    expected = {"done": 1, "completed": 1, "failed": 1, "under way": 1, "lacking": 0}
    assert run_all(tiny) == expected  # the last left no record: another process has it
    assert start.calls == NAMES[1:]
    assert f"failed, the others go on: {NAMES[1]}" in capsys.readouterr().out


def test_a_damaged_record_stops_nothing(tiny, start):
    """Its own run refuses it, in a process of its own."""
    record_of(next(iter(tiny.values()))).parent.mkdir()
    record_of(next(iter(tiny.values()))).write_text("{")
    start.fails = NAMES[:1]
    assert run_all(tiny)["failed"] == 1
    assert start.calls == NAMES


@pytest.mark.parametrize("content", ["{}", '{"version": "1.0", "added_tokens": []}'])
def test_a_damaged_tokenizer_lacks(content, tiny, start, saved_model, tmp_path, capsys):
    """Of the first the library says KeyError, of the second a bare Exception."""
    folder = shutil.copytree(saved_model, tmp_path / "copy")
    (folder / "tokenizer.json").write_text(content)
    given = ("model=minilm", "model.source=folder", f"model.path={folder}")
    cell = Cell("minilm", "full", "digits", 0, given, None)
    found = {cell: compose(RunConfig, (*given, "task=rte"))} | tiny
    assert run_all(found)["lacking"] == 1
    assert start.calls == NAMES
    assert f"missing: model=minilm: {folder} is damaged (" in capsys.readouterr().out


def test_what_a_tokenizer_needs_lacks(tiny, monkeypatch):
    def needs(config):
        raise ImportError("requires sacremoses")

    monkeypatch.setattr(starting, "load_tokenizer", needs)
    expected = "digits_tiny cannot be loaded (ImportError: requires sacremoses)"
    assert missing(next(iter(tiny.values())), {}) == expected


def test_what_lacks_is_said_once(start, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    blocks = [{"models": ["bert_base"], "tasks": ["rte"]}, {"models": ["digits_tiny"]}]
    given = [*TINY["all"][1:], f"results_dir={tmp_path}"]
    found = configs(cells({**TINY, "all": given, "blocks": blocks}))
    assert run_all(found)["lacking"] == 4
    assert start.calls == NAMES
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "missing" in line]
    assert line.startswith("missing: model=bert_base: ")
    assert "hub" in line


def test_a_task_out_of_reach_lacks(tiny, make_config):
    assert missing(next(iter(tiny.values())), {}) is None
    rte = ("task=rte", "model=minilm")
    assert "'rte' could not be loaded from the hub" in missing(make_config(*rte), {})
    lost = make_config(*rte, "task.data_dir=/nowhere")
    assert "task.data_dir='/nowhere'" in missing(lost, {})


@pytest.mark.slow
def test_a_cell_is_a_run_of_its_own(tiny):
    cell, config = next(iter(tiny.items()))
    assert starting.start(cell)
    assert read_record(record_of(config)).status == "completed"
    bad = Cell(*[getattr(cell, name) for name in ("model", "method", "task", "seed")],
               (*cell.overrides, "training.batch_size=0", "overwrite=true"), None)  # fmt: skip
    assert not starting.start(bad)


@pytest.mark.slow
def test_an_interrupted_cell_is_waited_for(tiny, tmp_path, monkeypatch):
    """It saves what it did, which takes longer than the quarter of a second that Popen gives."""
    cell, written = next(iter(tiny)), tmp_path / "written"
    (tmp_path / "python").write_text(
        "#!/bin/sh\n"
        f"trap 'sleep 1; touch {written}; exit 130' INT\nsleep 0.5\n"
        "kill -INT $PPID\n"  # Ctrl-C is for both
        "kill -INT $$\n"
    )
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(starting.sys, "executable", str(tmp_path / "python"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job's may be ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            starting.start(cell)
    finally:
        signal.signal(signal.SIGINT, before)
    assert written.exists()


def test_laptop_grid_is_the_issue_in_its_order():
    found = cells(load_grid("table1_laptop"))
    assert len(found) == 84
    assert [*dict.fromkeys(cell.method for cell in found)] == [
        *("full", "wtacrs@0.3", "wtacrs late@0.3", "leanest@0.3", "pps@0.1", "LoRA"),
        "LoRA+wtacrs@0.3",
    ]
    one = configs([cell for cell in found if cell.seed == 2 and cell.task in ("cola", "rte")])
    for cell, config in one.items():
        assert config.training.epochs == {"cola": 3, "rte": 5}[cell.task]
        assert config.training.learning_rate == (3e-4 if "LoRA" in cell.method else 3e-5)
        assert config.model.name == "mpnet_base"
    memory = {cell.method: (c.memory.name, c.budget, c.estimator.name) for cell, c in one.items()}
    assert memory == {
        "full": ("plain", 1.0, "full"),
        "wtacrs@0.3": ("linear", 0.3, "wtacrs"),
        "wtacrs late@0.3": ("leanest", 0.3, "wtacrs"),
        "leanest@0.3": ("leanest", 0.3, "pps"),
        "pps@0.1": ("linear", 0.1, "pps"),
        "LoRA": ("plain", 1.0, "full"),
        "LoRA+wtacrs@0.3": ("linear", 0.3, "wtacrs"),
    }


def test_paper_grid_has_the_rows_of_table_1():
    paper = pd.read_csv(PAPER / "table1_glue.csv")
    names = {"BERT-Base": "bert_base", "BERT-Large": "bert_large", "T5-Base": "t5_base"}
    names |= {"T5-Large": "t5_large", "T5-3B": "t5_3b"}
    expected = {
        (names[m], method) for m, method in zip(paper["model"], paper["method"], strict=True)
    }
    found = cells(load_grid("table1_paper"))
    assert {(cell.model, cell.method) for cell in found} == expected
    assert len(found) == len(expected) * 8 * 3


@pytest.mark.parametrize(
    ("model", "method", "task", "settings", "steps"),
    [
        ("bert_base", "Full", "cola", (2e-5, 128, 60), 60 * 67),
        ("bert_large", "LoRA", "stsb", (2e-5, 16, 10), 10 * 360),
        ("t5_base", "Full", "qnli", (3e-6, 100, 10), 10 * 1048),
        ("t5_large", "WTA-CRS@0.3", "rte", (3e-5, 100, 40), 40 * 25),
        ("t5_3b", "LoRA", "rte", (3e-4, 100, 60), 60 * 25),
        ("t5_base", "LoRA+WTA-CRS@0.3", "sst2", (3e-5, 100, 10), 10 * 674),
    ],
)
def test_hyper_parameters_are_the_authors(model, method, task, settings, steps):
    given = model, method, task, 1
    (cell,) = [
        c for c in cells(load_grid("table1_paper")) if (c.model, c.method, c.task, c.seed) == given
    ]
    config = configs([cell])[cell]
    training = config.training
    assert (training.learning_rate, training.batch_size, training.epochs) == settings
    assert cell.steps == steps
    assert (training.warmup_steps, training.warmup_ratio) == (500, 0)
    assert (config.task.max_length, config.task.pad_to_max_length) == (128, True)


def test_steps_of_several_batches():
    settings = {"training.batch_size": 8, "training.epochs": 3}
    grid = {"rows": {"digits": 100}}
    assert training_steps(grid, "digits", settings) == 3 * 13
    settings["training.gradient_accumulation_steps"] = 4
    assert training_steps(grid, "digits", settings) == 3 * 4


def test_grid_that_is_not_there():
    with pytest.raises(UserError, match="no grid 'table3'; choose ablation, table1_laptop"):
        load_grid("table3")
