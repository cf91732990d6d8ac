"""Plans that stand in a table or a figure: an index beside them says which row each of them is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.shape import check_plan, parse

FULL = "Full"  # the row that others are held against
Planned = dict[str, dict[str, dict[str, Any]]]


def index_path(folder: Path, name: str) -> Path:
    """The file in which ``name`` is model -> method -> file name."""
    return folder / f"index-{name}.json"


def read_planned(folder: Path, name: str) -> Planned:
    """Model -> method -> record, in the order of the index.

    Raises:
        UserError: no such index, a file that it names is missing or no record, or a model has no
            full row.
    """
    try:
        index = parse(index_path(folder, name).read_text(encoding="utf-8"))
        records = {
            model: {method: _read(folder / file) for method, file in methods.items()}
            for model, methods in index.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} holds no plans of {name} ({error}); make them: "
            f"python -m wtacrs_experiments.plan.published {name} --records {folder}"
        ) from error
    for model, methods in records.items():
        if FULL not in methods:
            raise UserError(f"{index_path(folder, name)}: {model} has no row {FULL!r}")
    return records


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = parse(path.read_text(encoding="utf-8"))
    try:
        check_plan(content)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    return content
