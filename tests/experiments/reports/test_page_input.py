"""The page of a folder that holds other files too, or none of a run."""

import json

import pytest

from tests.experiments.reports.test_page import data_of, page_of
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import write_record
from wtacrs_experiments.reports.page import __main__ as command
from wtacrs_experiments.reports.page.folder import read_folder
from wtacrs_experiments.reports.runs import load_runs

BROKEN = {
    "no config": {"config": {}},
    "no budget": {"budget": "much"},
    "no seed": {"seed": "one"},
    "no score": {"metrics": {"main": "accuracy", "best": "good"}},
    "no metrics": {"metrics": [1]},
    "no provenance": {"provenance": "mine"},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_record_of_no_run_is_foreign(change, make_record, add_run, folder):
    record = make_record("seed=1")
    write_record(record, folder / "a.json")
    content = json.loads((folder / "a.json").read_text())
    for key, value in change.items():
        (content["config"] if key in ("budget", "seed") else content)[key] = value
    (folder / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"holds 1 file.* no record of a run; the first: .*a\.json"):
        read_folder(folder)
    with pytest.raises(UserError, match="not a valid record"):
        load_runs(folder)
    add_run()
    assert [*read_folder(folder).foreign] == ["a.json"]
    assert "a.json: not a record of a run" in page_of(folder)


def test_a_score_that_is_not_finite_is_missing(make_record, folder):
    path = folder / "a.json"
    write_record(make_record(), path)
    path.write_text(path.read_text().replace('"best": 0.5', '"best": NaN'))
    group = data_of(page_of(folder))["groups"][0]
    assert group["series"][0]["points"][0]["score"] is None


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (["nowhere"], "nowhere is no folder"),
        ([], "outputs/runs is no folder"),
        (["empty"], "empty holds no record of a run; make some with"),
        (["foreign"], "foreign holds 1 file of JSON and no record of a run"),
        (["foreign/a.json"], "is no folder"),
        (["good", "--output", "empty"], "Is a directory"),
    ],
)
def test_bad_input_is_one_line(given, part, make_record, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "foreign", "good"):
        (tmp_path / name).mkdir()
    (tmp_path / "foreign" / "a.json").write_text("{}")
    write_record(make_record(), tmp_path / "good" / "a.json")
    assert command.main(given) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert part in error
    assert error.count("\n") == 1
