"""What a page is made of: the runs of a folder, their table, and the files that are no runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import STATUSES, RecordError, RunRecord
from wtacrs_experiments.reports.runs import SETTING, aggregate, no_record, read_run, sorted_frame
from wtacrs_experiments.reports.tables import display, note
from wtacrs_experiments.words import MISSING


@dataclass(frozen=True)
class Folder:
    """The readable runs, by the name of their file, and why the other files are none."""

    path: Path
    protocol: str
    records: dict[str, RunRecord]
    runs: pd.DataFrame  # as wtacrs_experiments.reports.runs.load_runs gives it
    foreign: dict[str, str]

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a setting, over its seeds."""
        return aggregate(self.runs)

    @cached_property
    def text(self) -> pd.DataFrame:
        """The same rows as text cells."""
        return display(self.table, self.protocol)

    @cached_property
    def members(self) -> list[list[str]]:
        """For each row of the table, the records behind it."""
        behind: dict[Hashable, list[str]] = {}
        for row in self.runs.to_dict("records"):
            behind.setdefault(_key(row), []).append(row["record"])
        return [behind[_key(row)] for row in self.table.to_dict("records")]

    @property
    def note(self) -> str:
        """Whether the runs mix commits."""
        return note(self.runs).strip()

    @property
    def counts(self) -> list[tuple[str, int]]:
        """How many runs ended how, in words."""
        counted = Counter(record.status for record in self.records.values())
        return [(name.replace("_", " "), counted[name]) for name in STATUSES if counted[name]]


def read_folder(path: Path, protocol: str = "paper") -> Folder:
    """Read what can be read.

    Raises:
        UserError: the folder is missing or holds no record of a run.
    """
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give the results_dir of a sweep")
    records, rows, foreign = {}, [], {}
    for file in sorted(path.glob("*.json")):
        try:
            records[file.stem], row = read_run(file, protocol)
            rows.append(row)
        except RecordError as error:
            foreign[file.name] = str(error)
    if not rows and foreign:
        raise UserError(
            f"{path} holds {len(foreign)} file{'s' * (len(foreign) > 1)} of JSON and no record "
            f"of a run; "
            f"the first: {next(iter(foreign.values()))}"
        )
    if not rows:
        raise no_record(path)
    return Folder(path, protocol, records, sorted_frame(rows), foreign)


def _key(row: dict[Hashable, Any]) -> Hashable:
    """What tells a setting from others; a missing value is like another, which NaN is not."""
    return tuple(MISSING if pd.isna(row[name]) else row[name] for name in SETTING)
