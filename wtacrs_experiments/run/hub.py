"""Rows that lie on the hub, read by ``datasets``: of a task with a home there, or of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import datasets

from wtacrs_experiments.config import HubConfig, TaskConfig
from wtacrs_experiments.config.known import HUB
from wtacrs_experiments.run.glue import Rows, TaskError, read_label


def rows_of(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of "hub:OWNER/DATA/CONFIGURATION:SPLIT", classes by their names; the last two may
    be left out.

    Args:
        name: as ``task.train_file`` has it.
        split: where ``name`` says none.

    Raises:
        TaskError: it cannot be loaded, or has no such split.
    """
    place, _, told = name.removeprefix(HUB).partition(":")
    loaded, split = splits_of(name), told or split
    if split not in loaded:
        raise TaskError(f"{HUB}{place} has no split {split!r}, but {', '.join(loaded)}")
    table = loaded[split]
    kinds = table.features.items()
    classes = {key: kind for key, kind in kinds if isinstance(kind, datasets.ClassLabel)}
    for i, row in enumerate(table):
        for key, kind in classes.items():
            known = row[key] is not None and row[key] >= 0  # -1: not told, of a test split
            row[key] = kind.int2str(row[key]) if known else None
        yield f"{HUB}{place} {split} row {i}", row


def splits_of(name: str) -> dict[str, Any]:
    """Split -> table of "hub:...".

    Raises:
        TaskError: it cannot be loaded.
    """
    place = name.removeprefix(HUB).partition(":")[0]
    owner, _, rest = place.partition("/")
    data, _, configuration = rest.partition("/")
    try:
        return _loaded("/".join(filter(None, (owner, data))), configuration or None)
    except Exception as error:  # offline, proxies, timeouts, gated: each has a class of its own
        why = " ".join(str(error).split())[:300]
        raise TaskError(
            f"{name} could not be loaded from the hub ({type(error).__name__}: {why}); check its "
            "name and the network, or give rows on this disk, say task.train_file=rows.csv"
        ) from error


@lru_cache(maxsize=1)  # asked for by each split
def _loaded(path: str, configuration: str | None) -> dict[str, Any]:
    return dict(datasets.load_dataset(path, configuration))


def read_hub(task: TaskConfig) -> dict[str, Rows]:
    """The splits of a task that has a home on the hub.

    Raises:
        TaskError: it cannot be reached, or lacks a split, a column or rows.
    """
    hub = task.hub
    assert hub is not None
    try:
        loaded = datasets.load_dataset(hub.path, hub.name)
    except Exception as error:  # offline, proxies, timeouts, gated: each has a class of its own
        raise TaskError(out_of_reach(task, error)) from error
    splits = {}
    for split in task.files or ():
        name = (hub.splits or {}).get(split, split)
        _check_there(hub, [name], [*loaded])
        table = loaded[name]
        _check_there(hub, [*hub.text, "label"], table.column_names)
        sentences = zip(*(table[column] for column in hub.text), strict=True)
        where = f"hub {hub.path} {hub.name} {split}"
        labels = [read_label(task, label, f"{where}:{i}") for i, label in enumerate(table["label"])]
        if not labels:
            raise TaskError(
                f"hub {hub.path} {hub.name}: the split {name!r} has no rows; a task needs at least"
                " one. Correct task.hub in the task's YAML file, or give task.data_dir."
            )
        splits[split] = Rows([list(pair) for pair in sentences], labels)
    return splits


def out_of_reach(task: TaskConfig, error: Exception) -> str:
    """That it cannot be had, and what can be had instead."""
    assert task.hub is not None
    return (
        f"task {task.name!r} could not be loaded from the hub ({task.hub.path},"
        f" {task.hub.name}): {type(error).__name__}: {error}. Give a folder in the GLUE layout"
        " with task.data_dir=..., or name it in the environment variable GLUE_DIR, or run"
        " experiment=demo, which needs no download."
    )


def _check_there(hub: HubConfig, wanted: list[str], there: list[str]) -> None:
    """Refuse a split or a column that the data set on the hub has not."""
    if missing := [name for name in wanted if name not in there]:
        raise TaskError(
            f"hub {hub.path} {hub.name} has no {', '.join(missing)}, but {', '.join(there)};"
            " correct task.hub."
        )
