"""Tables from records made by hand: means, spread and ratios worked out on paper."""

import math

import pandas as pd
import pytest

from wtacrs_experiments.config import as_record
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import record_path, write_record
from wtacrs_experiments.reports import tables
from wtacrs_experiments.reports.runs import aggregate, load_runs
from wtacrs_experiments.reports.tables import display, splice, write_tables
from wtacrs_experiments.words import method_name


def rows(folder):
    return aggregate(load_runs(folder)).to_dict("records")


def test_means_spread_and_ratios(two_seeds, folder):
    full, sampled = rows(folder)
    assert (full["estimator"], full["n"], full["peak_bytes_full_ratio"]) == ("full", 2, 1.0)
    assert full["score"] == pytest.approx(0.92)
    assert full["score_std"] == pytest.approx(0.04 / math.sqrt(2))
    assert (sampled["estimator"], sampled["budget"], sampled["n"]) == ("wtacrs", 0.3, 2)
    assert sampled["score"] == pytest.approx(0.85)
    assert sampled["last"] == pytest.approx(0.75)
    assert sampled["last_std"] == pytest.approx(0.1 / math.sqrt(2))
    assert sampled["peak_bytes"] == 200
    assert sampled["peak_bytes_full_ratio"] == 2.0
    assert sampled["saved_bytes_full_ratio"] == 3.0
    assert sampled["samples_per_second"] == 9.0
    assert sampled["speed_ratio"] == 0.75


def test_cells(two_seeds, add_run, folder):
    add_run("estimator=crs", best=0.5, peak=None, speed=None)
    text = display(aggregate(load_runs(folder))).to_dict("records")
    full, crs, sampled = text
    assert [row["estimator"] for row in text] == ["full", "crs@0.3", "wtacrs@0.3"]
    assert (full["score at best epoch"], sampled["score at best epoch"]) == (
        "92.0 ± 2.8",
        "85.0 ± 7.1",
    )
    assert (sampled["full / peak"], sampled["full / saved"]) == ("2.00×", "3.00×")
    assert (sampled["speed"], sampled["samples/s"], sampled["n"]) == ("0.75×", "9.0", "2")
    missing = ("peak MiB", "full / peak", "saved MiB", "full / saved", "samples/s", "speed")
    assert {crs[name] for name in missing} == {"–"}
    assert (crs["score at best epoch"], crs["n"]) == ("50.0 ± –", "1")  # no spread of one seed


def test_centred_runs_have_a_name_of_their_own(add_run, folder, tmp_path):
    add_run("estimator=pps", "estimator.center=none", best=0.7)
    add_run("estimator=pps", "estimator.center=lowrank", best=0.8)
    add_run("estimator=full", best=0.9)
    text = write_tables(folder, tmp_path / "t")
    assert text["estimator"].tolist() == ["full", "pps@0.3", "pps/lowrank@0.3"]
    assert text["score at best epoch"].tolist() == ["90.0 ± –", "70.0 ± –", "80.0 ± –"]
    assert pd.read_csv(tmp_path / "t.csv")["estimator"].tolist() == ["full", "pps", "pps/lowrank"]
    assert method_name("full", "lowrank") == "full"  # as no run of today says it


def test_records_from_before_centring_are_not_centred(make_record, folder):
    record = make_record("estimator=pps", "estimator.center=none")
    path = record_path(record.config)
    del record.config["estimator"]["center"]
    write_record(record, path)
    assert display(aggregate(load_runs(folder)))["estimator"].tolist() == ["pps@0.3"]


def test_nothing_measured_and_no_baseline(add_run, folder):
    for seed in (0, 1):
        add_run(f"seed={seed}", peak=None, speed=None)
    (row,) = display(aggregate(load_runs(folder))).to_dict("records")
    assert (row["score at best epoch"], row["peak MiB"], row["speed"]) == ("50.0 ± 0.0", "–", "–")


@pytest.mark.parametrize(
    "override",
    [
        *("training.learning_rate=0.5", "task.max_train_rows=63", "training.precision=bf16"),
        *("estimator.floor=0.5", "estimator.grad_norms=none", "budget=0.1", "estimator=crs"),
    ],
)
def test_other_settings_are_another_row(override, add_run, folder):
    add_run(best=0.5)
    add_run(override, best=0.7)
    assert sorted(row["score"] for row in rows(folder)) == [0.5, 0.7]
    text = display(aggregate(load_runs(folder))).drop(
        columns=["score at best epoch", "score at last epoch"]
    )
    assert not text.duplicated().any()  # and the two can be told apart


