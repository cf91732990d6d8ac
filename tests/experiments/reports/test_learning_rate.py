"""The learning rates tried: runs that differ by nothing else, Table 1's among them."""

import pytest

from wtacrs_experiments.config import RunConfig, as_record, compose
from wtacrs_experiments.errors import NoRecordError
from wtacrs_experiments.records.record import RunRecord, write_record
from wtacrs_experiments.reports import learning_rate

PLACE = "<!-- begin learning-rate -->\n<!-- end learning-rate -->\n"
METRICS = {"main": "matthews_correlation", "last": 0.4, "held_out": {"score": 0.3}}


def written(folder, best, *overrides, estimator="full", status="completed"):
    """A record of a run of Table 1, with more settings."""
    own = ["experiment=table1_laptop", f"estimator={estimator}", *overrides]
    config = as_record(compose(RunConfig, own))
    record = RunRecord(status, config, provenance={"git_commit": "a" * 40})
    if status == "completed":
        record.metrics = {**METRICS, "best": best}
    folder.mkdir(exist_ok=True)
    write_record(record, folder / f"{len([*folder.iterdir()])}.json")


@pytest.fixture
def folders(tmp_path):
    tried, chosen = tmp_path / "learning_rate", tmp_path / "table1"
    written(tried, 0.55, "training.learning_rate=5e-5")
    written(tried, 0.5, "training.learning_rate=2e-5")
    written(tried, None, "training.learning_rate=1e-4", status="failed")
    written(chosen, 0.6)
    written(chosen, 0.7, "seed=1")
    written(chosen, 0.8, "task=rte")
    written(chosen, 0.9, "training.epochs=5")
    written(chosen, 0.95, "budget=0.3", estimator="wtacrs")
    return tried, chosen


def test_runs_that_differ_by_their_rate_alone(folders):
    text = learning_rate.display(learning_rate.runs(*folders))
    assert [*text["learning rate"]] == ["2e-05", "3e-05", "5e-05"]
    assert [*text["best epoch"]] == ["50.0", "60.0", "55.0"]
    assert [*text["last epoch"], *text["held out"]] == ["40.0"] * 3 + ["30.0"] * 3
    assert {*text["task"], *text["seed"]} == {"cola", "0"}


def test_write_fills_the_page(folders, tmp_path):
    page, output = tmp_path / "page.md", tmp_path / "tables" / "learning_rate"
    page.write_text(PLACE)
    learning_rate.write(*folders, output, page)
    assert " 3e-05 |" in page.read_text()
    assert output.with_suffix(".md").read_text() in page.read_text()


def test_nothing_tried(folders, tmp_path):
    with pytest.raises(NoRecordError, match="holds no record"):
        learning_rate.runs(tmp_path / "none", folders[1])
