"""What a run is called where people read of it."""

from __future__ import annotations

from typing import Any

from wtacrs_experiments.config.known import PYTHON_LIBRARY


def label_of(config: dict[str, Any]) -> str:
    """What a run is, in the words of its command line."""
    groups = ("model", "tuning", "estimator", "memory")
    task = config["task"]
    named = [f"task={task['name']}"]
    if task.get("train_file") not in (None, PYTHON_LIBRARY):  # it is named after its file
        named = [f"task={task['source']}", f"task.train_file={task['train_file']}"]
    named += [f"{group}={config[group]['name']}" for group in groups if group in config]
    return " ".join([*named, f"budget={config['budget']:g}"])
