"""How a run ends: its status, and the record that is kept of it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch

from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.claims import Claim
from wtacrs_experiments.records.record import RecordError, RunRecord, read_record, write_record


class RunError(UserError):
    """The run did not complete; its record, if it got that far, says why."""


def existing(path: Path, overwrite: bool, model: Path | None = None) -> RunRecord | None:
    """The completed record at ``path``, with its ``model``, if the run need not be done again."""
    if overwrite or not path.exists():
        return None
    record = read_record(path)
    done = record.status == "completed"
    if done and (model is None or model.is_dir()):
        return record
    why = f"its model is not at {model}" if done else f"it was {record.status}"
    print(f"running again, {why}: {path}")
    return None


def keep(record: RunRecord, path: Path, claim: Claim) -> None:
    """Write the record; a completed one is replaced by a completed one only.

    Raises:
        RunError: it cannot be written; it is printed then, and what is in checkpoints stays.
    """
    if record.status != "completed" and path.exists() and is_completed(path):
        print(f"{record.status}; the record that was completed before stays: {path}")
        return
    with suppress(OSError):  # somebody removed it
        claim.release_reserve()
    try:
        write_record(record, path)
    except OSError as error:
        print(json.dumps(asdict(record), default=str))
        raise RunError(f"{path} cannot be written ({error}); the record stands above") from error


def is_completed(path: Path) -> bool:
    """Whether ``path`` holds a record of a completed run."""
    try:
        return read_record(path).status == "completed"
    except RecordError:
        return False


def status_of(error: BaseException) -> str:
    """The status of a run that ended with ``error``."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    # torch has no class of its own for a failed host allocation.
    no_host_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or no_host_memory:
        return "out_of_memory"
    return "failed"
