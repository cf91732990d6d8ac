"""Plans that are kept: made once, again when stale, and found by the row that they are."""

import json
from pathlib import Path

import pytest

from tests.experiments.plan.test_plan import BERT
from wtacrs_experiments.config import ROOT, PlanConfig, build
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.plan import kept, published
from wtacrs_experiments.plan.kept import planned_batches, planned_step
from wtacrs_experiments.plan.search import plan
from wtacrs_experiments.records.planned import FULL, index_path, read_planned

PLAIN = (*BERT, "memory=plain")


@pytest.fixture
def planned(monkeypatch):
    """Counts the plans that are made."""
    made = []
    plan = kept.plan
    monkeypatch.setattr(kept, "plan", lambda config: made.append(config) or plan(config))
    return made


def test_a_step_is_planned_once(tmp_path, planned):
    record = planned_step(PLAIN, tmp_path / "plan")
    assert record.keys() == {"config", "memory", "flops", "relative_flops", "code", "provenance"}
    assert record["provenance"]["seconds"] > 0
    assert record["memory"]["peak_bytes"] == sum(record["memory"]["at_peak"].values())
    assert planned_step(PLAIN, tmp_path / "plan") == record
    (path,) = (tmp_path / "plan").iterdir()
    assert (len(planned), json.loads(path.read_text())) == (1, record)


def test_a_stale_step_is_planned_again(tmp_path, planned, monkeypatch):
    planned_step(PLAIN, tmp_path)
    monkeypatch.setattr(kept, "code_hash", lambda _: "another")
    record = planned_step(PLAIN, tmp_path)
    assert (len(planned), record["code"]) == (2, "another")
    (path,) = tmp_path.iterdir()
    del record["code"]  # as records were before it
    path.write_text(json.dumps(record))
    planned_step(PLAIN, tmp_path)
    planned_step(PLAIN, tmp_path, overwrite=True)
    assert len(planned) == 4


def test_batches_are_searched_again_for_another_memory(tmp_path):
    first = planned_batches(PLAIN, ["2MiB"], tmp_path)
    record = planned_batches(PLAIN, ["3MiB", "2MiB"], tmp_path)
    assert record["largest_batch"]["2MiB"] == first["largest_batch"]["2MiB"]
    assert planned_batches(PLAIN, ["3MiB"], tmp_path) == record
    peaks = {int(b): peak for b, peak in record["peak_bytes_by_batch"].items()}
    for memory, limit in (("2MiB", 2**21), ("3MiB", 3 * 2**20)):
        largest = record["largest_batch"][memory]
        assert peaks[largest] <= limit < peaks[largest + 1]


def test_rows_are_those_of_the_figure_and_the_table():
    for name, models in (("table2", ["T5-Base", "T5-Large"]), ("batches", ["T5-Large", "T5-3B"])):
        rows = published.rows(name)
        assert [*rows] == models
        for methods in rows.values():
            assert {FULL, "checkpoint", "leanest@0.3", "lean@0.3"} <= methods.keys()
            assert len({tuple(sorted(overrides)) for overrides in methods.values()}) == len(methods)


@pytest.mark.slow
def test_a_published_plan_is_what_is_planned_today():
    """Of another planner no record tells."""
    found = read_planned(ROOT / "results" / "plan", "decoders")
    record = found["Llama-3.2-1B, 1 × 1,024"]["leanest@0.3"]
    today = plan(build(PlanConfig, record["config"]))
    assert today.at_peak == record["memory"]["at_peak"]
    assert (today.flops, today.relative_flops) == (record["flops"], record["relative_flops"])


@pytest.mark.parametrize("recorded", [False, True])
def test_index_says_which_record_is_which_row(recorded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "STEP_MODELS", {"Tiny": "digits_tiny"})
    monkeypatch.setattr(published, "STEP_SIZE", BERT[1:])
    methods = {FULL: ("memory=plain",), "lean@0.3": ("memory=lean", "budget=0.3")}
    monkeypatch.setattr(published, "METHODS", methods)
    arguments = ["table2", "--records", str(tmp_path)]
    if recorded:  # one of two rows
        planned_step((BERT[0], *BERT[1:], *methods[FULL]), tmp_path)
        arguments.append("--recorded")
    assert published.main(arguments) == 0
    index = json.loads(index_path(tmp_path, "table2").read_text())
    assert [*index["Tiny"]] == ([FULL] if recorded else [*methods])
    assert {Path(name) for name in index["Tiny"].values()} <= {
        Path(path.name) for path in tmp_path.glob("step-*.json")
    }
    found = read_planned(tmp_path, "table2")
    assert found["Tiny"][FULL]["config"]["memory"]["name"] == "plain"
    assert f"{int(recorded)} rows without a record" in capsys.readouterr().out


def test_plans_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no plans of table2 .*plan.published table2 --records"):
        read_planned(tmp_path, "table2")
    index_path(tmp_path, "table2").write_text('{"T5-Base": {}}')
    with pytest.raises(UserError, match="T5-Base has no row 'Full'"):
        read_planned(tmp_path, "table2")
