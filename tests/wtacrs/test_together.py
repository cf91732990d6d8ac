"""Two processes that train one model: DDP and FSDP2, by gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    """Case -> what each of two processes found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*command, "-m", "tests.wtacrs.together"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("memory", ["full", "linear", "lean", "leanest"])
@pytest.mark.parametrize(("how", "kind"), [("ddp", "bert"), ("fsdp", "bert"), ("fsdp", "llama")])
def test_gradients_are_those_of_one_process(found, how, kind, memory):
    """To rounding where every row is kept, their norm and the losses of two steps too; under FSDP2
    the parameters are shards."""
    for one in found[f"exact {how} {kind} {memory}"]:
        assert one["error"] < 1e-5
        assert one["norm_error"] < 1e-5
        assert one["loss_error"] < 1e-6
        assert one["next_loss_error"] < 1e-5 < one["moved"]
        assert memory == "full" or one["sampled"] > 0
        assert (one["sharded"] > 0) == (how == "fsdp")


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_the_mean_gradient_is_unbiased(found, how):
    """|z| <= 4.5 of 400 estimates, false alarms 7 in a million; each process draws for itself."""
    first, second = found[f"unbiased {how}"]
    assert abs(first["z"]) <= 4.5
    assert first["z"] == second["z"]
    assert first["spread"] > 0
    assert first["other draws"]


def test_gradient_norms_reach_all(found):
    for one in found["history"]:
        assert one["seen"] == [[0, 1], [2, 3]]
        assert one["known"] == [0, 1, 2, 3]
        assert one["same"]
        assert one["kept"]
        assert one["means"]
