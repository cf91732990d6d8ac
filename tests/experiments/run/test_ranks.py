"""Several processes, one run: python run.py under torchrun."""

import json
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from wtacrs_experiments import cli
from wtacrs_experiments.config import ROOT, RunConfig, compose
from wtacrs_experiments.records.record import read_record
from wtacrs_experiments.run import runner

GIVEN = ("task=digits", "model=digits_tiny", "training.batch_size=8", "training.device=cpu")
STEPS = ("training.max_steps=12", "measure.warmup_steps=1")
BY_LENGTH = ("training.group_by_length=true", "task.max_train_rows=64")  # 8 steps an epoch
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node")
FSDP = ("accelerate.commands.launch", "--use_fsdp", "--fsdp_version=2")
WRAP = ("--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP",)
FSDP = (*FSDP, *WRAP, "--fsdp_transformer_layer_cls_to_wrap=BertLayer", "--num_processes")
# A run that says which step it has done, in the first process, and takes its time. AS_ON_GPUS:
# accelerate, which shards on accelerators only, takes two CPU processes for such.
SLOW = """
import os, signal, sys, time
sys.argv[1:1] = eval(os.environ.get("OF_RANK", "{}")).get(os.environ["RANK"], [])
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import Trainer
import run
init, step = PartialState.__init__, Trainer.training_step
def as_on_gpus(self, *args, **kwargs):
    init(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
if "AS_ON_GPUS" in os.environ:
    PartialState.__init__ = as_on_gpus
def slow(self, *args, **kwargs):
    loss = step(self, *args, **kwargs)
    if os.environ["RANK"] == "0":
        sharded = sum(isinstance(p, DTensor) for p in self.model.parameters())
        print("step", self.state.global_step, f"{sharded} sharded", flush=True)
    if str(self.state.global_step) == os.environ.get("SIGTERM_AT"):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    return loss
Trainer.training_step = slow
sys.exit(run.main())
"""


def runs(tmp_path):
    return f"results_dir={tmp_path / 'runs'}"


