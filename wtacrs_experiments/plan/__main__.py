"""What a training step will take: python run.py mode=plan model=t5_3b memory=lean fits=24GiB.

No weights, no GPU and no data: the step is rehearsed on fake tensors. Groups and numbers are those
of conf/plan.yaml. Values with commas make a grid, a row each: memory=plain,lean budget=0.1,0.3.
The cost of a step is its floating-point operations in matrix products over those of the plain step:
full tuning, nothing sampled, nothing saved. fits=24GiB searches for the largest batch. output=json
prints one object, or an array for a grid. Not counted: scratch memory inside a kernel, the rounding
of CUDA's allocator, and the CUDA context, about half a GiB.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from wtacrs_experiments.config.arguments import add_folders
from wtacrs_experiments.errors import one_line
from wtacrs_experiments.plan.advice import advice
from wtacrs_experiments.plan.grid import settings
from wtacrs_experiments.words import AT_PEAK, in_bytes

if TYPE_CHECKING:
    from wtacrs_experiments.plan.search import Plan


def one_table(result: Plan) -> Table:
    """The peak of one setting, what it is made of, and what a step costs."""
    table = Table("", "bytes", "share")
    table.add_row("peak", in_bytes(result.peak_bytes), "100.0%", end_section=True)
    for name, text in AT_PEAK.items():
        count = result.at_peak[name]
        table.add_row(f"{text}, at the peak", in_bytes(count), f"{count / result.peak_bytes:.1%}")
    table.add_section()
    table.add_row("gradients, all", in_bytes(result.gradient_bytes))
    table.add_row("saved when the forward pass ends", in_bytes(result.saved_bytes))
    table.add_row("operations, of the plain step's", f"{result.relative_flops:.2f}×")
    if result.max_batch_size is not None:
        table.add_row(f"largest batch in {result.config['fits']}", str(result.max_batch_size))
        for size, peak in (result.peak_bytes_around or {}).items():
            fits = "fits" if size == result.max_batch_size else "does not"
            table.add_row(f"  a step at {size}, which {fits}", in_bytes(peak))
    return table


def grid_table(results: dict[str, Plan]) -> Table:
    """A row for each point of a grid; the parts are those at the peak."""
    searched = any(result.max_batch_size is not None for result in results.values())
    columns = ["", "peak", *AT_PEAK.values(), "operations", *(["largest batch"] * searched)]
    table = Table(*columns)
    for label, result in results.items():
        parts = [in_bytes(result.at_peak[name]) for name in AT_PEAK]
        row = [label, in_bytes(result.peak_bytes), *parts, f"{result.relative_flops:.2f}×"]
        table.add_row(*row, *([str(result.max_batch_size)] * searched))
    return table


def show(results: dict[str, Plan], is_grid: bool) -> None:
    """Print the result as the config asks."""
    config = next(iter(results.values())).config
    if config["output"] == "json":
        plans = [asdict(result) for result in results.values()]
        print(json.dumps(plans if is_grid else plans[0], indent=2))
        return
    table = grid_table(results) if is_grid else one_table(*results.values())
    print(
        f"{config['model']['name']} · {config['tuning']['name']} · {config['estimator']['name']}"
        f"@{config['budget']:g} · memory {config['memory']['name']} · batch {config['batch_size']} "
        f"× {config['max_length']} tokens · {config['precision']} · {config['device']}"
        if not is_grid
        else "Each row differs from the defaults and the values given once by what it says."
    )
    Console(width=None if sys.stdout.isatty() else 180).print(table)
    print(advice([*results.values()]))


@one_line(failed=2)
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m wtacrs_experiments.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="a grid, even of one point")
    add_folders(parser)
    parser.add_argument("overrides", nargs="*", help="model=t5_base memory=lean budget=0.3 ...")
    options = parser.parse_intermixed_args(arguments)
    results = {}
    with redirect_stdout(sys.stderr):  # what is printed on the way is none of the result
        points = settings(options.overrides, options.config_dir)
        from wtacrs_experiments.plan.search import plan  # not before: it loads torch

        is_grid = options.multirun or "" not in points
        for number, (label, config) in enumerate(points.items(), start=1):
            if is_grid:
                print(f"{number}/{len(points)} {label}")
            results[label] = plan(config, may_not_fit=is_grid)
    show(results, is_grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
