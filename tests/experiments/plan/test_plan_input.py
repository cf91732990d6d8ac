"""What a plan is given: units, and one message for anything that is wrong."""

import json

import pytest

from tests.experiments.plan.test_plan import BERT, printed
from wtacrs_experiments.config.roots import parse_bytes
from wtacrs_experiments.plan import __main__ as command


def test_units():
    assert parse_bytes("24GiB") == 24 * 2**30
    assert parse_bytes("1.5 MiB") == 3 * 2**19
    assert parse_bytes("80GB") == 80 * 10**9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("memory=leaner",), "did you mean lean?"),
        (("batch_size=1.5",), "batch_size=1.5 must be an integer"),
        (("fits=1MiB",), "The smallest that would do is fits="),
        (("max_length=65",), "64 positions"),
    ],
    ids=str,
)
def test_bad_input_is_one_message(capsys, overrides, message):
    """Where it is found before planning and where by it; the others: tests/.../test_bad_input."""
    base = [text for text in BERT if text.split("=")[0] not in [o.split("=")[0] for o in overrides]]
    assert command.main([*base, *overrides]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in error


def test_the_smallest_that_would_do_does(capsys):
    assert command.main([*BERT, "memory=plain", "fits=1MiB"]) == 2
    smallest = capsys.readouterr().err.split("fits=")[-1].strip()
    result = json.loads(printed(capsys, *BERT, "memory=plain", f"fits={smallest}", "output=json"))
    assert result["max_batch_size"] >= 1
