"""Checks all that is published: wtacrs audit, or make audit. Status 1 if anything fails.

Records: ``records.audit``. Reports: each table, figure (SVG) and generated block of a
page is built again from the records, into a temporary folder, and must be the same to the byte. A
line for each failure. --only reports checks these alone, --only records the others.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from wtacrs_experiments.config import ROOT
from wtacrs_experiments.errors import NoRecordError, UserError, one_line
from wtacrs_experiments.records.audit import Records
from wtacrs_experiments.reports.published import PAGES, PUBLISHED

BUILT = ("tables/*", "figures/*.svg")  # a PNG depends on the machine's rasteriser


def rebuilt(root: Path) -> Iterator[str]:
    """What differs from what the records of the repository at ``root`` give."""
    results = root / "results"
    with TemporaryDirectory() as temporary:
        again = Path(temporary)
        for page in PAGES:
            (again / page).parent.mkdir(exist_ok=True)
            shutil.copy(root / page, again / page)
        for name, build in PUBLISHED.items():
            try:
                with redirect_stdout(StringIO()):
                    build(results, again, again)
            except NoRecordError:
                pass  # so what is there of it is told below
            except UserError as error:
                yield f"{name} cannot be built: {error}"
        for page in PAGES:
            if (again / page).read_bytes() != (root / page).read_bytes():
                yield f"{page}: its tables are not those that the records give"
        old, new = (
            {path.relative_to(top) for pattern in BUILT for path in top.glob(pattern)}
            for top in (results, again)
        )
        for path in sorted(old | new):
            if path not in new:
                yield f"results/{path}: no record gives it"
            elif path not in old:
                yield f"results/{path}: missing, and the records give it"
            elif (results / path).read_bytes() != (again / path).read_bytes():
                yield f"results/{path}: not what the records give"


@one_line()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="wtacrs audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=("records", "reports"))
    only = parser.parse_args(arguments).only
    if not (ROOT / "results").is_dir():
        raise UserError(f"{ROOT} has no folder results: audit checks what a clone publishes")
    records, found = Records(ROOT), list[str]()
    if only != "reports":
        found += records.failures()
    if only != "records":
        found += rebuilt(ROOT)
    print(*found, sep="\n", end="\n" if found else "")
    if records.stale:
        print(f"{len(records.stale)} plans are of code that has changed: make table2 batches")
    if records.not_here:
        print(f"{len(records.not_here)} commits are not in this shallow clone: not checked")
    checked = "reports" if only == "reports" else f"{len(records.paths)} records"
    print(f"{checked} checked, {len(found)} failures")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
