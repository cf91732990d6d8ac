"""The page's tables: text cells, the numbers they sort by, and what is copied of each row."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from wtacrs_experiments.reports.latex import latex
from wtacrs_experiments.reports.page.folder import Folder
from wtacrs_experiments.reports.page.plots import known
from wtacrs_experiments.reports.tables import SCORES
from wtacrs_experiments.words import MISSING

NUMERIC = {  # a shown column -> the number it shows
    **dict.fromkeys(SCORES.values(), "score"),
    **{"score at last epoch": "last", "n": "n", "score − full [95 %]": "difference"},
    **{"peak MiB": "peak_bytes", "full / peak": "peak_bytes_full_ratio"},
    **{"saved MiB": "saved_bytes", "full / saved": "saved_bytes_full_ratio"},
    **{"samples/s": "samples_per_second", "speed": "speed_ratio"},
}
LEFT_OUT = ("task", "model", "tuning", "memory", "metric")  # where all rows have the same
METHOD = ("model", "tuning", "estimator", "memory", "settings")
WORDS = 5  # columns that stand to the left, as in the files of ``wtacrs table``
HEAD_ENDS, BODY_ENDS = "\\midrule\n", "\\bottomrule"  # of a tabular environment


@dataclass(frozen=True)
class Line:
    """A row: its cells by column, the numbers to sort by, its records and its two copies."""

    cells: dict[str, str]
    numbers: dict[str, float]
    records: list[str]
    latex: str
    csv: str


@dataclass(frozen=True)
class Grid:
    """A table: the columns it shows, and what all of its rows have in common."""

    name: str
    title: str
    columns: list[str]
    common: dict[str, str]
    lines: list[Line]
    frame: dict[str, tuple[str, str]]  # latex and csv -> what stands before and after the rows

    def numeric(self, column: str) -> bool:
        """Whether it sorts by numbers."""
        return any(column in line.numbers for line in self.lines)


def measures(folder: Folder) -> Grid:
    """Everything measured, a row a setting; its copies are the files of ``wtacrs table``."""
    numbers = [
        {shown: row[name] for shown, name in NUMERIC.items() if known(row[name]) is not None}
        for row in folder.table.to_dict("records")
    ]
    lines = _lines(folder.text, folder.table, numbers, folder.members, WORDS)
    return _grid("measures", "All measures", folder.text, folder.table, lines, WORDS)


def scores(folder: Folder) -> Grid:
    """A row a method, a column a task, as the paper's Table 1; its scores are beside ours."""
    heads = [name for name in METHOD if name in folder.text]
    rows: dict[tuple[str, ...], _Method] = {}
    behind = zip(folder.table.to_dict("records"), folder.members, strict=True)
    for cells, (row, records) in zip(folder.text.to_dict("records"), behind, strict=True):
        method = rows.setdefault(tuple(cells[name] for name in heads), _Method())
        task = f"{cells['task']}, {cells['metric']}"
        method.cells |= {name: cells[name] for name in heads}
        method.cells[task] = cells[SCORES[folder.protocol]]
        if cells.get("paper", MISSING) != MISSING:
            method.cells[f"{task}, paper"] = cells["paper"]
        if known(row["score"]) is not None:
            method.numbers[task] = row["score"]
        method.records += records
    tasks = sorted({name for method in rows.values() for name in method.cells} - {*heads})
    text = pd.DataFrame([method.cells for method in rows.values()], columns=[*heads, *tasks])
    text = text.fillna(MISSING)
    numbers = [method.numbers for method in rows.values()]
    lines = _lines(text, text, numbers, [method.records for method in rows.values()], len(heads))
    return _grid("scores", "Scores by task, as the paper's Table 1", text, text, lines, len(heads))


@dataclass
class _Method:
    cells: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    records: list[str] = field(default_factory=list)


def _lines(
    text: pd.DataFrame,
    copied: pd.DataFrame,
    numbers: list[dict[str, float]],
    members: list[list[str]],
    words: int,
) -> list[Line]:
    """The rows of ``text``; ``copied`` is what the CSV says of them."""
    return [
        Line(
            text.iloc[at].to_dict(),
            number,
            records,
            latex(text.iloc[[at]], words).partition(HEAD_ENDS)[2].partition(BODY_ENDS)[0],
            _csv(copied.iloc[[at]]),
        )
        for at, (number, records) in enumerate(zip(numbers, members, strict=True))
    ]


def _grid(
    name: str, title: str, text: pd.DataFrame, copied: pd.DataFrame, lines: list[Line], words: int
) -> Grid:
    common = {
        column: text[column].iloc[0]
        for column in LEFT_OUT
        if column in text and text[column].nunique() == 1
    }
    before, _, after = latex(text.iloc[:0], words).partition(HEAD_ENDS)
    frame = {
        "latex": (before + HEAD_ENDS, after.lstrip("\n")),
        "csv": (_csv(copied.iloc[:0], header=True), ""),
    }
    others = [column for column in text if column not in {"estimator", *common}]
    shown = ["estimator", *others]  # it stays in sight while the others are scrolled
    return Grid(name, title, shown, common, lines, frame)


def _csv(rows: pd.DataFrame, header: bool = False) -> str:
    return rows.to_csv(index=False, header=header, float_format="%.12g")
