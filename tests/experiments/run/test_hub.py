"""Rows of one's own that lie on the hub: by name, with one clear line where they cannot be had."""

from dataclasses import replace

import datasets
import pytest

from wtacrs_experiments.config import RunConfig, compose
from wtacrs_experiments.plan.status import read_sweep
from wtacrs_experiments.records.grid import is_done
from wtacrs_experiments.records.record import config_hash, read_record
from wtacrs_experiments.run import hub
from wtacrs_experiments.run.files import read_splits
from wtacrs_experiments.run.glue import TaskError
from wtacrs_experiments.run.own_task import settled_task
from wtacrs_experiments.run.runner import RunError, run

WORDS = ["good", "bad", "fine", "poor"]
LABELS = datasets.Features(
    {"review": datasets.Value("string"), "mark": datasets.ClassLabel(names=["neg", "pos"])}
)


def table(n, **features):
    rows = {"review": [f"{WORDS[i % 4]} {i}" for i in range(n)], "mark": [i % 2 for i in range(n)]}
    return datasets.Dataset.from_dict(rows, **features)


@pytest.fixture
def on_hub(monkeypatch):
    """Puts tables on a hub; returns what was asked of it."""
    asked = []

    def put(**splits):
        monkeypatch.setattr(
            datasets, "load_dataset", lambda *a: asked.append(a) or datasets.DatasetDict(splits)
        )
        return asked

    hub._loaded.cache_clear()
    yield put
    hub._loaded.cache_clear()


def config(name, *overrides):
    given = ["task=csv", f"task.train_file={name}", "task.text_columns=[review]"]
    return compose(RunConfig, [*given, "task.label_column=mark", *overrides])


def test_a_run_on_rows_of_the_hub(on_hub, saved_model, tmp_path):
    asked = on_hub(train=table(12, features=LABELS), validation=table(4, features=LABELS))
    more = (f"model.path={saved_model}", f"results_dir={tmp_path}", "training.max_steps=1")
    more += ("training.batch_size=4", "training.save_model=false", "measure.memory=false")
    record = run(config("hub:me/reviews", *more))
    assert record.config["task"]["labels"] == ["neg", "pos"]  # by their names
    assert record.config["task"]["name"] == "csv_me+reviews"
    assert asked == [("me/reviews", None)]


@pytest.mark.parametrize(
    ("name", "splits", "sizes", "asked"),
    [
        ("hub:reviews", {"train": 20}, (18, 2), ("reviews", None)),  # one of ten is held out
        ("hub:me/reviews/small", {"train": 9, "validation": 3}, (9, 3), ("me/reviews", "small")),
        ("hub:me/reviews:validation", {"validation": 20}, (18, 2), ("me/reviews", None)),
        ("hub:me/reviews:extra", {"extra": 9, "validation": 3}, (9, 3), ("me/reviews", None)),
    ],
)
def test_configurations_and_splits(name, splits, sizes, asked, on_hub):
    told = on_hub(**{split: table(n) for split, n in splits.items()})
    task = config(name).task
    found = hub.splits_of(name)
    assert {split: len(rows) for split, rows in found.items()} == splits
    assert tuple(len(rows) for rows in read_splits(task).values()) == sizes
    assert {*told} == {asked}
    assert settled_task(task).labels == ("0", "1")


def test_data_of_other_names_are_other_tasks(on_hub):
    on_hub(train=table(9), test=table(9), new=table(9))
    end = "x" * 60
    names = ["hub:a/reviews", "hub:b/reviews", "hub:a/reviews/test", "hub:a/reviews:test"]
    names += ["hub:reviews", "hub:a_b/c", "hub:a/b_c", f"hub:a/{end}1", f"hub:a/{end}2"]
    tasks = [settled_task(config(name).task).name for name in names]
    assert len({*tasks}) == len(names)
    assert max(map(len, tasks)) == len("csv_") + 40


def test_a_split_to_evaluate_on(on_hub):
    on_hub(train=table(9), test=table(5))
    task = settled_task(config("hub:me/reviews", "task.eval_file=hub:me/reviews:test").task)
    assert task.data_sha256 != settled_task(config("hub:me/reviews").task).data_sha256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:me/reviews:dev", r"hub:me/reviews has no split 'dev', but train"),
        ("hub:me/empty:none", r"hub:me/empty:none has no rows"),
        ("hub:me/reviews", r"has no column 'mark', but review"),
        ("hub:me/reviews:test", r"hub:me/reviews test row 1: mark holds no label \('None'\)"),
    ],
)
def test_what_the_hub_lacks(name, message, on_hub):
    train = table(9) if "dev" in name else table(9).remove_columns("mark")
    unlabelled = datasets.Dataset.from_dict({"review": ["a", "b"], "mark": [1, -1]}, LABELS)
    on_hub(train=train, none=table(0), test=unlabelled)
    with pytest.raises(TaskError, match=message):
        settled_task(config(name).task)


def test_other_rows_of_a_task_on_the_hub_are_another_run(
    make_config, tiny_overrides, monkeypatch, tmp_path, capsys
):
    """Of a folder saved by datasets in place of the hub. The same rows are the same run."""
    done, given = [], ("task=rte", "model=minilm", "task.data_dir=null")
    monkeypatch.setattr("wtacrs_experiments.run.runner.carry_out", lambda *_: done.append(1))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.load_from_disk(saved))
    one = datasets.Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "label": [1]})
    for i, label in enumerate((1, 1, 0)):
        table = one.remove_columns("label").add_column("label", [label])
        saved = str(tmp_path / str(i))
        datasets.DatasetDict(train=one, validation=table).save_to_disk(saved)
        run(make_config(*given))
    assert (len(done), capsys.readouterr().out.count("completed before")) == (2, 1)
    records = [read_record(path).config for path in tmp_path.glob("runs/*.json")]
    assert len({config["task"]["data_sha256"] for config in records}) == 2
    assert len({config_hash(config) for config in records}) == 2
    asked = make_config(*given)
    assert [is_done(asked), is_done(replace(asked, seed=1))] == [True, False]
    for seed, missing in ((0, 0), (1, 1)):  # which asks no hub
        tiny = [text for text in tiny_overrides if not text.startswith(("task=", "model="))]
        there = read_sweep(tmp_path / "runs", [*given, *tiny, f"seed={seed}"])
        assert len(there.found["missing"]) == missing


def test_a_task_that_the_hub_does_not_give_is_a_failed_run(make_config, tmp_path):
    with pytest.raises(RunError, match=r"'rte' could not be loaded from the hub"):
        run(make_config("task=rte", "model=minilm", "task.data_dir=null"))
    (path,) = tmp_path.glob("runs/*.json")
    assert read_record(path).status == "failed"


def test_without_a_network():
    with pytest.raises(TaskError) as caught:
        settled_task(config("hub:me/none").task)
    message = str(caught.value)
    assert message.startswith("hub:me/none could not be loaded from the hub (")
    assert message.endswith("or give rows on this disk, say task.train_file=rows.csv")
    assert "\n" not in message