@pytest.fixture
def start(tmp_path):
    """Starts ``world`` processes of one run."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW)

    def go(world, *overrides, program=str(ROOT / "run.py"), launcher=TORCHRUN, **more):
        words = (*GIVEN, *overrides, runs(tmp_path))
        return subprocess.Popen(
            [sys.executable, "-m", *launcher, str(world), program, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    go.slow = str(script)
    return go


def only_record(tmp_path, world, output=""):
    records = [read_record(path) for path in (tmp_path / "runs").glob("*.json")]
    found = [one for one in records if one.config["training"].get("world_size", 1) == world]
    assert len(found) == 1, output
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["training.group_by_length=false", *BY_LENGTH[:1]])
def test_two_processes_are_one_run(order, start, tmp_path):
    """The losses and scores of one process, to rounding: gradients are no multiple of its. One
    record, with what each process needed at its peak."""
    chosen = compose(RunConfig, [*GIVEN, *STEPS, "estimator=full", order, runs(tmp_path)])
    runner.run(chosen)
    process = start(2, "estimator=full", order, *STEPS)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert output.count("training loss") == 1
    one, two = (only_record(tmp_path, world, output) for world in (1, 2))
    assert two.metrics["loss_curve"]["loss"] == pytest.approx(
        one.metrics["loss_curve"]["loss"], rel=1e-4
    )
    assert two.metrics["train_loss"] == pytest.approx(one.metrics["train_loss"], rel=1e-4)
    assert two.metrics["best"] == pytest.approx(one.metrics["best"], abs=0.01)
    assert len(two.memory["peak_bytes_by_rank"]) == 2
    assert two.memory["peak_bytes"] < one.memory["peak_bytes"]  # half of the batch
    assert two.throughput["steps_timed"] == one.throughput["steps_timed"] == 11
    if order in BY_LENGTH:  # and then it is done
        output, _ = start(2, "estimator=full", order, *STEPS).communicate(timeout=240)
        assert output.count("skipped, completed before") == 1


@pytest.mark.slow
def test_a_run_that_is_told_to_end_goes_on_from_there(start, tmp_path):
    """All processes stop after the same step, and it ends as a run does that nobody stopped: from
    the second epoch on, whose order by length was drawn before."""
    chosen = ("estimator=wtacrs", "training.max_steps=30", "measure.memory=false", *BY_LENGTH)
    process, seen = start(2, *chosen, program=start.slow), ""
    for line in process.stdout:
        seen += line
        if line.startswith("step 11"):
            break
    workers = psutil.Process(process.pid).children(recursive=True)
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert only_record(tmp_path, 2, seen + rest).status == "interrupted"
    output, _ = start(2, *chosen, program=start.slow).communicate(timeout=240)
    assert (resumed := re.search(r"resuming from .*checkpoint-(\d+)", output)), output
    assert f"step {resumed[1]} " in output
    assert "step 11 " not in output
    resumed = only_record(tmp_path, 2, output)
    assert resumed.status == "completed"
    next((tmp_path / "runs").glob("*.json")).unlink()
    output, _ = start(2, *chosen).communicate(timeout=240)
    assert only_record(tmp_path, 2, output).metrics == resumed.metrics


@pytest.mark.slow
def test_a_sharded_run_is_that_of_whole_models_and_goes_on(start, tmp_path):
    """FSDP2 by accelerate launch, told to end and started again: losses and scores of DDP, to
    rounding, with half of the parameters and of their state in each process."""
    chosen = ("estimator=wtacrs", "memory=lean", "training.max_steps=12", "measure.warmup_steps=1")
    sharded = {"program": start.slow, "launcher": FSDP, "AS_ON_GPUS": "1"}
    output, _ = start(2, *chosen, **sharded, SIGTERM_AT="5").communicate(timeout=240)
    assert only_record(tmp_path, 2, output).status == "interrupted"
    output, _ = start(2, *chosen, **sharded).communicate(timeout=240)
    assert "/checkpoint-6\n" in output, output
    assert re.search("step 7 [1-9][0-9]* sharded", output)
    assert "step 5 " not in output
    two = only_record(tmp_path, 2, output)
    next((tmp_path / "runs").glob("*.json")).unlink()
    output, _ = start(2, *chosen).communicate(timeout=240)
    whole = only_record(tmp_path, 2, output)
    assert two.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=1e-4)
    assert two.metrics["best"] == pytest.approx(whole.metrics["best"], abs=0.01)
    for kind in ("parameter", "optimizer"):
        share = two.memory["at_peak"][kind] / whole.memory["at_peak"][kind]
        assert share == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_is_killed_leaves_no_hanging_run(rank, start, tmp_path, capsys):
    """And a record that says so, or the claim of the first process, which is to write it."""
    process = start(2, "training.max_steps=300", program=start.slow)
    for line in process.stdout:
        if line.startswith("step 3"):
            break
    workers = [
        worker
        for worker in psutil.Process(process.pid).children(recursive=True)
        if worker.environ().get("RANK") == rank
    ]
    workers[0].kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    if rank == "0":
        assert cli.main(["status", str(tmp_path / "runs")]) == 0
        assert "0 running, 0 failed, 0 out of memory, 1 interrupted" in capsys.readouterr().out
        return
    record = only_record(tmp_path, 2, output)
    assert record.status in ("failed", "interrupted")
    assert record.error["message"]
    assert not [*(tmp_path / "runs").glob("*.running")]


def test_processes_agree_on_what_to_run(start, tmp_path):
    other = {"OF_RANK": json.dumps({"1": ["seed=3"]})}
    process = start(2, program=start.slow, **other)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "the processes were given other values of seed; give one" in output
    assert not [*(tmp_path / "runs").glob("*.json")]
