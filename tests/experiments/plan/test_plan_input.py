"""What a plan is given: units, and one message for anything that is wrong."""

import json

import pytest

from experiments.config.roots import parse_bytes
from experiments.plan import __main__ as command
from tests.experiments.plan.test_plan import BERT, printed


def test_units():
    assert parse_bytes("24GiB") == 24 * 2**30
    assert parse_bytes("1.5 MiB") == 3 * 2**19
    assert parse_bytes("80GB") == 80 * 10**9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("memory=leaner",), ": checkpoint checkpoint_offload lean leanest linear paper plain"),
        (("model=gpt",), "t5_base"),
        (("memory.attention=flash",), "attention='flash' is unknown"),
        (("memory=lean", "memory.recompute=blocks"), "memory=lean: recompute='blocks' is unknown"),
        (("memory=checkpoint_offload",), "cannot be planned"),
        (("memory=paper", "estimator=full"), "needs a sampling estimator"),
        (("estimator=wtacrs", "budget=1.5"), "budget=1.5"),
        (("budget=all",), "budget='all'"),
        (("fits=24Gib",), "MiB, GiB, TiB, MB, GB, TB"),
        (("fits=24",), "fits=24GiB"),
        (("fits=0GiB",), "above 0"),
        (("fits=1MiB",), "The smallest that would do is fits="),
        (("batch_size=0",), "batch_size=0 must be an integer >= 1"),
        (("batch_size=1.5",), "batch_size=1.5"),
        (("batchsize=3",), "batchsize"),
        (("precision=fp8",), "fp32 or bf16"),
        (("device=tpu",), "cuda or cpu"),
        (("output=csv",), "table or json"),
        (("max_length=65",), "64 positions"),
        (("memory=lean,",), "mismatched input"),
        (("tuning=lora", "tuning.rank=0"), "tuning.rank=0"),
    ],
    ids=str,
)
def test_bad_input_is_one_message(capsys, overrides, message):
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
