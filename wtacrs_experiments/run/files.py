"""Files of one's own -> rows, each with its place, "file:line", for whoever finds fault with it.

A .jsonl has an object a line, a .json one array of objects; a .csv or .tsv has a header, and a cell
in quotes may hold separators and line ends. A folder is one that ``datasets`` has saved; "hub:"
stands before the name of data on the hub.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict, load_from_disk

from wtacrs_experiments.config import TaskConfig
from wtacrs_experiments.config.known import HUB, PYTHON_LIBRARY
from wtacrs_experiments.records.shape import parse
from wtacrs_experiments.run import hub
from wtacrs_experiments.run.documentation import documentation
from wtacrs_experiments.run.glue import TaskError

Row = tuple[str, dict[str, Any]]  # its place and its content
LARGEST_CELL = 2**30  # characters
HELD_OUT = 10  # one row of so many is for evaluation, where nothing else is


def read_splits(task: TaskConfig) -> dict[str, list[Row]]:
    """The rows for training and for evaluation: ``task.eval_file``, else the folder's own split
    "validation", else one row of ten.

    Raises:
        TaskError: a file that is not there, or a row that is none, with its line.
    """
    name, given = task.train_file or "", task.eval_file
    if name == PYTHON_LIBRARY:
        pairs = documentation()
        rows = [(told, {"prompt": told, "completion": text}) for told, text in pairs]
    else:
        rows = read_rows(name, "train")
        given = given or _with_validation(name)
    if given is not None:
        return {"train": rows, "validation": read_rows(given, "validation")}
    if len(rows) < 2:
        raise TaskError(f"{name} has one row; one more is needed for evaluation")
    order = np.random.RandomState(0).permutation(len(rows))
    held_out = {*order[: max(1, len(rows) // HELD_OUT)].tolist()}
    return {
        "train": [row for i, row in enumerate(rows) if i not in held_out],
        "validation": [row for i, row in enumerate(rows) if i in held_out],
    }


def read_rows(name: str, split: str = "train") -> list[Row]:
    """The rows of a file, or of a folder's ``split``.

    Raises:
        TaskError: it is not what its name says, or has no rows.
    """
    if name.startswith(HUB):
        if not (rows := [*hub.rows_of(name, split)]):
            raise TaskError(f"{name} has no rows")
        return rows
    path = Path(name).expanduser()
    readers = {".jsonl": _lines_of_json, ".json": _array, ".csv": _table, ".tsv": _table}
    if path.is_dir():
        rows = [*_of_folder(path, split)]
    elif not path.is_file():
        raise TaskError(f"{path} is not there; give a file, {' '.join(readers)}, or a folder")
    elif (reader := readers.get(path.suffix.lower())) is None:
        raise TaskError(f"{path} is none of the files that are read: {' '.join(readers)}")
    else:
        rows = [*reader(path)]
    if not rows:
        raise TaskError(f"{path} has no rows")
    return rows


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as stream:  # as text, a line would also end at a lone "\r"
        for number, raw in enumerate(stream, start=1):
            where = f"{path}:{number}"
            try:
                yield where, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise TaskError(f"{where} is no text in UTF-8 ({error})") from error


def _lines_of_json(path: Path) -> Iterator[Row]:
    for where, line in _lines(path):
        if line.strip():
            yield where, _object(where, _parsed(where, line))


def _array(path: Path) -> Iterator[Row]:
    rows = _parsed(str(path), "".join(line for _, line in _lines(path)))
    if not isinstance(rows, list):
        raise TaskError(f"{path} must be one array of objects; an object a line is a .jsonl")
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        yield where, _object(where, row)


def _parsed(where: str, text: str) -> Any:
    try:
        return parse(text, constant=float)
    except ValueError as error:
        raise TaskError(f"{where} is no JSON ({error})") from error


def _object(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise TaskError(f"{where}: a row is an object, {{key: value}}, not {str(row)[:60]!r}")
    return row


def _table(path: Path) -> Iterator[Row]:
    separator = "\t" if path.suffix.lower() == ".tsv" else _separator(path)
    reader = csv.reader((line for _, line in _lines(path)), delimiter=separator, strict=True)
    csv.field_size_limit(LARGEST_CELL)
    names: list[str] = []
    last = 0
    try:
        for cells in reader:
            where, last = f"{path}:{last + 1}", reader.line_num
            if not names:
                names = _header(where, cells)
            elif len(cells) not in (0, len(names)):
                raise TaskError(
                    f"{where}: {len(cells)} cells, and the header has {len(names)} columns; a cell "
                    f"that holds {separator!r} or a line end must be in quotes"
                )
            elif cells:
                yield where, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise TaskError(f"{path}:{last + 1}: {error}; a quote in a cell is doubled") from error


def _separator(path: Path) -> str:
    """What separates the columns of the header: the most frequent of , ; tab |."""
    _, first = next(_lines(path), ("", ""))
    return max(",;\t|", key=first.count)


def _header(where: str, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len({*names}) < len(names) or "" in names:
        raise TaskError(f"{where}: the header must name each column once, and is {names}")
    return names


def _loaded(folder: Path) -> Any:
    try:
        return load_from_disk(str(folder))
    except Exception as error:  # of which class, depends on what is wrong with the folder
        raise TaskError(f"{folder} is no folder saved by datasets ({error})") from error


def _with_validation(name: str) -> str | None:
    """What has a split "validation" beside the rows of ``name``, if there is one."""
    if name.startswith(HUB):
        place, _, split = name.removeprefix(HUB).partition(":")
        found = "validation" in hub.splits_of(name) and split != "validation"
        return HUB + place if found else None
    folder = Path(name).expanduser()
    found = folder.is_dir() and isinstance(there := _loaded(folder), dict) and "validation" in there
    return name if found else None


def _of_folder(folder: Path, split: str) -> Iterator[Row]:
    loaded = _loaded(folder)
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            raise TaskError(f"{folder} has no split {split!r}, but {', '.join(loaded)}")
        loaded = loaded[split]
    return ((f"{folder} row {i}", dict(row)) for i, row in enumerate(loaded))
