"""Samples a second against batch size until memory ends, as Figure 8 of the paper shows it.

python -m wtacrs_experiments.bench.figure8 model=bert_base --limit 8GiB. Values are those of
conf/plan.yaml (precision=bf16-autocast, say), weights are random. For each method the batch grows,
1, 2, 4, ..., to the largest that the planner says fits the limit (on CUDA: what the reference
leaves of the card, and where memory ends before, the point is null). Each step is paired,
alternating, with one reference that stays the same for every model: a full step of BERT-Base on 128
tokens at a small batch. So a point is a ratio of samples a second, whatever else the machine does.
The record is outputs/bench/figure8-<model>.json, or below --output; it is written after each
method, and the same command goes on where it stopped.
``wtacrs_experiments.reports.figure8`` draws it beside the paper's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from wtacrs_experiments.bench.__main__ import training_step
from wtacrs_experiments.bench.kept import OUTPUT, keep
from wtacrs_experiments.bench.timing import paired, summary
from wtacrs_experiments.config import PlanConfig, compose
from wtacrs_experiments.config.roots import parse_bytes
from wtacrs_experiments.config.rules import check_range
from wtacrs_experiments.errors import UserError, one_line
from wtacrs_experiments.plan.rehearsal import Rehearsal
from wtacrs_experiments.plan.search import largest_batch
from wtacrs_experiments.records.code import BENCHES, code_hash
from wtacrs_experiments.records.provenance import provenance
from wtacrs_experiments.records.shape import parse
from wtacrs_experiments.run.bf16 import products
from wtacrs_experiments.run.memory import save_memory
from wtacrs_experiments.run.models import new_model
from wtacrs_experiments.run.tuning import tune

FULL = "full"
METHODS = {  # WTA-CRS is all that the authors' code does: sampled attention, norms, masks
    FULL: ("estimator=full", "memory=plain"),
    "checkpoint": ("estimator=full", "memory=checkpoint"),
    "WTA-CRS@0.3": ("estimator=wtacrs", "memory=paper", "budget=0.3"),
    "WTA-CRS@0.1": ("estimator=wtacrs", "memory=paper", "budget=0.1"),
    "leanest@0.3": ("estimator=pps", "memory=leanest", "budget=0.3"),
}
REFERENCE = ("model=bert_base", "max_length=128")
MACHINE = ("packages", "device_name", "cpu", "threads")  # of provenance
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def setting(overrides: Sequence[str], method: str) -> PlanConfig:
    """The checked config of a method.

    Raises:
        UserError: ``overrides`` that are wrong, or of what the method sets itself.
    """
    for text in overrides:
        key = text.lstrip("+~").split("=")[0]
        if key.split(".")[0] in ("estimator", "memory", "budget"):
            methods = ", ".join(METHODS)
            raise UserError(f"{text}: Figure 8 sets {key} itself, for each of {methods}; leave it")
    return compose(PlanConfig, [*overrides, f"device={DEVICE}", *METHODS[method]])


def sizes(largest: int) -> list[int]:
    """The batches to measure: powers of two, and the largest."""
    return [b for i in range(largest.bit_length()) if (b := 2**i) < largest] + [largest]


def stepper(config: PlanConfig, largest: int) -> Callable[[int], Callable[[], None]]:
    """Batch size -> a training step of one model, as ``config`` describes it."""
    torch.manual_seed(0)
    model = new_model(config.model).to(DEVICE).train()
    tune(model, config.tuning)
    if config.precision == "bf16":
        model.bfloat16()
    autocast = config.precision == "bf16-autocast"
    handle = save_memory(model, config, largest, config.max_length)
    sampled = handle if handle.sampler is not None else None
    return lambda b: training_step(model, b, sampled, config.max_length, autocast)


def curve(
    config: PlanConfig, limit: int, reference: Callable[[], None], b: int, pairs: int
) -> dict[str, Any]:
    """Points of one method: batch_size, and relative samples a second, null where memory ended.

    Args:
        config: of the method.
        limit: bytes that the planned peak may take.
        reference: a step on ``b`` samples that stays the same.
        pairs: measured at each batch size.

    Raises:
        UserError: not even a batch of 1 fits.
    """
    largest = largest_batch(Rehearsal(config).peak_bytes, limit, b)
    if largest == 0:
        raise UserError(f"the limit of {limit} bytes is too little for a batch of 1")
    step_of, points = stepper(config, largest), []
    with products(config):
        for size in sizes(largest):
            try:
                work = paired(reference, step_of(size), pairs)  # seconds of it over seconds of ours
                relative = summary([ratio * size / b for ratio in work])
            except torch.OutOfMemoryError:
                relative = None
            points.append({"batch_size": size, "relative_samples_per_second": relative})
            print(f"batch {size}: {relative and round(relative['median'], 3)} of the reference")
    return {"largest_batch": largest, "points": points}


def measure(
    overrides: Sequence[str], limit: int, b: int, pairs: int, folder: Path, overwrite: bool = False
) -> Path:
    """Every method of one model, against the reference at batch ``b``; kept as they come.

    Args:
        folder: of the record, whose path is given back.
        overwrite: what is in it is measured again, too.
    """
    config = setting(overrides, FULL)
    path = folder / f"figure8-{config.model.name}.json"
    of = {
        "bench": "figure8",
        "model": config.model.name,
        "overrides": [*overrides],
        "max_length": config.max_length,
        "precision": config.precision,
        "limit_bytes": limit,
        "reference": [*REFERENCE],
        "reference_batch_size": b,
        "pairs": pairs,
    }
    methods = {} if overwrite else measured_before(of, path)
    left = [method for method in METHODS if method not in methods]
    if not left:
        return path
    same = f"precision={config.precision}"
    reference = stepper(setting([*REFERENCE, same], FULL), b)(b)
    for method in left:
        print(method)
        methods[method] = curve(setting(overrides, method), room(limit), reference, b, pairs)
        keep({**of, "methods": methods}, path)
    return path


def room(limit: int) -> int:
    """Of ``limit`` bytes what a method may take: on CUDA, where both are on one card, no more than
    the reference leaves."""
    if DEVICE == "cpu":
        return limit
    card = torch.cuda.get_device_properties(0).total_memory
    return min(limit, card - torch.cuda.memory_allocated())


def measured_before(of: dict[str, Any], path: Path) -> dict[str, Any]:
    """The methods in the record at ``path``; none unless all else is as it would be now."""
    try:
        record = parse(path.read_text(encoding="utf-8"))
        now, then = provenance(), record["provenance"]
        same = all(then[key] == now[key] for key in MACHINE)
        same &= record["code"] == code_hash(BENCHES) and {**record, **of} == record
        methods: dict[str, Any] = record["methods"] if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return methods


@one_line(interrupted="interrupted; the same command goes on")
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m wtacrs_experiments.bench.figure8",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="+", help="model=bert_base max_length=128 ...")
    parser.add_argument("--limit", help="memory, 8GiB say; default: 8GiB, or all of the card")
    parser.add_argument("--reference", type=int, default=4, help="batch size of the reference step")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--overwrite", action="store_true", help="measure all methods again")
    options = parser.parse_intermixed_args(arguments)
    if options.limit is None and DEVICE == "cuda":
        limit = torch.cuda.get_device_properties(0).total_memory
    else:
        limit = parse_bytes(options.limit or "8GiB", "--limit ")
    check_range("--pairs", options.pairs, 1)
    check_range("--reference", options.reference, 1)
    given = options.overrides, limit, options.reference, options.pairs, options.output
    print(measure(*given, options.overwrite))
    return 0


if __name__ == "__main__":
    sys.exit(main())
