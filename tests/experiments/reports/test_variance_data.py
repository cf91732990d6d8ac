"""Records of the variance made by hand: errors over layers and tables, on paper."""

import math

import pytest

from tests.experiments.probes import LOWRANK, PPS, WTACRS, probe
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import write_record
from wtacrs_experiments.reports.figures import main
from wtacrs_experiments.reports.variance_data import RUN, layer_type, load_probes
from wtacrs_experiments.reports.variance_tables import probe_table, variance_table


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return [dict(zip(head, cells, strict=True)) for cells in body[1:]]


def test_total_mean_and_largest_over_layers(add, found):
    add(probe(1, pps=PPS))
    (row,) = found().to_dict("records")
    assert row["total"] == pytest.approx(0.68)
    assert row["mean"] == pytest.approx(6.1 / 3)
    assert row["largest"] == 4.0
    assert row["geometric"] == pytest.approx(0.8 ** (1 / 3))
    assert (row["layers"], row["inexact"], row["is_first"], row["is_last"]) == (3, 3, True, True)


def test_a_layer_that_a_method_has_exactly_leaves_only_the_geometric_mean(add, found):
    add(probe(1, pps=PPS, wtacrs=WTACRS, **{"pps__0.5": PPS}))
    by = found().set_index(["method", "budget"])
    assert by.loc["pps", 0.5]["inexact"] == 3  # another budget
    pps, wtacrs = by.loc["pps", 0.3], by.loc["wtacrs", 0.3]
    assert (pps["total"], wtacrs["total"]) == (pytest.approx(0.68), pytest.approx(1.22))
    assert (pps["mean"], wtacrs["mean"]) == (pytest.approx(6.1 / 3), pytest.approx(9.4 / 3))
    assert pps["geometric"] == pytest.approx(math.sqrt(0.1 * 4))
    assert wtacrs["geometric"] == pytest.approx(math.sqrt(0.4 * 9))
    assert (pps["layers"], pps["inexact"]) == (3, 2)


def test_table_shows_the_last_probe_and_the_mean_of_all(add, found):
    add(probe(1, pps=PPS, pps_lowrank=LOWRANK), probe(7, pps=[1.0] * 3, pps_lowrank=LOWRANK))
    pps, centred = rows(variance_table(found()))
    assert (pps[RUN], pps["budget"], pps["method"]) == ("cola · minilm", "0.3", "pps")
    assert centred["method"] == "pps/lowrank"
    assert (pps["layers"], pps["probes"]) == ("3 (3)", "2 of 2")
    assert (pps["total, last"], pps["total, all"]) == ("1.00", "0.840")  # (0.68 + 1) / 2
    assert (pps["mean, last"], pps["mean, all"]) == ("1.00", "1.52")
    assert (pps["largest, last"], pps["largest, all"]) == ("1.00", "2.50")
    assert (pps["geometric, last"], pps["geometric, all"]) == ("1.00", "0.964")
    assert centred["total, all"] == "0.280"


def test_table_has_the_budgets_asked_for_and_a_mean_over_nothing_is_missing(add, found):
    errors = {"pps__0.1": [0.0] * 3, "crs__0.1": PPS}  # no layer is left to the geometric mean
    others = {"pps__0.2": PPS, "pps__0.3__none": PPS, "pps__0.3": PPS}
    add(probe(1, **{"pps__0.1": PPS, "crs__0.1": PPS}), probe(7, **errors, **others))
    exact, _, drawn = rows(variance_table(found()))
    assert (exact["budget"], exact["total, last"], exact["geometric, last"]) == ("0.1", "0.00", "–")
    assert (exact["total, all"], exact["geometric, all"]) == ("0.340", "–")
    assert (exact["layers"], drawn["budget"]) == ("3 (0)", "0.3")


