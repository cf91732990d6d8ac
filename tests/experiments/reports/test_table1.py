"""Table 1 by task: the runs of the grid alone, what misses as missing, differences by seed."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from wtacrs_experiments.config import as_record
from wtacrs_experiments.records.grid import cells, configs, load_grid
from wtacrs_experiments.records.record import RunRecord, write_record
from wtacrs_experiments.reports import table1

SCORES = {"full": (0.5, 0.7, 0.9), "wtacrs@0.3": (0.4, 0.7, 0.8), "LoRA": (0.6,)}
PLACE = "<!-- begin table1 -->\n<!-- end table1 -->\n"


def written(folder, method, task, seed, score, *more):
    """A record of the run of the grid, and of more settings."""
    grid = load_grid("table1_laptop")
    grid["methods"] = {method: [*grid["methods"][method], *more]}
    grid["blocks"] = [{**block, "methods": [method]} for block in grid["blocks"]
                      if method in block["methods"]]  # fmt: skip
    grid["tasks"], grid["seeds"] = [task], [seed]
    (config,) = configs(cells(grid)).values()
    record = RunRecord("completed", as_record(config), provenance={"git_commit": "a" * 40})
    record.config["task"]["data_sha256"] = "0123456789abcdef"  # as a run adds it
    record.metrics = {"main": "f1", "best": score, "held_out": {"score": score / 2}}
    folder.mkdir(exist_ok=True)
    write_record(record, folder / f"{method}-{task}-{seed}-{len(more)}.json")


@pytest.fixture
def folder(tmp_path):
    for method, scores in SCORES.items():
        for task in ("mrpc", "rte"):
            for seed, score in enumerate(scores):
                written(tmp_path / "table1", method, task, seed, score)
    return tmp_path / "table1"


def shown(folder, protocol="paper"):
    return table1.display(table1.of_grid(folder, protocol)).set_index("method")


def test_cells(folder):
    text = shown(folder)
    assert text["mrpc (f1)"].to_dict() == {
        "full": "70.0 ± 20.0",
        "wtacrs@0.3": "63.3 ± 20.8, -6.7",
        **dict.fromkeys(("wtacrs late@0.3", "leanest@0.3", "pps@0.1", "LoRA+wtacrs@0.3"), "–"),
        "LoRA": "60.0 (n = 1), +10.0",
    }
    assert set(text["stsb (–)"]) == {"–"}
    assert text.loc["wtacrs@0.3", "runs"] == "6 of 12"
    assert shown(folder, "held_out").loc["wtacrs@0.3", "rte (f1)"] == "31.7 ± 10.4, -3.3"


def test_average_is_of_the_seeds_that_have_every_task(folder):
    assert set(shown(folder)["average − full [95 %]"]) == {"–"}
    for method, scores in SCORES.items():
        for seed, score in enumerate(scores):
            written(folder, method, "cola", seed, score)
            if seed < 2:
                written(folder, method, "stsb", seed, 1 - score)
    text = shown(folder)["average − full [95 %]"]
    each = np.array([[-0.1, -0.1, -0.1, 0.1], [0.0, 0.0, 0.0, 0.0]]).mean(axis=1)
    low, high = 100 * np.array(stats.t.interval(0.95, 1, each.mean(), stats.sem(each)))
    assert text["wtacrs@0.3"] == f"{100 * each.mean():+.1f} [{low:+.1f}, {high:+.1f}] (n = 2)"
    assert text["LoRA"] == "+5.0 (n = 1)"


def test_runs_of_no_cell_are_left_out(folder, tmp_path):
    before = shown(folder)
    written(folder, "wtacrs@0.3", "mrpc", 0, 0.1, "estimator.grad_norms=none")
    pd.testing.assert_frame_equal(shown(folder), before)
    (page := tmp_path / "page.md").write_text(PLACE)
    table1.write(folder, tmp_path / "t", page)
    text = (tmp_path / "t.md").read_text()
    assert text in page.read_text()
    assert text.index("Best epoch:") < text.index("Held out:")
