"""Records of runs -> one static page: wtacrs report outputs/runs.

Plots of memory, time and score, tables to sort, filter and copy, curves of the loss, where each
cell comes from, and what failed. The page is one file that needs no network and no server. Of a
single record (a file that ends in .json) the short table is printed instead.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wtacrs_experiments.errors import one_line
from wtacrs_experiments.reports.page.folder import read_folder
from wtacrs_experiments.reports.page.render import render
from wtacrs_experiments.reports.runs import PROTOCOLS
from wtacrs_experiments.words import in_bytes


@one_line()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="wtacrs report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("records", type=Path, nargs="?", default=Path("outputs/runs"))
    parser.add_argument("--output", type=Path, help="default: outputs/reports/NAME.html")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper")
    options = parser.parse_args(arguments)
    name = f"{options.records.resolve().name}.html"
    output = options.output or Path("outputs/reports") / name
    page = render(read_folder(options.records, options.protocol))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    print(f"{output} ({in_bytes(output.stat().st_size)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
