"""What the planner prints: a table, or JSON."""

import json
import shutil

from tests.experiments.plan.test_plan import BERT, printed
from wtacrs_experiments.config import CONF
from wtacrs_experiments.plan import __main__ as command

KEYS = {
    *("config", "peak_bytes", "parameter_bytes", "gradient_bytes", "optimizer_bytes"),
    *("saved_bytes", "temporary_bytes", "at_peak", "flops", "relative_flops", "max_batch_size"),
    "peak_bytes_around",
}


def test_json_is_one_object(capsys):
    result = json.loads(printed(capsys, *BERT, "memory=plain", "output=json"))
    assert set(result) == KEYS
    assert result["max_batch_size"] is None
    assert result["peak_bytes"] == sum(result["at_peak"].values())
    assert result["temporary_bytes"] == result["at_peak"]["temporary"]
    assert result["relative_flops"] == 1.0
    assert result["config"]["batch_size"] == 4
    assert result["config"]["memory"]["name"] == "plain"
    fits = json.loads(printed(capsys, *BERT, "memory=plain", "output=json", "fits=4MiB"))
    assert fits["peak_bytes"] == result["peak_bytes"]  # of the batch asked for, whatever fits
    assert fits["max_batch_size"] > 4
    assert result["peak_bytes_around"] is None
    (size, fitting), (next_size, next_peak) = fits["peak_bytes_around"].items()
    assert (int(size), int(next_size)) == (fits["max_batch_size"], fits["max_batch_size"] + 1)
    assert fitting <= 4 * 2**20 < next_peak


def test_grid_is_one_array_without_repetition(capsys):
    grid = (*BERT, "memory=plain,linear", "budget=0.1,0.3", "output=json", "fits=2MiB")
    results = json.loads(printed(capsys, *grid))
    found = [(r["config"]["memory"]["name"], r["config"]["budget"]) for r in results]
    assert found == [("plain", 1.0), ("linear", 0.1), ("linear", 0.3)]
    costs = [result["relative_flops"] for result in results]
    assert costs[0] == 1.0
    assert 2 / 3 < costs[1] < costs[2] < 1
    assert len(json.loads(printed(capsys, "-m", *BERT, "memory=plain", "output=json"))) == 1
    too_little = json.loads(printed(capsys, *BERT, "-m", "output=json", "fits=1MiB"))
    assert too_little[0]["max_batch_size"] == 0
    assert [*too_little[0]["peak_bytes_around"]] == ["1"]


def test_a_folder_of_ones_own(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    shutil.copy(CONF / "model" / "digits_tiny.yaml", tmp_path / "model" / "mine.yaml")
    given = ["model=mine", "max_length=8", "batch_size=2", "memory=lean", "output=json"]
    assert command.main([*given, "--config-dir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["peak_bytes"] > 0
    assert command.main(given) == 2
    assert "there is no 'model/mine'" in capsys.readouterr().err
    assert command.main([*given, "--config-dir", str(tmp_path / "none")]) == 2
    assert f"--config-dir: {tmp_path / 'none'} is no folder" in capsys.readouterr().err


def test_tables(capsys):
    table = printed(capsys, *BERT, "memory=plain", "fits=4MiB")
    for words in ("peak", "parameters", "optimizer state", "1.00×", "largest batch in 4MiB"):
        assert words in table
    grid = printed(capsys, *BERT, "memory=plain,linear")
    assert "memory=plain" in grid
    assert "memory=linear" in grid
    assert "largest" not in grid
