"""Every table, figure and README block of this repository, from its records, by one command.

    python -m experiments.reports.published            # all; or name some: ablation table2

Reads ``results/`` and writes ``results/tables``, ``results/figures`` and the blocks of README.md.
The same records give the same bytes (but for PNG), which ``wtacrs audit`` checks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from experiments.config import ROOT
from experiments.errors import UserError
from experiments.reports import decoders, figure8, figures, table2, tables

Build = Callable[[Path, Path, Path], None]  # results, where tables/ and figures/ go, the document


def ablation(results: Path, output: Path, document: Path) -> None:
    """The table and figure of scores against budget; the rows of CoLA are shown in README."""
    text = tables.write_tables(results / "ablation", output / "tables" / "ablation")
    tables.splice_task(document, results / "ablation", text, "cola", "ablation")
    figures.draw("ablation", results / "ablation", output)


def centred(results: Path, output: Path, document: Path) -> None:
    """The same of centred estimators."""
    tables.write_tables(results / "centred", output / "tables" / "centred")
    figures.draw("ablation", results / "centred", output)


def variance(results: Path, output: Path, document: Path) -> None:
    """The figures and tables of the error of dW."""
    figures.draw("variance", results / "variance", output)


def memory_table(results: Path, output: Path, document: Path) -> None:
    """Table 2, here and in README, and the figure of what the peak is made."""
    paper = results / "paper" / "table2.csv"
    table2.write(results / "plan", paper, output / "tables" / "table2", document)
    figures.draw("memory", results / "plan", output)


def decoder_table(results: Path, output: Path, document: Path) -> None:
    """A step of decoders of today, here and in README."""
    decoders.write(results / "plan", output / "tables" / "decoders", document)


def batches(results: Path, output: Path, document: Path) -> None:
    """The figure of the largest batches."""
    figures.draw("batches", results / "plan", output)


def table1(results: Path, output: Path, document: Path) -> None:
    """Table 1 at the scale of two cores, once there is a run of it."""
    if any((results / "table1").glob("*.json")):
        tables.write_tables(results / "table1", output / "tables" / "table1")


def throughput(results: Path, output: Path, document: Path) -> None:
    """Figure 8 and its table, once a model of it is measured."""
    if any((results / "bench").glob("figure8-*.json")):
        paper = results / "paper" / "figure8_throughput.csv"
        figure8.write(results / "bench", paper, output)


PUBLISHED: dict[str, Build] = {
    **{"ablation": ablation, "centred": centred, "variance": variance},
    **{"table1": table1, "table2": memory_table, "batches": batches, "figure8": throughput},
    "decoders": decoder_table,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reports.published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", choices=[*PUBLISHED, []], help="default: all")
    options = parser.parse_args(arguments)
    results = ROOT / "results"
    try:
        for name in options.names or PUBLISHED:
            PUBLISHED[name](results, results, ROOT / "README.md")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
