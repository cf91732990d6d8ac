"""Damaged records and data: no command ends with a traceback; one line says what is wrong."""

import json
from dataclasses import asdict

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from tests.experiments.damage import PLAN, RECORDS, assert_one_line, damaged
from tests.experiments.probes import PPS, probe
from wtacrs_experiments import cli
from wtacrs_experiments.config import as_record
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.plan import status
from wtacrs_experiments.records.audit import Records
from wtacrs_experiments.records.claims import read_claim
from wtacrs_experiments.records.grid import is_done
from wtacrs_experiments.records.planned import FULL, index_path, read_planned
from wtacrs_experiments.records.record import RecordError, read_record, record_path
from wtacrs_experiments.reports import decoders, figures, overview, published, tables
from wtacrs_experiments.reports.figures import TABLE2
from wtacrs_experiments.reports.memory_figures import PARTS, batch_figure, memory_figure
from wtacrs_experiments.reports.overview import Part
from wtacrs_experiments.reports.page import __main__ as page
from wtacrs_experiments.reports.variance_data import error_frame, load_probes, summarise
from wtacrs_experiments.run.outcome import existing


@pytest.fixture
def whole(make_record):
    """The content of a record with all that one may hold."""
    record = make_record("memory=linear")
    record.metrics |= {
        **{"per_epoch": [{"epoch": 1.0, "step": 5, "loss": 1.0, "accuracy": 0.5}]},
        **{"loss_curve": {"step": [10], "loss": [1.0]}, "held_out": {"score": 0.5}},
    }
    record.memory |= {"device": "cpu", "host_cache_bytes": 0, "at_peak": {"saved": 200}}
    record.throughput |= {"step_seconds": {"median": 0.1}}
    record.provenance = {"git_commit": "a" * 40, "git_dirty": False, "seconds": 3.0}
    record.variance = {"probes": [probe(4, pps=PPS)]}
    record.sampling = {"layers": 1}
    content = asdict(record)
    del content["attribution"]
    return content


@pytest.fixture
def bad(whole, tmp_path):
    """Folders of one damaged record each, by what was done to it."""
    found = {}
    for at, (what, content) in enumerate(damaged(whole)):
        found[what] = tmp_path / "bad" / str(at)
        found[what].mkdir(parents=True)
        (found[what] / "bad.json").write_bytes(content)
    assert len(found) == RECORDS
    return found


@pytest.fixture
def together(bad, tmp_path):
    """One folder of all of them."""
    folder = tmp_path / "together"
    folder.mkdir()
    for at, path in enumerate(bad.values()):
        (folder / f"{at}.json").write_bytes((path / "bad.json").read_bytes())
    return folder


@pytest.fixture
def ends(capsys):
    """Runs a command: it ends well, or with one line that says what is wrong."""

    def run(main, *arguments):
        code = main([*map(str, arguments)])
        error = capsys.readouterr().err
        assert code in (0, 1)
        assert (error.count("\n"), error.startswith("error: ")) == (code, bool(code)), error
        return code

    return run


def test_a_whole_record_is_read(whole, tmp_path, ends):
    (tmp_path / "a.json").write_text(json.dumps(whole))
    for main in (status.main, tables.main, cli.report):
        output = ("--output", tmp_path / "out") if main is tables.main else ()
        where = tmp_path / "a.json" if main is cli.report else tmp_path
        assert ends(main, where, *output) == 0


@pytest.mark.parametrize("command", ["status", "record", "table"])
def test_a_damaged_record(command, bad, tmp_path, ends):
    output = ("--output", tmp_path / "out")
    calls = {
        "status": lambda folder: ends(status.main, folder),
        "record": lambda folder: ends(cli.report, folder / "bad.json"),
        "table": lambda folder: ends(tables.main, folder, *output),
    }
    codes = {what: calls[command](folder) for what, folder in bad.items()}
    assert sum(codes.values()) > RECORDS / 2  # and the others were read, whatever they say
    assert all(code for what, code in codes.items() if "cut off" in what)


def test_damaged_probes(bad):
    for folder in bad.values():
        assert_one_line(lambda at=folder: summarise(error_frame(load_probes(at))))


