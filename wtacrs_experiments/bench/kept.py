"""The record of a bench: its numbers, a hash of the code that made them, where they come from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wtacrs_experiments.records.code import BENCHES, code_hash
from wtacrs_experiments.records.provenance import provenance
from wtacrs_experiments.records.store import write_json

OUTPUT = Path("outputs/bench")  # published ones are made by the Makefile, in results/bench


def keep(numbers: dict[str, Any], path: Path) -> None:
    """Write the record of ``numbers`` to ``path``."""
    write_json({**numbers, "code": code_hash(BENCHES), "provenance": provenance()}, path)


def overrides_and_output(description: str | None, arguments: list[str]) -> tuple[list[str], Path]:
    """What a bench that trains is given: overrides of run.py, and --output FOLDER."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="as for run.py, say task=sst2")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="a folder")
    options = parser.parse_intermixed_args(arguments)
    return options.overrides, options.output
