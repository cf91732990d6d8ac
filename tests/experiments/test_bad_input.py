"""Wrong arguments, from a table: each is one line that says what is wrong, before torch is loaded.

And those that only the model or the data can tell, one each, as a user meets them.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wtacrs_experiments.config import ROOT, RunConfig, compose
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.plan.__main__ import main as plan
from wtacrs_experiments.plan.grid import settings
from wtacrs_experiments.run.runner import RunError, run


def rows(name):
    """(arguments, part of the message) of each row of a table."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    split = [line.split(" → ") for line in lines if not line.startswith("#")]
    return [(re.split(r" (?=~|[+@/.\w]+=)", arguments), message) for arguments, message in split]


RUN, PLAN = rows("bad_input.txt"), rows("bad_plan_input.txt")


@pytest.fixture(autouse=True)
def _no_such_variable(monkeypatch):
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)


def refused(make, arguments, message):
    with pytest.raises(UserError) as caught:
        make(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("arguments", "message"), RUN, ids=str)
def test_run(arguments, message):
    refused(lambda given: compose(RunConfig, given), arguments, message)


@pytest.mark.parametrize(("arguments", "message"), PLAN, ids=str)
def test_plan(arguments, message):
    refused(settings, arguments, message)


def test_there_are_many_and_no_two_alike():
    assert len({tuple(arguments) for arguments, _ in RUN}) == len(RUN) > 250
    assert len({tuple(arguments) for arguments, _ in PLAN}) == len(PLAN) > 50


def python(*command, **environment):
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
    )


@pytest.fixture(scope="module")
def seconds_to_load():
    """What this machine takes to load what a run needs."""
    program = "import time, torch, transformers, datasets, accelerate; print(time.process_time())"
    return float(python("-c", program).stdout)


COMMAND = """
import json, sys, time
started = time.process_time()
import run
sys.argv = ["run.py", *{arguments!r}]
try:
    status = run.main()
except SystemExit as done:
    status = done.code
loaded = [name for name in ("torch", "transformers", "numpy", "datasets") if name in sys.modules]
print(json.dumps([status, loaded, time.process_time() - started]))
"""


@pytest.mark.parametrize(
    ("status", "arguments"),
    [
        (1, ["overwrite=maybe"]),
        (1, ["model=minlim"]),
        (1, ["+foo=1"]),
        (1, ["-m", "budget=2,3"]),
        (1, ["mode=pln"]),
        (1, ["mode=measure", "measure=variance"]),
        (2, ["mode=plan", "batch_size=1e12"]),
        (2, ["mode=plan", "memory=lean,leaner"]),
    ],
    ids=str,
)
def test_command_refuses_without_torch_and_before_it_would_be_there(
    status, arguments, seconds_to_load, tmp_path
):
    done = python("-c", COMMAND.format(arguments=[*arguments, *hydra(tmp_path, arguments)]))
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    found, loaded, seconds = json.loads(done.stdout.splitlines()[-1])
    assert (found, loaded) == (status, [])
    assert seconds < seconds_to_load / 1.5  # of this process, whatever else the machine does


def hydra(tmp_path, arguments):
    """Hydra's own files go elsewhere."""
    if "mode=plan" in arguments:
        return []
    return [f"hydra.{mode}.dir={tmp_path}" for mode in ("run", "sweep")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.config.hidden_siz=32"], "hidden_siz is no size of a bert; did you mean hidden_si"),
        (["model.config.hidden_size=65"], "these sizes make no model"),
        (["model.config.hidden_size=-4"], "these sizes make no model"),
        (["model.config.hidden_size=big"], "these sizes make no model"),
        (["model.config.num_hidden_layers=two"], "these sizes make no model"),
        (["model.path=brt"], "'brt' is no type of model that transformers knows; did you mean"),
        (["tuning=lora", "tuning.rank=100000"], "tuning.rank=100000 is above 64"),
        (["estimator.include=[nothing*]"], "no linear layer matches"),
        (["plugins=[no_such]"], "module 'no_such' cannot be imported"),
    ],
    ids=str,
)
def test_what_the_model_tells(arguments, message, tmp_path, capsys):
    tiny = ("model=digits_tiny", "task=digits", f"results_dir={tmp_path}", "training.max_steps=1")
    with pytest.raises(RunError) as caught:
        run(compose(RunConfig, [*tiny, *arguments]))
    assert message in str(caught.value).splitlines()[0]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.architecture.num_attention_heads=7"], "these sizes make no model"),
        (["model.architecture.hidden_size=0"], "these sizes make no model"),
        (["model.architecture.model_type=brt"], "no type of model that transformers knows"),
        (["model.architecture.layers=3"], "layers is no size of a bert"),
        (["model.architecture=null"], "model=bert_base has no sizes"),
        (["max_length=513"], "513 is more than the 512 positions"),
        (["tuning=lora", "tuning.rank=100000"], "tuning.rank=100000 is above 768"),
        (["model=t5_small", "batch_size=1048576", "max_length=1048576"], "cannot be planned"),
    ],
    ids=str,
)
def test_what_a_plan_cannot_make(arguments, message, capsys):
    assert plan(["device=cpu", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
