"""Figure 8 from records: ratios to full at its largest batch, ours and the paper's."""

import json

import pytest

from wtacrs_experiments.errors import UserError
from wtacrs_experiments.reports import figure8


@pytest.fixture
def records(tmp_path):
    def method(largest, *points):
        relative = [{"batch_size": b, "relative_samples_per_second": s} for b, s in points]
        return {"largest_batch": largest, "points": relative}

    methods = {
        "full": method(40, (10, {"median": 2.0}), (40, {"median": 4.0})),
        "leanest@0.3": method(100, (50, {"median": 3.0}), (100, None)),
        "checkpoint": method(80, (80, None)),
    }
    record = {"model": "bert_base", "methods": methods, "provenance": {"git_commit": "abcd"}}
    (tmp_path / "figure8-bert_base.json").write_text(json.dumps(record))
    return tmp_path


def test_ratios_are_to_full_at_its_largest_batch(records):
    rows = figure8.relative(figure8.our_points(records)).set_index(["method", "batch_size"])
    assert rows["samples_ratio"].to_dict() == {
        ("full", 10): 0.5,
        ("full", 40): 1.0,
        ("leanest@0.3", 50): 0.75,
    }
    assert rows["batch_ratio"].tolist() == [0.25, 1.0, 1.25]
    assert rows["largest_ratio"].tolist() == [1.0, 1.0, 1.25]


def test_full_without_its_largest_batch(records):
    path = records / "figure8-bert_base.json"
    record = json.loads(path.read_text())
    record["methods"]["full"]["points"][-1]["relative_samples_per_second"] = None
    path.write_text(json.dumps(record))
    rows = figure8.relative(figure8.our_points(records)).set_index(["method", "batch_size"])
    assert rows["samples_ratio"].tolist() == [1.0, 1.5]
    assert rows["batch_ratio"].tolist() == rows["largest_ratio"].tolist() == [1.0, 5.0]
    record["methods"]["full"]["points"] = []
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="bert_base has no point of full"):
        figure8.our_points(records)


def test_paper_has_its_published_batches():
    rows = figure8.relative(figure8.paper_points(figure8.THROUGHPUT)).set_index(["model", "method"])
    assert rows.loc[("T5-Large (paper)", "WTA-CRS@0.3"), "largest_ratio"].iloc[0] == 550 / 230
    assert rows.loc[("T5-3B (paper)", "WTA-CRS@0.1"), "samples_ratio"].iloc[-1] == 17.0 / 14.2


def test_command(records, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        figure8.main([str(records), "--paper", str(figure8.THROUGHPUT), "--output", str(out)]) == 0
    )
    text = (out / "tables" / "figure8.md").read_text()
    row = next(line for line in text.splitlines() if "leanest" in line)
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        *("bert_base", "leanest@0.3", "50", "1.25×", "0.75×")
    ]
    svg = (out / "figures" / "figure8.svg").read_text()
    for model in ("bert_base", "T5-Large (paper)", "T5-3B (paper)"):
        assert model in svg


def test_no_record(tmp_path, capsys):
    with pytest.raises(UserError, match="holds no figure8"):
        figure8.our_points(tmp_path)
    assert figure8.main([str(tmp_path), "--paper", str(figure8.THROUGHPUT)]) == 1
