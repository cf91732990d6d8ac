"""Labels of one's own tables: which they are, and whether they are classes or scores.

Words and whole numbers are classes, in order of the alphabet or of size; numbers of which one has a
fraction are scores, whose range is that of the data. ``task.labels`` or ``task.score_range`` say it
otherwise. Nothing is guessed of a cell that is empty or of a number that does not read as one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from wtacrs_experiments.config import TaskConfig
from wtacrs_experiments.run.files import Row
from wtacrs_experiments.run.glue import Rows, TaskError, read_label

FEW = 20  # classes; of more, at most one to two rows


def cell(where: str, row: dict[str, Any], column: str) -> Any:
    """What a row has in ``column``.

    Raises:
        TaskError: no such column.
    """
    if column not in row:
        raise TaskError(
            f"{where}: has no column {column!r}, but {', '.join(map(str, row)) or 'none'}"
        )
    return row[column]


def text_of(where: str, row: dict[str, Any], column: str) -> str:
    """The text in ``column``.

    Raises:
        TaskError: no such column, or no text.
    """
    value = cell(where, row, column)
    if not isinstance(value, str):
        raise TaskError(f"{where}: {column} must be text, and is {str(value)[:60]!r}")
    return value


def label_of(where: str, row: dict[str, Any], column: str) -> str:
    """The label in ``column``, as text; of JSON it may be a number, true or false.

    Raises:
        TaskError: no such column, or no label in it.
    """
    value = cell(where, row, column)
    if isinstance(value, bool):
        return str(value).lower()
    label = str(value).strip() if isinstance(value, (str, int, float)) else ""
    if not label or (isinstance(value, float) and not math.isfinite(value)):
        raise TaskError(
            f"{where}: {column} holds no label ({str(value)[:60]!r}); give one or leave the row out"
        )
    return label


def labels_in(
    rows: Iterable[Row], column: str
) -> tuple[tuple[str, ...] | None, tuple[float, float] | None]:
    """The classes in order, or the least and the largest score; the other of the two is None.

    Raises:
        TaskError: a row without a label; labels that are neither.
    """
    found: dict[str, str] = {}  # label: the place of the first row that has it
    count = 0
    for where, row in rows:
        found.setdefault(label_of(where, row, column), where)
        count += 1
    first = next(iter(found.values()))
    numbers = {label: number for label in found if (number := _number(label)) is not None}
    if any(not number.is_integer() for number in numbers.values()):
        for label, where in found.items():
            if label not in numbers:
                raise TaskError(f"{where}: {column}={label!r} is no number, as others there are")
        return None, (min(numbers.values()), max(numbers.values()))
    _check_classes(found, numbers, column)
    if len(found) > max(FEW, count / 2):
        raise TaskError(
            f"{first}: {column} has {len(found)} different labels in {count} rows; is it the "
            "label's column? If they are scores: task.score_range=[least,largest]"
        )
    order = numbers.__getitem__ if len(numbers) == len(found) else None
    return tuple(sorted(found, key=order)), None


def _check_classes(found: dict[str, str], numbers: dict[str, float], column: str) -> None:
    """Raise TaskError unless the labels ``found``, of which some are ``numbers``, are classes."""
    same: dict[float, str] = {}
    for label, number in numbers.items():
        if (other := same.setdefault(number, label)) != label:
            raise TaskError(
                f"{found[label]}: {column}={label!r} is {other!r} of {found[other]}, written in "
                "another way; write a label in one"
            )
    for label, where in found.items():
        if numbers and label.lower() == "nan":
            raise TaskError(f"{where}: {column}={label!r} is no label; leave the row out")
        if re.fullmatch(r"[+-]?\d+,\d+", label):
            raise TaskError(f"{where}: {column}={label!r}: write numbers with a point, say 3.5")
    if len(found) < 2:
        first = next(iter(found.values()))
        raise TaskError(
            f"{first}: all rows have the same {column}, {next(iter(found))!r},"
            " so there is nothing to learn; is it the label's column?"
        )


def _number(label: str) -> float | None:
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def labelled(task: TaskConfig, rows: list[Row]) -> Rows:
    """The sentences and the labels of the rows.

    Raises:
        TaskError: a row without text, or with a label that the task does not know.
    """
    columns, found = task.text_columns or (), Rows([], [])
    for where, row in rows:
        sentences = [text_of(where, row, column) for column in columns]
        if not any(sentence.strip() for sentence in sentences):
            raise TaskError(f"{where}: {', '.join(columns)} is empty; leave the row out")
        found.inputs.append(sentences)
        label = label_of(where, row, task.label_column or "")
        found.labels.append(read_label(task, label, where))
    return found
