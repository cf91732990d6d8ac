"""Plans that stand in a table or a figure: an index beside them says which row each of them is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wtacrs_experiments.errors import UserError

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
        index = json.loads(index_path(folder, name).read_text(encoding="utf-8"))
        records = {
            model: {
                method: json.loads((folder / file).read_text(encoding="utf-8"))
                for method, file in methods.items()
            }
            for model, methods in index.items()
        }
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no plans of {name} ({error}); make them: "
            f"python -m wtacrs_experiments.plan.published {name} --records {folder}"
        ) from error
    for model, methods in records.items():
        if FULL not in methods:
            raise UserError(f"{index_path(folder, name)}: {model} has no row {FULL!r}")
    return records
