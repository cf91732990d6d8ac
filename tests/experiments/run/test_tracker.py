"""What wandb is told of a run; that it is one run there too, resumed or not."""

import sys
from types import SimpleNamespace

import pytest

from wtacrs_experiments.config import as_record
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.run import tracker


@pytest.fixture
def wandb(monkeypatch):
    """Stands for the package, so that nothing is reached; ``calls`` has what init was given."""
    summary = {}
    fake = SimpleNamespace(calls=[], ended=[], Error=type("Error", (Exception,), {}))
    fake.run = SimpleNamespace(summary=summary)
    fake.init = lambda **given: fake.calls.append(given)
    fake.finish = lambda exit_code: fake.ended.append(exit_code)
    fake.__spec__ = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return fake


def test_wandb_shows_what_tells_runs_apart(wandb, make_config):
    tracker.start(make_config("logging=wandb", "estimator=pps", "memory=lean"), "a-run", False)
    (given,) = wandb.calls
    assert given["config"] == {
        **{"task": "digits", "model": "digits_tiny", "tuning": "full", "seed": 0},
        **{"estimator": "pps/lowrank", "preset": "lean", "budget": 0.3},
    }
    assert (given["project"], given["mode"], given["name"]) == ("wtacrs", "offline", "a-run")


def test_a_resumed_run_goes_on_in_its_own(wandb, make_config):
    config = make_config("logging=wandb")
    for name, resumes in (("a", False), ("a", True), ("b", False)):
        tracker.start(config, name, resumes)
    first, resumed, other = wandb.calls
    assert first["id"] == resumed["id"] != other["id"]
    assert [given["resume"] for given in wandb.calls] == [None, "allow", None]


def test_the_environment_has_the_last_word(wandb, make_config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    tracker.start(make_config("logging=wandb"), "a", False)
    assert (wandb.calls[0]["mode"], wandb.calls[0]["project"]) == ("disabled", "mine")


def test_wandb_that_cannot_be_reached_is_said_in_one_line(wandb, make_config):
    def refuse(**_):
        raise wandb.Error("no API key\nconfigured")

    wandb.init = refuse
    with pytest.raises(UserError, match=r"no API key configured; logging\.mode=offline needs"):
        tracker.start(make_config("logging=wandb"), "a", False)


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1)])
def test_wandb_has_the_peak_and_how_it_ended(status, code, wandb, make_config, make_record):
    record = make_record(status=status)
    record.config = as_record(make_config("logging=wandb"))
    tracker.finish(record)
    shown = {"status": status, "peak_bytes": 400, "saved_bytes": 200, "best": 0.5}
    assert shown.items() <= wandb.run.summary.items()
    assert wandb.ended == [code]


def test_without_wandb_nothing_is_asked_of_it(wandb, make_config, make_record):
    tracker.start(make_config(), "a", False)
    tracker.finish(make_record())
    assert (wandb.calls, wandb.ended) == ([], [])
