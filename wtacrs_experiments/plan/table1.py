"""The paper's Table 1, job by job: python -m wtacrs_experiments.plan.table1 laptop, or paper.

laptop: what two cores can do, mpnet_base on four tasks. paper: the jobs of arXiv 2305.15265, with
the planned peak of a step and, for a rate that you give, say --tflops 60, the hours of a run: its
training steps × the operations of their matrix products on rows of 128 tokens, evaluation left
out. --only t5_base rte takes the runs of these words alone. --run carries out what has no completed
record; a cell that fails does not stop the others. Without it laptop lists what is to go.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from wtacrs_experiments.config.rules import check_choice, check_range
from wtacrs_experiments.errors import UserError, one_line
from wtacrs_experiments.plan.kept import Record, planned_step
from wtacrs_experiments.plan.start import all_missing, is_known_done, run_all
from wtacrs_experiments.records.grid import Cell, cells, configs, load_grid
from wtacrs_experiments.words import GIB, MISSING

GROUPS = ("model=", "tuning", "estimator", "memory", "budget")  # of a run, that a plan has too
OF_STEP = tuple(
    f"training.{key}=" for key in ("batch_size", "gradient_accumulation_steps", "optimizer")
)
SIZE = ("max_length=128", "target_length=2", "precision=fp32", "device=cuda")


def planned(cell: Cell, folder: Path) -> Record | str:
    """The plan of one training step of a cell, kept in ``folder``; or why there is none."""
    own = [text for text in cell.overrides if text.startswith(GROUPS)]
    own += [text.removeprefix("training.") for text in cell.overrides if text.startswith(OF_STEP)]
    try:
        return planned_step((*own, *SIZE), folder)
    except UserError as error:
        return str(error)


def plans(of: list[Cell], folder: Path) -> dict[tuple[str, str, str], Record | str]:
    """The plan for each model, method and task."""
    return {(c.model, c.method, c.task): planned(c, folder) for c in of}


def hours(plan: Record | str, steps: int, tflops: float | None) -> float | None:
    """Hours of a run at ``tflops`` 10^12 operations a second; None where something is unknown."""
    if isinstance(plan, str) or tflops is None:
        return None
    return float(plan["flops"]) * steps / (tflops * 1e12) / 3600


def cost_table(of: list[Cell], found: Mapping[Any, Record | str], tflops: float | None) -> Table:
    """A row a model and method: the largest planned peak, hours of a run a task, hours of all."""
    tasks, seeds = [*dict.fromkeys(cell.task for cell in of)], len({cell.seed for cell in of})
    table = Table("model", "method", "jobs", "peak GiB", *(f"{task} h" for task in tasks), "all h")
    for model, method in dict.fromkeys((cell.model, cell.method) for cell in of):
        mine = {c.task: c for c in of if (c.model, c.method) == (model, method)}
        steps = {task: cell.steps or 0 for task, cell in mine.items()}
        each = [hours(found[model, method, task], steps[task], tflops) for task in mine]
        known = [p for task in mine if not isinstance(p := found[model, method, task], str)]
        peak = max((plan["memory"]["peak_bytes"] / GIB for plan in known), default=None)
        total = None if None in each else seeds * sum(h for h in each if h is not None)
        numbers = [_shown(value) for value in (peak, *each, total)]
        table.add_row(model, method, str(seeds * len(mine)), *numbers)
    return table


def _shown(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def show_costs(of: list[Cell], folder: Path, tflops: float | None) -> None:
    """Print the planned cost of every job; planning is done once, and takes minutes then."""
    with redirect_stdout(sys.stderr):
        found = plans(of, folder)
    Console(width=None if sys.stdout.isatty() else 200).print(cost_table(of, found, tflops))
    for reason in dict.fromkeys(plan for plan in found.values() if isinstance(plan, str)):
        print(f"not planned: {reason}")
    if tflops is None:
        print("hours need a rate: --tflops 60, say, for what your GPU reaches in fp32 products")


def chosen(of: list[Cell], words: Sequence[str]) -> list[Cell]:
    """The cells of which every word is the model, the method, the task or the seed.

    Raises:
        UserError: a word is of no cell, or none has them all.
    """
    named = {cell: {cell.model, cell.method, cell.task, str(cell.seed)} for cell in of}
    known = set[str]().union(*named.values())
    for word in words:
        check_choice("--only", word, sorted(known))
    if not (found := [cell for cell in of if named[cell].issuperset(words)]):
        raise UserError(f"--only {' '.join(words)}: no run is of all of these")
    return found


@one_line(interrupted="interrupted; the same command goes on")
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m wtacrs_experiments.plan.table1",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scale", choices=["laptop", "paper"])
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="see above")
    parser.add_argument("--run", action="store_true", help="carry out what is not done")
    parser.add_argument("--tflops", type=float, help="10^12 operations a second, for the hours")
    parser.add_argument("--results", type=Path, help="folder of the records; default: in outputs")
    parser.add_argument("--plans", type=Path, default=Path("outputs/plan"))
    options = parser.parse_args(arguments)
    if options.tflops is not None:
        check_range("--tflops", options.tflops, above=0)
    if options.results is not None and options.results.is_file():
        raise UserError(f"--results {options.results} is a file; give a folder")
    grid = load_grid(f"table1_{options.scale}", options.results)
    of = chosen(cells(grid), options.only)
    if "rows" in grid:
        show_costs(of, options.plans, options.tflops)
    elif options.tflops is not None:
        raise UserError("--tflops: hours are planned at the scale paper alone; leave it out")
    with redirect_stdout(sys.stderr):
        found = configs(of)
    _count(found, names="rows" not in grid and not options.run)
    if options.run and grid.get("needs_gpu") and not torch.cuda.is_available():
        lacks = ["a CUDA device, which these runs need", *all_missing(found.values())]
        print(*(f"missing: {lack}" for lack in lacks), "none was started", sep="\n")
        return 1
    if not options.run:
        return 0
    counts = run_all(found)
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    _count(found)
    return int(bool(counts["failed"] or counts["lacking"]))


def _count(found: dict[Cell, Any], names: bool = False) -> None:
    left = [str(cell) for cell, config in found.items() if not is_known_done(config)]
    counted = f"{len(found)} runs: {len(found) - len(left)} done, {len(left)} to go"
    print("\n".join([counted, *(left if names else [])]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
