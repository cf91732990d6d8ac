"""The page of a folder: its content from the records, its copies, its overrides."""

import copy
import json
import re

import pytest
from plotly.offline import get_plotlyjs

from wtacrs_experiments.config import ROOT, RunConfig, as_record, compose
from wtacrs_experiments.records.record import config_hash, read_record, record_path, write_record
from wtacrs_experiments.reports import tables
from wtacrs_experiments.reports.page import __main__ as command
from wtacrs_experiments.reports.page import grids, plots
from wtacrs_experiments.reports.page.curves import curves, losses
from wtacrs_experiments.reports.page.folder import read_folder
from wtacrs_experiments.reports.page.origins import origin, overrides
from wtacrs_experiments.reports.page.render import render

MARKUP = "</script><img src=x onerror=alert(1)>"
PUBLISHED = [
    path
    for name in ("ablation", "centred", "variance")
    for path in sorted((ROOT / "results" / name).glob("*.json"))[::9]
]


def page_of(folder):
    """The page without the library that draws."""
    return render(read_folder(folder)).replace(get_plotlyjs(), "")


def copied(grid, name):
    before, after = grid.frame[name]
    return before + "".join(getattr(line, name) for line in grid.lines) + after


def data_of(page):
    return json.loads(re.search(r'id="content">(.*?)</script>', page, re.S)[1])


@pytest.mark.usefixtures("two_seeds")
def test_what_is_copied_is_what_the_table_command_writes(folder, add_run, tmp_path):
    add_run("seed=2", status="failed")
    tables.write_tables(folder, tmp_path / "t")
    grid = grids.measures(read_folder(folder))
    assert copied(grid, "latex") == (tmp_path / "t.tex").read_text()
    assert copied(grid, "csv") == (tmp_path / "t.csv").read_text()
    assert [len(line.records) for line in grid.lines] == [2, 3]
    assert grid.lines[1].cells["score at best epoch"] == "85.0 ± 7.1 (1 failed)"
    assert grid.lines[1].numbers["score at best epoch"] == pytest.approx(0.85)


def test_the_paper_s_score_stands_beside_ours(make_record, folder):
    record = make_record("estimator=full", "budget=1.0", best=0.9)
    record.config["model"]["name"], record.config["task"]["name"] = "bert_base", "rte"
    write_record(record, folder / "a.json")
    grid = grids.scores(read_folder(folder))
    (line,) = grid.lines
    assert line.cells["rte, accuracy"] == "90.0 ± –"
    assert re.fullmatch(r"\d\d\.\d ± \d\.\d+", line.cells["rte, accuracy, paper"])
    assert line.latex.startswith("bert\\_base & full & full & plain & 90.0")
    other = grids.scores(read_folder(folder, "held_out"))
    assert "rte, accuracy, paper" not in other.columns


def test_a_front_is_what_nothing_else_equals_or_beats():
    def point(score, memory, speed=1.0):
        return {"score": score, "memory": memory, "speed": speed}

    points = [point(5, 10), point(5, 12), point(7, 20), point(6, 30), point(None, 1)]
    assert plots.front(points, "memory", "score", False) == [[10, 5], [20, 7]]
    assert plots.front(points, "memory", "score", True) == [[10, 5]]
    assert plots.front(points, "memory", "speed", False) == [[1, 1.0]]


@pytest.mark.usefixtures("two_seeds")
def test_plots_show_settings_and_their_runs(folder):
    (group,) = data_of(page_of(folder))["groups"]
    full, wtacrs = group["series"]
    assert [full["symbol"], wtacrs["symbol"]] == ["hourglass", "circle"]
    assert wtacrs["points"][0]["score"] == pytest.approx(85)
    assert wtacrs["points"][0]["memory"] == 200 / 2**20
    assert [run["score"] for run in wtacrs["runs"]] == pytest.approx([80, 90])
    assert wtacrs["runs"][0]["told"][0].startswith("digits-digits_tiny-full-wtacrs-b0.3-s0-")
    assert group["title"] == "digits · digits_tiny · full tuning · accuracy"


def test_presets_are_told_apart_by_their_symbol(add_run, folder):
    add_run()
    add_run("memory=lean")
    add_run("memory=leanest")
    symbols = {look["symbol"] for look in plots.markers(read_folder(folder)).values()}
    assert symbols == {"circle", "circle-open", "circle-open-dot"}


