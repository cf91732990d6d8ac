"""A run from config to record: what is written, what is done twice and what is not, failures."""

import json
import re
from unittest.mock import Mock

import pytest
import torch

from wtacrs_experiments.config import as_record
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.claims import LOCK
from wtacrs_experiments.records.record import read_record, record_path, write_record
from wtacrs_experiments.run import measure, runner
from wtacrs_experiments.run.runner import RunError, run

HALVES = ("picking_half", "reporting_half")
SECTIONS = {  # ARCHITECTURE section 7
    "metrics": "main best best_epoch last held_out per_epoch train_loss loss_curve",
    "memory": "device method peak_bytes reserved_bytes parameter_bytes gradient_bytes"
    " optimizer_bytes saved_bytes at_peak temporary_bytes host_cache_bytes",
    "throughput": "samples_per_second tokens_per_second step_seconds steps_timed warmup_steps",
    "sampling": "layers early late skipped rows_kept_fraction",
    "provenance": "git_commit git_dirty packages python platform device_name cpu threads"
    " started_at seconds",
}
SHORT = ("measure.memory=false",)


def path_of(config):
    return record_path(as_record(config))


@pytest.fixture
def only_record(tmp_path):
    def read():
        (path,) = {*(tmp_path / "runs").iterdir()} - {tmp_path / "runs" / LOCK}  # no temporary file
        return json.loads(path.read_text())

    return read


@pytest.fixture
def leave_record(make_record):
    """Writes the record of a run that did not happen."""

    def leave(config, **facts):
        path = path_of(config)
        path.parent.mkdir()
        write_record(make_record(**facts), path)
        return path

    return leave


@pytest.fixture
def carry_out(monkeypatch, make_record):
    """Stands for the training: counts its calls, or raises ``carry_out.error``."""

    def stand_in(config, record, folder, interruption):
        stand_in.calls += 1
        if stand_in.error is not None:
            raise stand_in.error
        record.metrics = make_record().metrics

    stand_in.calls, stand_in.error = 0, None
    monkeypatch.setattr(runner, "carry_out", stand_in)
    return stand_in


@pytest.mark.parametrize("estimator", ["crs", "deterministic", "full", "pps", "uniform", "wtacrs"])
def test_record_of_a_run(estimator, make_config, only_record, capsys):
    run(make_config(f"estimator={estimator}", "measure.warmup_steps=1"))
    record = only_record()
    assert record.keys() == {"status", "config", "error", *SECTIONS}
    assert (record["status"], record["error"]) == ("completed", None)
    for section, keys in SECTIONS.items():
        assert record[section].keys() == set(keys.split()), section
    assert record["config"]["training"]["batch_size"] == 8
    metrics, memory, sampling = record["metrics"], record["memory"], record["sampling"]
    (epoch,) = metrics["per_epoch"]
    assert epoch.keys() == {"epoch", "step", "loss", "accuracy", *HALVES}
    assert metrics["best"] == metrics["last"] == epoch["accuracy"]
    assert (epoch["step"], metrics["best_epoch"], metrics["main"]) == (4, 0.5, "accuracy")
    assert 2 < metrics["train_loss"] < 3  # log(10) = 2.3
    assert record["throughput"]["steps_timed"] == 3
    assert (memory["device"], memory["reserved_bytes"]) == ("cpu", None)
    if estimator == "full":
        assert memory["host_cache_bytes"] == 0
        nothing = {"layers": 0, "early": 0, "late": 0}
        assert sampling == {**nothing, "skipped": {}, "rows_kept_fraction": 1.0}
    else:
        assert memory["host_cache_bytes"] == 8 * 64 * 16 * 2  # inputs, rows, tokens, bytes
        assert sampling["layers"] == 12
        assert sampling["skipped"] == {
            "outside the transformer blocks": 2,
            "of Embedding, which is no linear layer": 3,
        }
        assert (sampling["early"], sampling["late"]) == (12, 0)
        assert sampling["rows_kept_fraction"] == pytest.approx(0.3, abs=0.01)
    out = capsys.readouterr().out
    method = {"pps": "pps/lowrank"}.get(estimator, estimator)
    assert out.startswith(f"digits · digits_tiny · full · {method}@")
    assert out.rstrip().endswith(".json")


def test_completed_run_is_skipped(make_config, leave_record, carry_out, capsys):
    path = leave_record(make_config())
    before = path.read_bytes()
    assert run(make_config()) == read_record(path)
    assert (carry_out.calls, path.read_bytes()) == (0, before)
    assert capsys.readouterr().out == (
        f"skipped, completed before: {path}; overwrite=true runs it again\n"
    )


@pytest.mark.parametrize("status", ["failed", "interrupted", "out_of_memory"])
def test_run_that_did_not_complete_is_run_again(
    status, make_config, leave_record, carry_out, capsys
):
    path = leave_record(make_config(), status=status)
    run(make_config())
    assert (carry_out.calls, read_record(path).status) == (1, "completed")
    assert f"running again, it was {status}: {path}" in capsys.readouterr().out


def test_overwrite_runs_again(make_config, leave_record, carry_out):
    path = leave_record(make_config())
    path.write_text("{")  # even what is not a record
    run(make_config("overwrite=true"))
    assert (carry_out.calls, read_record(path).status) == (1, "completed")


