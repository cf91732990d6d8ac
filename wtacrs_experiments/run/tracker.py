"""Weights & Biases, beside the record: the group ``logging``."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys

from wtacrs_experiments.config import RunConfig
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import RunRecord
from wtacrs_experiments.words import method_name


def start(config: RunConfig, name: str, resumes: bool) -> None:
    """Begin wandb's run of the run ``name``, or go on with it, if wandb is asked for.

    Raises:
        UserError: it is not installed, or cannot be reached.
    """
    if config.logging.name != "wandb":
        return
    if importlib.util.find_spec("wandb") is None:
        raise UserError("logging=wandb needs a package: pip install wandb, or logging=none")
    import wandb

    try:
        wandb.init(
            project=os.environ.get("WANDB_PROJECT") or config.logging.project,
            mode=os.environ.get("WANDB_MODE") or config.logging.mode,  # type: ignore[arg-type]
            id=hashlib.sha256(name.encode()).hexdigest()[:16],
            name=name,
            # A run from its start replaces the one that has its id.
            resume="allow" if resumes else None,
            config=shown(config),
        )
    except wandb.Error as error:
        why = " ".join(str(error).split())
        raise UserError(f"logging=wandb: {why}; logging.mode=offline needs no network") from error


def shown(config: RunConfig) -> dict[str, str | float]:
    """What tells runs apart in wandb's table, beside the Trainer's arguments and the model's."""
    groups = ("task", "model", "tuning")
    return {
        **{group: getattr(config, group).name for group in groups},
        "estimator": method_name(config.estimator.name, config.estimator.center),
        "preset": config.memory.name,
        "budget": config.budget,
        "seed": config.seed,
    }


def finish(record: RunRecord) -> None:
    """Hand wandb what the record has, and end its run, or the next one of a sweep would log into
    it."""
    wandb = sys.modules.get("wandb")
    if record.config["logging"]["name"] != "wandb" or wandb is None or wandb.run is None:
        return
    memory, metrics = record.memory or {}, record.metrics or {}
    found = {key: memory.get(key) for key in ("peak_bytes", "saved_bytes")}
    found |= {key: metrics.get(key) for key in ("best", "best_epoch", "last")}
    known = {key: value for key, value in found.items() if value is not None}
    wandb.run.summary.update({"status": record.status, **known})
    wandb.finish(exit_code=int(record.status != "completed"))