def test_losses_of_a_record(make_record, folder):
    for seed in (0, 1):
        record = make_record(f"seed={seed}")
        record.metrics["loss_curve"] = {"step": [10, 20, 30], "loss": [0.7, float("nan"), 0.5]}
        record.metrics["per_epoch"] = [{"epoch": 1.0, "step": 30, "loss": 0.6}]
        write_record(record, record_path(record.config))
    first, second = curves(read_folder(folder))
    assert first["training"] == [[10, 0.7], [30, 0.5]]
    assert first["evaluation"] == [[30, 0.6]]
    assert (first["label"], first["chosen"]) == ("wtacrs@0.3, seed 0", True)
    assert (second["label"], second["chosen"]) == ("wtacrs@0.3, seed 1", False)
    for broken in (None, "x", {"loss_curve": [1]}, {"per_epoch": [1]}, {"loss_curve": {"step": 1}}):
        record.metrics = broken
        assert losses(record) == ([], [])


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_overrides_ask_for_the_same_run(path):
    config = read_record(path).config
    again = as_record(compose(RunConfig, overrides(config)))
    if "architecture" in config["model"]:  # resolved when it ran
        again["model"]["architecture"] = config["model"]["architecture"]
    assert config_hash(again) == config_hash(config)


def test_overrides_of_what_is_not_of_conf_are_its_choices(make_record):
    config = make_record("training.learning_rate=0.5").config
    assert "training.learning_rate=0.5" in overrides(config)
    config["model"]["name"] = "mine"
    assert overrides(config)[1:3] == ["model=mine", "tuning=full"]
    assert "training.learning_rate=0.5" not in overrides(config)


def test_provenance(make_record):
    record = make_record()
    record.provenance = {
        **{"git_commit": "abc", "git_dirty": True, "packages": {"torch": "2.5"}, "python": "3.12"},
        **{"device_name": "cpu", "cpu": "AMD", "threads": 2, "seconds": 90.0},
    }
    told = origin("a", record)
    assert told["commit"] == "abc, with changes of no commit"
    assert (told["device"], told["versions"]) == ("cpu · AMD, 2 threads", "python 3.12, torch 2.5")
    assert (told["took"], told["started"]) == ("1.5 min", "–")
    record.provenance = {"packages": ["torch"]}
    assert origin("a", record)["versions"] == "python None"


def test_failures_and_foreign_files_are_told(make_record, add_run, folder, capsys):
    add_run()
    told = {"type": "KeyError", "message": MARKUP}
    for status, error in (("failed", told), ("interrupted", None)):
        record = make_record(f"seed={len(status)}", status=status)
        record.error, record.metrics = error, None
        write_record(record, record_path(record.config))
    (folder / "notes.json").write_text("[]")
    assert command.main([str(folder), "--output", str(folder / "p.html")]) == 0
    assert capsys.readouterr().out.startswith(f"{folder / 'p.html'} (")
    page = page_of(folder)
    assert "1 completed, 1 failed, 1 interrupted, 1 unreadable." in " ".join(page.split())
    assert "KeyError: &lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in page
    assert "notes.json: not a record of a run" in page


def test_a_folder_in_which_all_failed(add_run, folder):
    add_run(status="failed")
    page = page_of(folder)
    assert "1 failed. Scores" in " ".join(page.split())
    assert data_of(page)["groups"][0]["fronts"] == [[], [], []]


def test_markup_in_a_record_is_text(make_record, folder):
    record = make_record(status="failed")
    record.error = {"type": MARKUP, "message": MARKUP}
    record.provenance = dict.fromkeys(("git_commit", "device_name", "cpu", "started_at"), MARKUP)
    write_record(record, folder / "a<b onclick=alert(1)>.json")
    record.status, record.metrics["per_epoch"] = "completed", [{"step": 1, "loss": 1.0}]
    write_record(record, folder / "b<b onclick=alert(1)>.json")
    (folder / "c<b onclick=alert(1)>.json").write_text(json.dumps({"status": MARKUP}))
    for group in ("task", "model", "tuning", "estimator", "memory"):
        named = copy.deepcopy(record)
        named.config[group]["name"] = MARKUP
        write_record(named, folder / f"{group}.json")
    page = page_of(folder)
    assert [*read_folder(folder).records] == [f"{a}<b onclick=alert(1)>" for a in "ab"]
    assert "<img" not in page
    assert "<b onclick" not in page
    assert page.count("</script>") == 4
    assert data_of(page)["curves"][0]["name"] == "b<b onclick=alert(1)>"


@pytest.mark.usefixtures("two_seeds")
def test_the_page_stands_alone_and_is_the_same_again(folder):
    page = page_of(folder)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)|url\(|@import|http:|https:""", page)
    assert "default-src 'none'" in page
    assert page_of(folder) == page
