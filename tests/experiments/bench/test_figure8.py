"""Figure 8's measurement on a tiny model: batches to the limit, ratios that mean what they say."""

import json
from types import SimpleNamespace

import pytest
import torch

from wtacrs_experiments.bench import figure8
from wtacrs_experiments.plan.rehearsal import Rehearsal

TINY = [
    *("model=t5_small", "max_length=16", "model.architecture.d_model=32"),
    *("model.architecture.d_ff=64", "model.architecture.num_layers=1"),
    *("model.architecture.num_decoder_layers=1", "model.architecture.num_heads=2"),
    *("model.architecture.d_kv=16", "model.architecture.vocab_size=50"),
]


@pytest.fixture(autouse=True)
def tiny_reference(monkeypatch):
    monkeypatch.setattr(figure8, "REFERENCE", TINY)


@pytest.fixture
def twice_as_fast(monkeypatch):
    """Each paired step takes half the reference's time."""
    monkeypatch.setattr(figure8, "paired", lambda reference, step, pairs: [2.0] * pairs)


def test_sizes():
    assert figure8.sizes(1) == [1]
    assert figure8.sizes(8) == [1, 2, 4, 8]
    assert figure8.sizes(11) == [1, 2, 4, 8, 11]


def test_record(tmp_path, monkeypatch):
    few = {name: figure8.METHODS[name] for name in ("full", "WTA-CRS@0.3")}
    monkeypatch.setattr(figure8, "METHODS", few)
    given = [*TINY, "--pairs", "1", "--reference", "1", "--output", str(tmp_path)]
    assert figure8.main([*given, "--limit", "1MiB"]) == 0
    record = json.loads((tmp_path / "figure8-t5_small.json").read_text())
    assert (record["limit_bytes"], record["reference_batch_size"]) == (2**20, 1)
    assert [*record["methods"]] == [*figure8.METHODS]
    largest = {name: found["largest_batch"] for name, found in record["methods"].items()}
    for name, found in record["methods"].items():
        assert [point["batch_size"] for point in found["points"]] == figure8.sizes(largest[name])
        assert all(point["relative_samples_per_second"]["median"] > 0 for point in found["points"])
    peak = Rehearsal(figure8.setting(TINY, "WTA-CRS@0.3")).peak_bytes
    fits = largest["WTA-CRS@0.3"]
    assert peak(fits) <= 2**20 < peak(fits + 1)
    assert largest["full"] < largest["WTA-CRS@0.3"]


@pytest.fixture
def counted(monkeypatch):
    """The methods that were measured, of which the second is interrupted once."""

    def curve(config, *_):
        method = config.memory.name
        if method == "checkpoint" and not calls.count("interrupted"):
            calls.append("interrupted")
            raise KeyboardInterrupt
        calls.append(method)
        return {"largest_batch": 1, "points": []}

    calls = []
    monkeypatch.setattr(figure8, "curve", curve)
    return calls


def test_an_interrupted_measurement_goes_on(counted, tmp_path, capsys):
    given = [*TINY, "--limit", "1MiB", "--output", str(tmp_path)]
    assert figure8.main(given) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert figure8.main(given) == figure8.main(given) == 0
    assert counted == ["plain", "interrupted", "checkpoint", "paper", "paper", "leanest"]
    record = json.loads((tmp_path / "figure8-t5_small.json").read_text())
    assert [*record["methods"]] == [*figure8.METHODS]


@pytest.mark.parametrize(
    "other",
    [("--pairs=7",), ("--limit=2MiB",), ("precision=bf16",), ("--overwrite",), ("--reference=2",)],
)
def test_what_was_measured_otherwise_is_measured_again(other, counted, tmp_path):
    counted.append("interrupted")
    given = [*TINY, "--limit=1MiB", "--output", str(tmp_path)]
    assert figure8.main(given) == figure8.main([*given, *other]) == 0
    assert counted[1:] == 2 * ["plain", "checkpoint", "paper", "paper", "leanest"]


@pytest.mark.parametrize("text", ["", "[]", '{"methods": {}}', '{"methods": 1, "provenance": {}}'])
def test_a_damaged_record_is_measured_again(text, counted, tmp_path):
    counted.append("interrupted")
    (tmp_path / "figure8-t5_small.json").write_text(text)
    assert figure8.main([*TINY, "--limit=1MiB", "--output", str(tmp_path)]) == 0
    assert len(counted) == 1 + len(figure8.METHODS)


def test_the_reference_takes_its_part_of_the_card(monkeypatch):
    assert figure8.room(10) == 10
    monkeypatch.setattr(figure8, "DEVICE", "cuda")
    card = SimpleNamespace(total_memory=100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 30)
    assert (figure8.room(100), figure8.room(50)) == (70, 50)


def test_point_is_a_ratio_of_samples_a_second(twice_as_fast):
    """Half the time for eight times the samples."""
    config = figure8.setting(TINY, "full")
    limit = Rehearsal(config).peak_bytes(16)
    points = figure8.curve(config, limit, lambda: None, 2, 3)["points"]
    assert points[-1]["batch_size"] == 16
    assert points[-1]["relative_samples_per_second"]["median"] == 2 * 16 / 2


def test_the_end_of_memory_is_null(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(figure8, "paired", fail)
    config = figure8.setting(TINY, "full")
    found = figure8.curve(config, Rehearsal(config).peak_bytes(2), lambda: None, 1, 1)
    assert [point["relative_samples_per_second"] for point in found["points"]] == [None, None]


def test_sampled_steps_sample():
    step = figure8.stepper(figure8.setting(TINY, "WTA-CRS@0.3"), 4)(4)
    step()
    step()  # with gradient norms of the first


@pytest.mark.parametrize(
    ("precision", "weights", "products"),
    [
        ("fp32", torch.float32, torch.float32),
        ("bf16-autocast", torch.float32, torch.bfloat16),
        ("bf16", torch.bfloat16, torch.bfloat16),
    ],
)
def test_steps_are_of_the_precision_asked_for(precision, weights, products, monkeypatch):
    seen = set()

    def linear(x, weight, bias=None, plain=torch.nn.functional.linear):
        y = plain(x, weight, bias)
        seen.add((weight.dtype, y.dtype))
        return y

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    figure8.stepper(figure8.setting([*TINY, f"precision={precision}"], "full"), 1)(1)()
    assert seen == {(weights, products)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--limit=1KiB", "--limit 1KiB is no memory"),
        ("--limit=100MB", ""),
        ("--pairs=0", "--pairs=0 must be at least 1"),
        ("--reference=-2", "--reference=-2 must be at least 1"),
    ],
)
def test_arguments(given, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figure8, "measure", lambda *_: "x.json")
    code = figure8.main([*TINY, given, "--output", str(tmp_path)])
    assert code == bool(message)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("given", ["budget=0.7", "estimator.center=none", "memory=lean"])
def test_what_the_methods_set_is_refused(given, tmp_path, capsys):
    assert figure8.main([*TINY, given, "--output", str(tmp_path)]) == 1
    assert f"{given}: Figure 8 sets" in capsys.readouterr().err


def test_too_little_for_a_batch_of_one(tmp_path, capsys):
    assert figure8.main([*TINY, "--limit=0.1MiB", "--output", str(tmp_path)]) == 1
    assert "too little for a batch of 1" in capsys.readouterr().err
