"""The picture of README: what is left out, what is not, and that a loss looks like one."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from wtacrs_experiments.config import ROOT
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.planned import FULL, read_planned
from wtacrs_experiments.records.record import record_path, write_record
from wtacrs_experiments.records.store import write_json
from wtacrs_experiments.reports import why
from wtacrs_experiments.reports.runs import aggregate

RESULTS = ROOT / "results"


@pytest.fixture
def three_folders(make_record, tmp_path):
    """Three seeds of full, of wtacrs, which is worse, and of crs, which is not shown."""
    for folder in why.FOLDERS:
        for seed in range(3):
            place = (f"seed={seed}", f"results_dir={tmp_path / folder}")
            for overrides, best in (
                (("estimator=full", "budget=1.0"), 0.9 + seed / 1000),
                (("budget=0.1",), 0.5 + seed / 900),
                (("estimator=crs", "budget=0.1"), 0.4 + seed / 900),
                *([] if seed else [(("budget=0.3",), 0.8)]),
            ):
                record = make_record(*overrides, *place, best=best)
                path = tmp_path / folder / record_path(record.config).name
                write_record(record, path)
    return tmp_path


def test_less_than_three_seeds_are_left_out(three_folders):
    runs = why.shown_runs(three_folders)
    ablation = runs[runs["folder"] == "ablation"]
    assert sorted(ablation["budget"].unique()) == [0.1, 1.0]
    assert len(ablation) == 6
    assert set(runs["folder"]) == {*why.FOLDERS}
    assert set(runs["estimator"]) == {"full", "wtacrs"}


def test_a_loss_is_shown_as_one(three_folders):
    runs = why.shown_runs(three_folders)
    rows = aggregate(runs[runs["folder"] == "ablation"]).assign(folder="ablation")
    text = why.table(rows).set_index("estimator")
    assert text["against full"]["wtacrs@0.1"] == "worse"
    assert text["make"]["wtacrs@0.1"] == "ablation"
    _, axis = plt.subplots()
    why._scores(axis, rows[rows["estimator"] != "full"])
    (line,) = axis.lines[:1]
    assert (line.get_marker(), to_hex(line.get_color()).upper()) == why.WORSE
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "digits digits_tiny (ablation), n = 3\nwtacrs@0.1 linear"
    ]
    plt.close("all")


def test_all_that_is_planned_of_full_tuning_is_shown_but_one_budget():
    """The rival that comes nearest, too."""
    planned = read_planned(RESULTS / "plan", "decoders")[f"{why.MODEL}, {why.SIZE}"]
    assert {*planned} - {*why.PLANNED} == {"leanest@0.1"}
    assert {FULL, "checkpoint", "checkpoint, our loss"} < {*why.PLANNED}


def test_times_are_those_of_the_records():
    _, axis = plt.subplots()
    times = why.read_times(RESULTS / "bench")
    why._times(axis, times)
    drawn = {float(line.get_xdata()[0]) for line in axis.lines if len(line.get_xdata()) == 1}
    expected = {times[m][row]["median"] for m in times for row in why.ROWS if row in times[m]}
    assert drawn == expected
    plt.close("all")


def test_no_times_no_picture(tmp_path):
    with pytest.raises(UserError, match="make bench"):
        why.read_times(tmp_path)
    write_json({}, tmp_path / "memory_bert_base.json")
    with pytest.raises(UserError, match="make bench"):
        why.read_times(tmp_path)
