"""Records and files of data as nobody should leave them: 180 and 41, the same each time."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from wtacrs_experiments.errors import UserError

RECORDS = 180
MARKUP = ("<script>alert(1)</script>", "a|b\n\n# c", "$\\frac{$", "[red]a[/]", "a\0b", "\ud800", "")
WRONG = (None, "text", [], {}, True, -1, 10**400, float("nan"), [None], {"a": {"b": 1}}, *MARKUP)
PLACES = (
    *("status", "config", "error", "metrics", "memory", "throughput", "sampling", "provenance"),
    *("config.task", "config.model", "config.tuning", "config.estimator", "config.memory"),
    *("config.task.name", "config.model.name", "config.tuning.name", "config.estimator.name"),
    *("config.memory.name", "config.estimator.center", "config.estimator.grad_norms"),
    *("config.budget", "config.seed", "config.training", "config.measure", "config.measure.alone"),
    *("config.task.metrics", "config.task.train_file", "config.task.source", "config.mode"),
    *("config.memory.lossless", "config.training.precision", "config.model.architecture"),
    *("metrics.main", "metrics.best", "metrics.last", "metrics.per_epoch", "metrics.held_out"),
    *("metrics.loss_curve", "metrics.train_loss", "metrics.best_epoch", "memory.peak_bytes"),
    *("memory.saved_bytes", "memory.at_peak", "memory.device", "memory.host_cache_bytes"),
    *("throughput.samples_per_second", "throughput.step_seconds", "error.message", "error.type"),
    *("provenance.git_commit", "provenance.git_dirty", "provenance.seconds"),
    *("provenance.packages", "variance", "variance.probes", "attribution"),
)


PLAN = (
    *("config", "config.tuning", "config.tuning.name", "config.budget", "provenance", "flops"),
    *(
        "memory",
        "memory.peak_bytes",
        "memory.saved_bytes",
        "memory.at_peak",
        "memory.at_peak.saved",
    ),
    *("peak_bytes_by_batch", "largest_batch", "provenance.git_commit"),
)


def damaged(
    good: dict[str, Any], places: Sequence[str] = PLACES, count: int = RECORDS
) -> Iterator[tuple[str, bytes]]:
    """What was done, and the file, of ``count`` records that were ``good``."""
    text = json.dumps(good)
    whole = text.encode()
    yield from _files(whole)
    draw = random.Random(0)
    for cut in sorted(draw.sample(range(2, len(whole) - 2), 12)):
        yield f"cut off at {cut}", whole[:cut]
    made = 12 + len([*_files(whole)])
    pairs = [(place, wrong) for place in places for wrong in ("nothing", *WRONG)]
    fixed = [pair for pair in pairs if pair[1] in MARKUP and pair[0].endswith(".name")]
    others = draw.sample([pair for pair in pairs if pair not in fixed], count - made - len(fixed))
    for place, wrong in [*fixed, *others]:
        yield f"{place} = {wrong!r}"[:60], json.dumps(_changed(good, place, wrong)).encode()


def _files(whole: bytes) -> Iterator[tuple[str, bytes]]:
    for text in (b"", b"null", b"[]", b"3", b'"a"', b"{}"):
        yield f"only {text!r}", text
    yield "NUL bytes", b"\0" * 512
    yield "a NUL in it", whole[:40] + b"\0" + whole[40:]
    yield "no UTF-8", whole[:40] + b"\xff\xfe" + whole[40:]
    yield "UTF-16", whole.decode().encode("utf-16")
    yield "a mark of order", b"\xef\xbb\xbf" + whole
    yield "twice", whole * 2
    yield "nested deep", b"[" * 100_000
    yield "nested deep, in a key", b'{"config": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001
    nested = b'"a": ' + b"[" * 900 + b"]" * 900 + b', "seed": '
    yield "nested in its config", whole.replace(b'"seed": ', nested, 1)
    yield "a number of 5,000 digits", whole.replace(b'"seed": 0', b'"seed": ' + b"9" * 5000, 1)
    yield "an unknown key", b'{"more": 1, ' + whole[1:]


def _changed(good: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    record = copy.deepcopy(good)
    *above, last = place.split(".")
    target: Any = record
    for key in above:
        if not isinstance(target.get(key), dict):
            target[key] = {}
        target = target[key]
    target.pop(last, None)
    if value != "nothing":
        target[last] = value
    return record


LONG = b"word " * 100_000
GLUE_ROW, CSV, LINE = (
    b"x\t1\tx\tsome words",
    b"text,label\n",
    b'{"prompt": "a", "completion": "b"}\n',
)
# Name of a file -> what it holds; each is what a task trains on.
FILES: list[tuple[str, bytes]] = [
    *(
        ("train.tsv", text)
        for text in (
            *(b"", b"\n", b"\n\n\n", b"\0" * 100, b"x\t1\tx\tso\0me\n", b"\xff\xfe" + GLUE_ROW),
            *(
                GLUE_ROW.decode().encode("utf-16"),
                b"\xef\xbb\xbf" + GLUE_ROW,
                GLUE_ROW + b"\nx\t1\tx",
            ),
            *(
                GLUE_ROW + b"\nx\t",
                b"x\t2\tx\ta\n",
                b"x\t\tx\ta\n",
                b"x\t1\tx\t\n",
                b"x\t1\n",
                b"<html>\n",
            ),
            *(GLUE_ROW.replace(b"\t", b","), b"x\t1\tx\t" + LONG + b"\n", (GLUE_ROW + b"\r") * 3),
        )
    ),
    *(
        ("train.csv", text)
        for text in (
            *(b"", CSV, CSV + b"a,1\n", CSV + b"a,1\n" * 4, CSV + b"a\n", CSV + b'"a,1\nb,2\n'),
            *(
                CSV + b"a,nan\nb,inf\n",
                CSV + b"a,1\nb,\n",
                b"text,text\na,b\n",
                b"words,label\na,1\n",
            ),
            *(CSV + b"\0,1\n\0,2\n", CSV + b"\xff,1\nb,2\n"),
        )
    ),
    *(
        ("train.jsonl", text)
        for text in (
            *(
                b"",
                b"{",
                b"[]\n",
                b"3\n",
                LINE + b'{"prompt": "a"',
                b'{"prompt": 1, "completion": 2}\n' * 2,
            ),
            *(
                b'{"prompt": "a", "completion": ""}\n' * 2,
                b"[" * 100_000,
                b'{"messages": [1]}\n' * 2,
            ),
        )
    ),
    *(("train.json", text) for text in (b'{"a": 1}', b'[{"text": "\\ud800"}, {"text": "b"}]')),
]


def assert_one_line(call: Callable[[], Any]) -> None:
    """It does what it does, or says in one line what is wrong."""
    try:
        call()
    except UserError as error:
        said = str(error)
    else:
        return
    assert "\n" not in said
    assert len(said) < 1000
