"""Every table, figure and generated block of a page, from the records, by one command.

    python -m wtacrs_experiments.reports.published            # all; or name some: ablation table2

Reads ``results/`` and writes ``results/tables``, ``results/figures`` and the blocks of ``PAGES``.
The same records give the same bytes (but for PNG), which ``wtacrs audit`` checks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from wtacrs_experiments.config import ROOT
from wtacrs_experiments.errors import NoRecordError, one_line
from wtacrs_experiments.reports import decoders, figure8, figures, learning_rate, table2, tables
from wtacrs_experiments.reports import table1 as by_task
from wtacrs_experiments.reports import why as picture
from wtacrs_experiments.reports.paper import TABLE2

README, RESULTS = "README.md", "docs/results.md"
PAGES = (README, RESULTS)  # which hold generated blocks

# results, where tables/ and figures/ go, the root below which PAGES lie
Build = Callable[[Path, Path, Path], None]


def why(results: Path, output: Path, root: Path) -> None:
    """The picture of README, and the table of the scores in it."""
    picture.write(results, output, root / README)


def ablation(results: Path, output: Path, root: Path) -> None:
    """The table and figure of scores against budget; the rows of CoLA on a page."""
    text = tables.write_tables(results / "ablation", output / "tables" / "ablation")
    tables.splice_task(root / RESULTS, results / "ablation", text, "cola", "ablation")
    figures.draw("ablation", results / "ablation", output)


def centred(results: Path, output: Path, root: Path) -> None:
    """The same of centred estimators."""
    tables.write_tables(results / "centred", output / "tables" / "centred")
    figures.draw("ablation", results / "centred", output)


def variance(results: Path, output: Path, root: Path) -> None:
    """The figures and tables of the error of dW."""
    figures.draw("variance", results / "variance", output)


def memory_table(results: Path, output: Path, root: Path) -> None:
    """Table 2, on a page too, and the figure of what the peak is made."""
    table2.write(results / "plan", TABLE2, output / "tables" / "table2", root / RESULTS)
    figures.draw("memory", results / "plan", output)


def decoder_table(results: Path, output: Path, root: Path) -> None:
    """A step of decoders of today, here and in README."""
    decoders.write(results / "plan", output / "tables" / "decoders", root / README)


def batches(results: Path, output: Path, root: Path) -> None:
    """The figure of the largest batches."""
    figures.draw("batches", results / "plan", output)


def table1(results: Path, output: Path, root: Path) -> None:
    """Table 1 at the scale of two cores, on a page too, and its rows with their memory."""
    tables.write_tables(results / "table1", output / "tables" / "table1")
    by_task.write(results / "table1", output / "tables" / "table1_by_task", root / RESULTS)


def rates(results: Path, output: Path, root: Path) -> None:
    """The learning rate of Table 1 beside others, on a page too."""
    table = output / "tables" / "learning_rate"
    learning_rate.write(results / "learning_rate", results / "table1", table, root / RESULTS)


def throughput(results: Path, output: Path, root: Path) -> None:
    """Figure 8 and its table."""
    figure8.write(results / "bench", figure8.THROUGHPUT, output)


PUBLISHED: dict[str, Build] = {
    **{"ablation": ablation, "centred": centred, "variance": variance},
    **{"table1": table1, "table2": memory_table, "batches": batches, "figure8": throughput},
    **{"learning-rate": rates, "decoders": decoder_table, "why": why},
}


@one_line()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m wtacrs_experiments.reports.published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", choices=[*PUBLISHED, []], help="default: all")
    options = parser.parse_args(arguments)
    results = ROOT / "results"
    for name in options.names or PUBLISHED:
        try:
            PUBLISHED[name](results, results, ROOT)
        except NoRecordError as error:
            if options.names:
                raise
            print(f"{name}: not yet; {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