def test_a_choice_of_gradient_norms_is_named(add_run, folder):
    add_run()
    add_run("estimator.grad_norms=defensive")
    text = display(aggregate(load_runs(folder)))
    assert sorted(text["estimator"]) == ["wtacrs@0.3", "wtacrs@0.3, grad_norms=defensive"]
    assert "settings" not in text


def test_ratios_are_within_the_same_settings(two_seeds, add_run, folder):
    add_run("training.learning_rate=0.5")
    ratios = {row["score"]: row["peak_bytes_full_ratio"] for row in rows(folder)}
    assert math.isnan(ratios[0.5])


def test_settings_of_sampling_do_not_split_the_baseline(two_seeds, add_run, folder):
    add_run("estimator=full", "budget=1.0", "estimator.floor=0.5", "seed=2", best=0.98)
    full, sampled = rows(folder)
    assert (full["estimator"], full["n"]) == ("full", 3)
    assert sampled["peak_bytes_full_ratio"] == 2.0


def test_plain_runs_that_differ_are_one_baseline(add_run, folder):
    for attention, peak in (("default", 400), ("eager", 600)):
        add_run("estimator=full", "memory=plain", f"memory.attention={attention}", peak=peak)
    add_run("estimator=wtacrs", peak=250)
    assert sorted(row["peak_bytes_full_ratio"] for row in rows(folder)) == [500 / 600, 1.25, 2.0]


def test_only_what_completed_counts(add_run, folder):
    add_run(best=0.5)
    for seed, status in enumerate(("failed", "interrupted", "out_of_memory"), 1):
        add_run(f"seed={seed}", best=0.9, status=status)
    (row,) = rows(folder)
    assert (row["n"], row["score"]) == (1, 0.5)


def test_files(two_seeds, folder, tmp_path):
    output = tmp_path / "tables" / "runs"
    text = write_tables(folder, output)
    markdown = output.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    assert len(markdown) == 8  # with the lines about full and speeds, and none about commits
    assert markdown[0].split("|")[1].strip() == "task"
    cells = [cell.strip() for cell in markdown[3].split("|")[1:-1]]
    assert cells == text.iloc[1].tolist()
    table = pd.read_csv(output.with_suffix(".csv"))
    assert table["score"].tolist() == pytest.approx([0.92, 0.85])
    assert table["n"].tolist() == [2, 2]


def test_settings_are_told_apart_in_the_file(add_run, folder, tmp_path):
    add_run()
    add_run("training.learning_rate=0.5")
    write_tables(folder, tmp_path / "t")
    assert pd.read_csv(tmp_path / "t.csv")["settings"].nunique() == 2


def test_folder_without_record(folder):
    with pytest.raises(UserError, match="no record of a run; make some"):
        load_runs(folder)


def test_command(two_seeds, folder, tmp_path, capsys):
    assert tables.main([str(folder), "--output", str(tmp_path / "t")]) == 0
    out = capsys.readouterr().out
    assert "wtacrs@0.3" in out
    assert "85.0 ± 7.1" in out
    assert f"{tmp_path / 't.md'}, .csv and .tex" in out


@pytest.mark.parametrize("broken", [False, True])
def test_command_fails_with_one_line(broken, folder, tmp_path, capsys):
    if broken:
        (folder / "a.json").write_text("{")
    assert tables.main([str(folder), "--output", str(tmp_path / "t")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}")
    assert error.count("\n") == 1
    assert not (tmp_path / "t.md").exists()


def test_splice(two_seeds, folder, tmp_path):
    document = tmp_path / "README.md"
    document.write_text("above\n<!-- begin t -->\nold\n<!-- end t -->\nbelow\n")
    command = [str(folder), "--output", str(tmp_path / "t"), "--splice", str(document)]
    assert tables.main(command) == 0
    table = (tmp_path / "t.md").read_text()
    spliced = f"above\n<!-- begin t -->\n{table}<!-- end t -->\nbelow\n"
    assert document.read_text() == spliced
    assert tables.main(command) == 0
    assert document.read_text() == spliced


def test_splice_needs_its_marks(tmp_path):
    document = tmp_path / "README.md"
    document.write_text("<!-- begin t -->\n")
    with pytest.raises(UserError, match="has no lines <!-- begin t --> and <!-- end t -->"):
        splice(document, "table\n", "t")
    assert document.read_text() == "<!-- begin t -->\n"


def test_records_by_hand_are_like_those_of_runs(make_record, make_config):
    assert make_record().config == as_record(make_config())
