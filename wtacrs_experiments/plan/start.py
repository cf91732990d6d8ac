"""Runs that are planned, started: what a grid lacks is said once, what fails stops no other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

from wtacrs_experiments.config import RunConfig, as_record
from wtacrs_experiments.errors import UserError, first_line
from wtacrs_experiments.records.grid import Cell, is_done
from wtacrs_experiments.run.models import load_tokenizer
from wtacrs_experiments.run.tasks import check_source

Lacks = dict[str, str | None]  # what was asked for, as text -> what it lacks


def missing(config: RunConfig, known: Lacks) -> str | None:
    """What a cell needs and this machine has not, in one line; None if nothing is known to lack.

    Args:
        known: what was found before, so that the hub is asked once for each model and each task.
    """
    return _lacks(load_tokenizer, config.model, known) or _lacks(check_source, config.task, known)


def _lacks(check: Callable[[Any], Any], group: Any, known: Lacks) -> str | None:
    key = str(as_record(group))
    if key not in known:
        try:
            check(group)
            known[key] = None
        except UserError as error:
            known[key] = first_line(error)
        except Exception as error:  # a package that it needs, say
            known[key] = f"{group.name} cannot be loaded ({type(error).__name__}: {error})"
    return known[key]


def all_missing(of: Iterable[RunConfig]) -> list[str]:
    """What the cells need and this machine has not, each thing once."""
    known = Lacks()
    return [*dict.fromkeys(lack for one in of if (lack := missing(one, known)) is not None)]


def is_known_done(config: RunConfig) -> bool:
    """Whether a cell is done; one with a damaged record is not, of which its run tells."""
    try:
        return is_done(config)
    except UserError:
        return False


def start(cell: Cell) -> bool:
    """Carry out one cell in a process of its own, whose end ends no other; False if it failed.

    Ctrl-C reaches that process as well, which saves its state and ends: that is waited for.
    """
    run = subprocess.Popen([sys.executable, "-m", "wtacrs_experiments.main", *cell.overrides])
    try:
        return run.wait() == 0
    except KeyboardInterrupt:
        run.wait()
        raise


def run_all(of: dict[Cell, RunConfig]) -> dict[str, int]:
    """Start every cell that is not done, in order; how many were done, ran, failed, are under way
    in another process, lack something.

    What a cell lacks is told once, in one line, for all that lack the same.
    """
    counts = dict.fromkeys(("done", "completed", "failed", "under way", "lacking"), 0)
    told, known = set(), Lacks()
    for number, (cell, config) in enumerate(of.items(), start=1):
        if is_known_done(config):
            counts["done"] += 1
        elif (lack := missing(config, known)) is not None:
            counts["lacking"] += 1
            if lack not in told:
                print(f"missing: {lack}", flush=True)
            told.add(lack)
        else:
            print(f"{number}/{len(of)} {cell}", flush=True)
            if not start(cell):
                counts["failed"] += 1
                print(f"failed, the others go on: {cell}", flush=True)
            else:
                counts["completed" if is_known_done(config) else "under way"] += 1
    return counts
