"""What the planner says would lower the peak does lower it, and what it says would not does not."""

import re

import pytest

from tests.experiments.plan.test_plan import BERT, one, printed
from wtacrs_experiments.plan.advice import advice, share_of_states
from wtacrs_experiments.plan.search import plan

SMALL = tuple(text for text in BERT if text not in ("batch_size=4", "max_length=32"))
STATES = (*SMALL, "batch_size=1", "max_length=4", "memory=plain")  # of which the peak is made
ACTIVATIONS = (*SMALL, "batch_size=64", "max_length=64", "memory=linear")


def test_where_states_are_the_peak_no_preset_helps_and_what_is_named_does():
    plain = plan(one(*STATES))
    told = advice([plain])
    assert share_of_states(plain) > 0.6
    assert told.startswith(
        f"parameters, gradients and optimizer state are {share_of_states(plain):.0%}"
    )
    assert "no preset or budget lowers them; tuning=lora or precision=bf16 does" in told
    for remedy in re.findall(r"\w+=\w+", told):
        assert plan(one(*STATES, remedy)).peak_bytes < 0.8 * plain.peak_bytes
    leanest = plan(one(*STATES[:-1], "memory=leanest"))
    assert leanest.peak_bytes == pytest.approx(plain.peak_bytes, rel=0.05)
    assert advice([plain, leanest]).startswith("parameters, gradients")


def test_what_is_done_already_is_not_named():
    low = plan(one(*STATES, "tuning=lora", "precision=bf16"))
    assert advice([low]).endswith("a smaller model does")
    assert advice([plan(one(*STATES, "precision=bf16"))]).endswith("; tuning=lora does")


def test_where_activations_are_the_peak_a_stronger_preset_helps():
    linear = plan(one(*ACTIVATIONS))
    told = advice([linear])
    assert told.startswith("saved activations are ")
    assert "memory=leanest or a smaller batch" in told
    leanest = plan(one(*ACTIVATIONS[:-1], "memory=leanest"))
    assert leanest.peak_bytes < linear.peak_bytes
    assert "memory=" not in advice([leanest])
    assert "of the highest peak" in advice([linear, leanest])


def test_it_stands_below_the_table(capsys):
    assert printed(capsys, *STATES).splitlines()[-1] == advice([plan(one(*STATES))])