def test_budget_of_the_plain_model_is_one(make_config, carry_out, only_record):
    for budget in (0.1, 0.3, 1):
        run(make_config("estimator=full", f"budget={budget}"))
    assert (carry_out.calls, only_record()["config"]["budget"]) == (1, 1.0)


def test_interrupt_in_training_is_recorded(make_config, only_record, monkeypatch):
    class Interrupted(measure.StepTimer):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(measure, "StepTimer", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(make_config())
    record = only_record()
    assert record["status"] == "interrupted"
    assert record["error"] == {"type": "KeyboardInterrupt", "message": ""}
    assert record["metrics"] is record["memory"] is record["throughput"] is None
    assert record["provenance"]["seconds"] > 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ZeroDivisionError("by zero"), "failed"),
        (UserError("no such folder"), "failed"),
        (RuntimeError("mat1 and mat2 cannot be multiplied"), "failed"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        ("the allocator of the CPU", "out_of_memory"),
    ],
)
def test_failure_is_recorded(error, status, make_config, carry_out, only_record, capsys):
    if isinstance(error, str):
        with pytest.raises(RuntimeError) as caught:
            torch.empty(2**60)
        error = caught.value
    carry_out.error = error
    with pytest.raises(RunError, match=re.escape(str(error)) or "MemoryError") as raised:
        run(make_config())
    assert str(path_of(make_config())) in str(raised.value)
    record = only_record()
    assert record["status"] == status
    assert record["error"] == {"type": type(error).__name__, "message": str(error)}
    a_traceback_helps = status == "failed" and not isinstance(error, UserError)
    assert ("Traceback" in capsys.readouterr().err) == a_traceback_helps


def test_same_seed_gives_the_same_metrics(make_config, monkeypatch):
    heads, load = [], runner.load_model

    def load_model(*args):
        model = load(*args)
        heads.append(model.classifier.weight.tolist())
        return model

    monkeypatch.setattr(runner, "load_model", load_model)
    first, again, other = (
        run(make_config(f"seed={seed}", "overwrite=true", *SHORT)).metrics for seed in (0, 0, 1)
    )
    assert first == again
    assert first["train_loss"] != other["train_loss"]
    assert heads[0] == heads[1] != heads[2]


@pytest.mark.parametrize("precision", ["bf16-autocast", "bf16"])
def test_bf16(precision, make_config):
    record = run(make_config(f"training.precision={precision}", "training.max_steps=1", *SHORT))
    exact = run(make_config("training.max_steps=1", *SHORT))
    difference = abs(record.metrics["train_loss"] - exact.metrics["train_loss"])
    assert 0 < difference < 0.05


def test_pure_bf16_halves_what_autocast_leaves(make_config):
    """Parameters, gradients and optimizer state, which under autocast stay as they were."""
    sizes = {}
    for precision in ("fp32", "bf16-autocast", "bf16"):
        memory = run(make_config(f"training.precision={precision}", "training.max_steps=1")).memory
        sizes[precision] = [memory[f"{part}_bytes"] for part in ("parameter", "gradient")]
    assert sizes["bf16-autocast"] == sizes["fp32"] == [2 * size for size in sizes["bf16"]]


def test_probes_that_come_too_late(make_config):
    late = ("estimator=pps", "measure=variance", "measure.probe_steps=[16]")
    with pytest.raises(RunError, match="beyond the 16 steps of this run"):
        run(make_config(*late, "training.epochs=2", "training.max_steps=-1"))  # 64 rows by 8


def test_diverged_run_gets_no_score(make_config, only_record, capsys):
    with pytest.raises(RunError, match="diverged"):
        run(make_config("training.learning_rate=1e30", "training.max_grad_norm=0", *SHORT))
    assert (only_record()["status"], only_record()["metrics"]) == ("failed", None)


def test_two_validation_sets(make_config, tiny_glue, saved_model):
    model = ("model=bert_base", f"model.path={saved_model}")
    metrics = run(make_config(*tiny_glue("mnli"), *model)).metrics
    (epoch,) = metrics["per_epoch"]
    scores = {"loss", "accuracy", "mismatched_loss", "mismatched_accuracy"}
    assert epoch.keys() == {"epoch", "step", *scores, *HALVES, *(f"mismatched_{h}" for h in HALVES)}
    assert metrics["best"] == epoch["accuracy"]


def test_regression(make_config, tiny_glue):
    record = run(make_config(*tiny_glue("stsb"), "model=minilm"))
    assert record.metrics["main"] == "pearson"
    (epoch,) = record.metrics["per_epoch"]
    assert epoch.keys() == {"epoch", "step", "loss", "pearson", "spearman", *HALVES}
    assert record.sampling["layers"] == 36


def test_what_the_system_refuses_is_said_of_its_file(make_config, monkeypatch):
    for error, said in ((PermissionError(13, "no", "/a"), "^.Errno"), (OSError(28, "x"), "_dir=")):
        monkeypatch.setattr(runner, "settle", Mock(side_effect=error))
        with pytest.raises(RunError, match=said):
            run(make_config())
