"""The paired difference to full: interval and word, worked out on paper."""

import math

import pandas as pd
import pytest

from wtacrs_experiments.records.record import record_path, write_record
from wtacrs_experiments.reports.tables import aggregate, display, load_runs, write_tables

FULL = (0.90, 0.94, 0.92)
# Differences to FULL of -0.10, -0.04, -0.06: mean -1/15, standard deviation sqrt(0.0028 / 3), so
# with t = 4.302653 of two degrees of freedom the interval is -0.066667 ± 0.075891.
NEAR = (0.80, 0.90, 0.86)
HALF = 0.075891


@pytest.fixture
def add(make_record):
    """Writes a record a score, with seeds 0, 1, 2, ... and these overrides."""

    def write(scores, *overrides, seeds=None):
        for seed, best in zip(seeds or range(len(scores)), scores, strict=True):
            record = make_record(*overrides, f"seed={seed}", best=best)
            write_record(record, record_path(record.config))

    return write


@pytest.fixture
def full(add):
    add(FULL, "estimator=full", "budget=1.0")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def found(folder):
    """The one row of the table that is sampled, as numbers and as text."""

    def row():
        table = aggregate(load_runs(folder))
        (at,) = table.index[table["estimator"] != "full"]
        return {**table.loc[at], **display(table).loc[at]}

    return row


@pytest.mark.parametrize(
    ("shift", "word"),
    [(0, "not told apart"), (-0.009, "not told apart"), (-0.01, "worse"), (0.15, "better")],
)
def test_interval_and_word(shift, word, folder, full, add, found):
    add([score + shift for score in NEAR])
    row = found()
    assert (row["n"], row["pairs"]) == ("3", 3)
    assert row["difference"] == pytest.approx(-1 / 15 + shift)
    assert row["difference_low"] == pytest.approx(-1 / 15 + shift - HALF, abs=1e-6)
    assert row["difference_high"] == pytest.approx(-1 / 15 + shift + HALF, abs=1e-6)
    assert row["against full"] == word
    if not shift:
        assert row["score − full [95 %]"] == "-6.7 [-14.3, +0.9]"


def test_pairs_are_runs_of_one_seed(folder, full, add, found):
    """The order of runs and a further seed do not count; a spread common to both cancels."""
    add([0.90, 0.88, 0.86, 0.5], seeds=[1, 2, 0, 9])
    row = found()
    assert (row["n"], row["pairs"]) == ("4", 3)
    assert row["difference"] == pytest.approx(-0.04)
    assert row["difference_low"] == pytest.approx(-0.04)
    assert row["score − full [95 %]"] == "-4.0 [-4.0, -4.0], 3 pairs"
    assert row["against full"] == "worse"


def test_two_pairs_give_an_interval_and_no_word(folder, full, add, found):
    add([0.80, 0.86])  # differences -0.10, -0.08; t of one degree of freedom is 12.7062
    row = found()
    assert row["difference_low"] == pytest.approx(-0.09 - 12.7062 * 0.01, abs=1e-6)
    assert row["difference_high"] == pytest.approx(-0.09 + 12.7062 * 0.01, abs=1e-6)
    assert row["against full"] == "–"
    assert row["score − full [95 %]"] == "-9.0 [-21.7, +3.7]"


@pytest.mark.parametrize("seeds", [[0], [7, 8, 9]])
def test_fewer_than_two_pairs_are_missing(seeds, folder, full, add, found):
    add([0.5] * len(seeds), seeds=seeds)
    row = found()
    assert row["pairs"] == (1 if seeds == [0] else 0)
    assert all(math.isnan(row[f"difference{end}"]) for end in ("", "_low", "_high"))
    assert (row["score − full [95 %]"], row["against full"]) == ("–", "–")


@pytest.mark.parametrize("setting", ["training.learning_rate=0.5", "tuning=lora"])
def test_pairs_share_their_settings(setting, folder, full, add, found):
    add(NEAR, setting)
    assert found()["pairs"] == 0


def test_a_seed_that_ran_twice_is_one_pair(folder, full, add, found):
    add(NEAR)
    add([0.82], "measure.warmup_steps=9")
    row = found()
    assert row["pairs"] == 3
    assert row["difference"] == pytest.approx((-0.09 - 0.04 - 0.06) / 3)


def test_full_is_not_held_against_itself_but_its_presets_are(folder, full, add):
    add(FULL, "estimator=full", "budget=1.0", "memory=lean")
    text = display(aggregate(load_runs(folder))).set_index("memory")
    assert (text["against full"]["plain"], text["score − full [95 %]"]["plain"]) == ("–", "–")
    assert text["against full"]["lean"] == "not told apart"


def test_files_have_the_difference(folder, full, add, tmp_path):
    add(NEAR)
    write_tables(folder, tmp_path / "t")
    assert "-6.7 [-14.3, +0.9] | not told apart " in (tmp_path / "t.md").read_text()
    table = pd.read_csv(tmp_path / "t.csv").set_index("estimator")
    assert table["difference_low"]["wtacrs"] == pytest.approx(-1 / 15 - HALF, abs=1e-6)
    assert (table["against_full"]["wtacrs"], table["pairs"]["wtacrs"]) == ("not told apart", 3)


@pytest.mark.parametrize(
    ("shift", "word"),
    [(0, "not told apart"), (-0.009, "not told apart"), (-0.01, "better"), (0.15, "worse")],
)
def test_of_perplexity_less_is_better(shift, word, folder, full, add, found):
    add([score + shift for score in NEAR])
    for path in folder.glob("*.json"):
        path.write_text(path.read_text().replace('"accuracy"', '"perplexity"'))
    row = found()
    assert row["against_full"] == row["against full"] == word
    assert row["score at best epoch"].startswith(f"{sum(NEAR) / 3 + shift:.3f} ± ")  # not × 100
    assert row["score − full [95 %]"].startswith(f"{-1 / 15 + shift:+.3f} [")
