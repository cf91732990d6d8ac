"""A file of the GLUE layout -> its rows, each line checked against the task's YAML file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from wtacrs_experiments.config import TaskConfig
from wtacrs_experiments.errors import UserError


class TaskError(UserError):
    """A task's data or settings cannot be used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Rows:
    """Rows before tokenisation: `inputs` are sentences (one or two a row) or pixel tokens."""

    inputs: list[list[Any]]
    labels: list[Any]


def read_file(path: Path, task: TaskConfig, split: str) -> Rows:
    """The rows of a split; a line that breaks a rule raises TaskError, its path and number."""
    text, label = task.text or (), task.label or 0
    lines = _lines(path, task.width(split))
    for where, cells in islice(lines, 1 if task.header else 0):
        _check_header(task, cells, where)
    rows = Rows([], [])
    for where, cells in lines:
        rows.inputs.append([cells[column] for column in text])
        rows.labels.append(read_label(task, cells[label], where))
    if not rows.labels:
        raise TaskError(f"{path} has no rows; a task needs at least one. Restore the file.")
    return rows


def _lines(path: Path, width: int) -> Iterator[tuple[str, list[str]]]:
    """Each line's "path:line" and cells; a quotation mark is a plain character in GLUE."""
    # As bytes, since text mode would break a row at a lone "\r" too.
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise TaskError(f"{where}: {error}; save the file as UTF-8.") from error
            cells = line.removesuffix("\n").removesuffix("\r").split("\t")
            if len(cells) != width:
                raise TaskError(
                    f"{where}: {len(cells)} tab-separated columns, this file must have {width}"
                    f" (line begins {line[:60]!r}). Repair the row or download the file anew."
                )
            yield where, cells


def _check_header(task: TaskConfig, cells: list[str], where: str) -> None:
    """Refuse a first line that is a row, which skipping the header would lose without a word."""
    cell = cells[task.label or 0]
    try:
        read_label(task, cell, where)
    except TaskError:
        return
    raise TaskError(
        f"{where}: the first line must be a header, but its label column holds"
        f" {cell!r}. Add the header line, or set task.header=false."
    )


def read_label(task: TaskConfig, value: str | float, where: str) -> int | float:
    """The model's label for a cell, which is a string in a file and a number on the hub.

    Raises TaskError, which names `where`, for one outside the task's set or range.
    """
    labels = task.labels
    if labels is None:
        low, high = task.score_range or (0.0, 0.0)
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = float("nan")
        if low <= score <= high:  # false for nan
            return score
        rule = f"score {value!r} must be a number from {low} to {high}"
    else:
        if value in labels:
            return labels.index(value)
        if isinstance(value, int) and 0 <= value < len(labels):
            return value
        rule = f"label {value!r} must be one of {[*labels]}"
    raise TaskError(f"{where}: {rule}. Repair the row or correct the task's YAML file.")
