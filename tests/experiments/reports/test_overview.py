"""What the paper shows, from the records: what misses is said, what can be made is made."""

from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.planned import index_path
from wtacrs_experiments.records.store import write_json
from wtacrs_experiments.reports import figure8, overview
from wtacrs_experiments.reports.overview import Part, report


def part(missing, error=None):
    def make():
        calls.append(missing)
        if error is not None:
            raise UserError(error)

    calls = []
    return Part("Table 9", lambda: missing, make, "make table9"), calls


def test_all_there(capsys):
    one, calls = part([])
    assert report((one,)) == 0
    assert (len(calls), capsys.readouterr().out) == (1, "Table 9: made, 0 records missing\n")


def test_what_is_there_is_shown_and_the_rest_named(capsys):
    one, calls = part(["a", "b", "c", "d", "e", "f"])
    assert report((one,)) == 0
    assert len(calls) == 1
    expected = "Table 9: made, 6 records missing\n  a; b; c; d; e and 1 more: make table9\n"
    assert capsys.readouterr().out == expected


def test_what_cannot_be_made_of_what_is_there(capsys):
    one, _ = part(["a"], error="no plans")
    assert report((one,)) == 0
    expected = "Table 9: not made (no plans), 1 records missing\n  a: make table9\n"
    assert capsys.readouterr().out == expected


def test_failures(capsys):
    failing, _ = part([], error="x.json is not a valid record")
    one, calls = part([])
    assert report((failing, one)) == 1
    assert len(calls) == 1
    assert "x.json is not a valid record" in capsys.readouterr().out


def test_nothing_is_made_of_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(overview, "RESULTS", tmp_path)
    monkeypatch.setattr(overview, "ROOT", tmp_path)
    assert report() == 0
    said = capsys.readouterr().out.splitlines()
    assert len(titles := [line for line in said if not line.startswith(" ")]) == len(overview.PARTS)
    assert all(
        ": not made (" in line and not line.endswith(" 0 records missing") for line in titles
    )
    assert not [*tmp_path.iterdir()]


def test_shipped_records_complete_the_ablation():
    assert overview.of_grid("ablation", "ablation") == []


def test_what_is_missing(tmp_path, monkeypatch):
    assert "T5-Base · Full" not in overview.of_table2()
    monkeypatch.setattr(overview, "RESULTS", tmp_path)
    assert len(overview.of_figure8()) == 2 * len(figure8.LOOKS)
    measured = {"model": "bert_base", "provenance": {}, "methods": {"full": {"points": []}}}
    write_json(measured, tmp_path / "bench" / "figure8-bert_base.json")
    assert "bert_base · full" not in overview.of_figure8()
    assert {"bert_base · leanest@0.3", "t5_small · full"} <= {*overview.of_figure8()}
    write_json({"T5-Base": {"Full": "a.json"}}, index_path(tmp_path / "plan", "table2"))
    write_json(
        {
            **{"config": {"tuning": {"name": "full"}, "budget": 1.0}, "provenance": {}, "flops": 1},
            "memory": {"peak_bytes": 1, "saved_bytes": 0, "at_peak": {"saved": 0}},
        },
        tmp_path / "plan" / "a.json",
    )
    found = overview.of_table2()
    assert "T5-Base · Full" not in found
    assert {"T5-Base · LoRA", "T5-Large · Full"} <= {*found}
