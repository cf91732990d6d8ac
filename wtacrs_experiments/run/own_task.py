"""What a run's model and rows of one's own say themselves: names, labels, what they are made of."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from wtacrs_experiments.config import RunConfig, TaskConfig
from wtacrs_experiments.config.known import CLASSIFICATION, HUB, REGRESSION
from wtacrs_experiments.config.task import OWN
from wtacrs_experiments.records.inputs import DIGITS, identified
from wtacrs_experiments.run.files import read_splits
from wtacrs_experiments.run.glue import TaskError
from wtacrs_experiments.run.hub import read_hub
from wtacrs_experiments.run.labels import labels_in
from wtacrs_experiments.run.ranks import world_size

LONGEST = 40  # characters: the name of a record, of which this is a part, has its limits


def settle(config: RunConfig, asks_hub: bool = True) -> RunConfig:
    """What ``config`` says, with what a model and rows of one's own say themselves.

    Args:
        asks_hub: whether a task of the hub has the sum of its rows, too; they are loaded for it.

    Raises:
        UserError: they cannot be read.
    """
    config = identified(config)
    task = settled_task(config.task)
    if asks_hub and task.on_hub:
        with suppress(TaskError):  # the run itself says what is missing, and keeps a record of it
            rows = {split: [of.inputs, of.labels] for split, of in read_hub(task).items()}
            task = replace(task, data_sha256=_sum(rows))
    return replace(
        config,
        task=task,
        training=replace(config.training, world_size=world_size()),
    )


def settled_task(task: TaskConfig) -> TaskConfig:
    """The task ``task``, and of one's own rows what they say themselves.

    Other rows are another run, wherever they lie: so the sum of all rows is a part of the config.
    It is named after its file, for two files are two tasks in records and tables.

    Raises:
        UserError: rows that are none, or whose labels are neither classes nor scores.
    """
    if task.source not in OWN:
        return task
    splits = read_splits(task)
    rows = {key: [row for _, row in rows] for key, rows in splits.items()}
    found: dict[str, Any] = {"data_sha256": _sum(rows)}
    if task.name == task.source:
        found["name"] = f"{task.name}_{_name(task.train_file or '')}"
    if task.label_column is not None:
        labels, scores = task.labels, task.score_range
        if labels is None and scores is None:
            labels, scores = labels_in([*splits["train"], *splits["validation"]], task.label_column)
            found |= {"labels": labels, "score_range": scores}
        found["metrics"] = task.metrics or (CLASSIFICATION[:1] if labels else REGRESSION)
    return replace(task, **found)


def _sum(rows: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()[:DIGITS]


def _name(file: str) -> str:
    """The last part of a path, as it can stand in the name of a file; of the hub the whole name."""
    if file.startswith(HUB):
        name = file.removeprefix(HUB).replace("/", "+").replace(":", "++")
        if len(name) <= LONGEST:
            return name
        return f"{name[: LONGEST - 9]}+{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    path = Path(file).expanduser().resolve()
    name = path.stem if path.is_file() else path.name
    return re.sub(r"[^A-Za-z0-9]+", "_", name)[:LONGEST]