def test_a_probe_that_keeps_every_row_is_not_averaged(add, found):
    add(probe(1, pps=PPS), probe(2, pps=[0.0] * 3), probe(7, pps=[1.0] * 3))
    assert found()["drawn"].tolist() == [True, False, True]
    (row,) = rows(variance_table(found()))
    assert (row["total, all"], row["geometric, all"]) == ("0.840", "0.964")
    assert row["probes"] == "2 of 3"


def test_probe_table_has_totals_and_their_ratios(add, found):
    add(probe(1, wtacrs=WTACRS, pps=PPS, pps_lowrank=LOWRANK), probe(7, pps=PPS))
    add(probe(2, deterministic=PPS, **{"pps__0.3__none": [9.0] * 3}), model="mpnet")
    first, last, other = rows(probe_table(found()))
    assert (first["step"], first["epoch"], last["epoch"]) == ("1", "1", "2")
    assert (first["wtacrs"], first["pps"], first["pps/lowrank"]) == ("1.22", "0.680", "0.280")
    assert first["pps ÷ pps/lowrank"] == "2.43"
    assert first["wtacrs ÷ pps/lowrank"] == "4.36"
    assert (last["wtacrs"], last["pps ÷ pps/lowrank"]) == ("–", "–")
    assert (other[RUN], other["deterministic (all bias²)"]) == ("cola · mpnet", "0.680")
    assert other["pps"] == "–"  # measured with another source only


def test_no_ratio_to_an_exact_method(add, found):
    add(probe(1, wtacrs=[0.0] * 3, pps=PPS, pps_lowrank=[0.0] * 3))
    (row,) = rows(probe_table(found()))
    assert (row["pps ÷ pps/lowrank"], row["wtacrs ÷ pps/lowrank"]) == ("–", "–")


def test_one_record_for_each_task_and_model(add, tmp_path):
    add(probe(1, pps=PPS))
    add(probe(1, pps=PPS), model="mpnet_base")
    add(probe(1, pps=PPS), task="rte", model="mpnet_base")
    names = ["cola · minilm", "cola · mpnet_base", "rte · mpnet_base"]
    assert sorted(load_probes(tmp_path / "v")) == names
    again = add(probe(1, pps=PPS), name="z")
    with pytest.raises(UserError, match=f"two records of cola · minilm; keep one, see {again}"):
        load_probes(tmp_path / "v")


def without(key):
    return {name: value for name, value in probe(1, pps=PPS).items() if name != key}


@pytest.mark.parametrize(
    "probes",
    [
        [],  # or nothing was measured
        [without("squared_norm")],
        [without("winner_mass")],
        [{**probe(1), "errors": [{"estimator": "pps", "budget": 0.3, "source": "auto"}]}],
        [probe(1, pps=PPS[:2])],
        [probe(1, pps=[0.1, math.nan, 1.0])],  # null in the file
        [probe(1, pps=PPS), without("layers")],
    ],
)
def test_old_or_foreign_record_is_named(probes, add, tmp_path):
    add(probe(1, pps=PPS))
    path = add(*probes, task="rte")
    with pytest.raises(UserError, match=f"^{path} is no record of experiment=variance"):
        load_probes(tmp_path / "v")


def test_record_of_another_experiment_is_named(make_record, add, tmp_path, capsys):
    path = add(probe(1, pps=PPS)).with_name("run.json")
    write_record(make_record(), path)
    assert main(["variance", str(path.parent), "--output", str(tmp_path)]) == 1
    assert str(path) in capsys.readouterr().err
    path.write_text("[1]")
    with pytest.raises(UserError, match=f"^{path} is not a valid record"):
        load_probes(path.parent)


def test_figures_need_records(add, tmp_path, capsys):
    add(status="failed")
    assert main(["variance", str(tmp_path / "v")]) == 1
    assert "experiment=variance" in capsys.readouterr().err


def test_layer_type():
    assert layer_type("bert.encoder.layer.11.output.dense") == "output.dense"
    assert layer_type("mpnet.encoder.layer.0.attention.attn.q") == "attention.attn.q"