def test_all_that_can_be_read_is_drawn(together, tmp_path, ends):
    for path in together.iterdir():
        try:
            read_record(path)
        except RecordError:
            path.unlink()
    assert len([*together.iterdir()]) > 20
    for kind in ("ablation", "tradeoff"):
        ends(figures.main, kind, together, "--output", tmp_path)
    assert ends(tables.main, together, "--output", tmp_path / "t", "--protocol", "held_out") == 0


def test_the_page_names_what_is_no_record(together, tmp_path, ends):
    assert ends(page.main, together, "--output", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert "<script>alert(1)" not in text
    assert all(f"{at}.json" in text for at in range(6))  # what is no record at all


def test_the_audit_has_a_line_for_each(together, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    together.rename(results / "ablation")
    said = "\n".join(Records(tmp_path).failures())
    for path in (results / "ablation").iterdir():
        try:
            read_record(path)
        except RecordError:
            assert str(path.relative_to(tmp_path)) in said


@pytest.mark.parametrize("name", ["ablation", "centred", "variance", "table1", "why"])
def test_what_is_published_is_refused(name, together, tmp_path, ends, monkeypatch):
    monkeypatch.setattr(published, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    together.rename(tmp_path / "results" / name)
    assert ends(published.main, name) == 1


def test_a_cell_and_a_run_whose_record_is_damaged(bad, make_config, capsys):
    config = make_config()
    path = record_path(as_record(config))
    path.parent.mkdir()

    def gaps():
        return [] if is_done(config) else ["a"]

    for folder in bad.values():
        path.write_bytes((folder / "bad.json").read_bytes())
        overview.report((Part("Table 9", gaps, lambda: None, "make table9"),))
        assert_one_line(lambda: existing(path, overwrite=False))


def test_a_damaged_claim(bad, tmp_path, ends):
    for folder in bad.values():
        claim = (folder / "bad.json").rename(folder / "a.running")
        assert read_claim(claim) is None
        assert ends(status.main, folder) == 0


@pytest.mark.parametrize("change", [{"pid": "1"}, {"pid": -1}, {"host": 3}, {"config": {}}, {}])
def test_a_claim_that_says_something_else(change, whole, tmp_path, ends):
    claim = {"pid": 10**20, "host": "a", "started_at": "now", "config": whole["config"]} | change
    (tmp_path / "a.running").write_text(json.dumps(claim))
    assert ends(status.main, tmp_path) == 0


STEP = {
    **{"config": {"tuning": {"name": "full"}, "budget": 1.0}, "flops": 3.0},
    **{"provenance": {"git_commit": "a" * 40}},
    "memory": {
        "peak_bytes": 9,
        "saved_bytes": 1,
        "at_peak": dict.fromkeys(PARTS, 1),
    },
}
BATCHES = {
    "peak_bytes_by_batch": {"1": 5, "32": 9},
    "largest_batch": {"24GiB": 32, "40GiB": 32, "80GiB": 32},
}


@pytest.mark.parametrize(
    ("plan", "name"), [(STEP, "table2"), (STEP, "decoders"), (BATCHES, "batches")]
)
def test_a_damaged_plan(plan, name, tmp_path):
    index = {model: {FULL: "a.json"} for model in ("T5-Base, 1", "T5-Large, 1")}
    index_path(tmp_path, name).write_text(json.dumps(index))
    drawn, paper = 0, pd.read_csv(TABLE2)
    for _, content in [("whole", json.dumps(plan).encode()), *damaged(plan, PLAN, 100)]:
        (tmp_path / "a.json").write_bytes(content)
        try:
            found = read_planned(tmp_path, name)
        except UserError:
            continue
        if name == "decoders":
            decoders.write(tmp_path, tmp_path / "out")
        elif drawn < 3:  # a second each
            plt.close(memory_figure(found, paper) if name == "table2" else batch_figure(found))
        drawn += 1
    assert drawn > 0


@pytest.mark.parametrize(
    "index", ["[]", "3", '{"a": 1}', '{"a": {"Full": 3}}', '{"a": {"Full": ""}}', "{"]
)
def test_a_damaged_index_of_plans(index, tmp_path):
    index_path(tmp_path, "table2").write_text(index)
    with pytest.raises(UserError):
        read_planned(tmp_path, "table2")
