"""Checkpoints from which a run that was cut off goes on as the same run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from wtacrs import Handle
from wtacrs.integrations.trainer import state_file
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.run.batch_facts import BatchFacts
from wtacrs_experiments.run.interruption import Interruption
from wtacrs_experiments.run.probe import VarianceProbe
from wtacrs_experiments.run.ranks import any_of, gather, rank
from wtacrs_experiments.run.trainers import order_of

REPLACES = "replaces.txt"  # beside the checkpoints of a run with overwrite=true: sum of the record
MANIFEST = "complete.json"  # the last file of a checkpoint: sizes and sums of all others


class Checkpoints(TrainerCallback):
    """Makes a resumed run the same run, which the Trainer's checkpoints alone do not.

    They hold neither the sampler, nor the generator of rounded derivatives, nor the losses so far,
    nor what a probe has measured, nor the order of an epoch by length.
    One at the end of an epoch is made before the evaluation, which a resumed run would leave out;
    here it waits for it. From one at the very end the Trainer would train on; here it is not made.

    Args:
        handle: of the model, holds the state of its sampler.
        facts: counts its steps.
        probe: measures while it trains, if anything does.
        resume_from: the checkpoint to go on from, or None.
        minutes: between two checkpoints, beside those that the Trainer makes; 0: none.
        interruption: asks for one, and ends the run with it.
    """

    def __init__(
        self,
        handle: Handle,
        facts: BatchFacts,
        probe: VarianceProbe | None,
        resume_from: Path | None,
        minutes: float = 0.0,
        interruption: Interruption | None = None,
    ) -> None:
        owners = {
            "facts": facts,
            "memory": handle,
            "probe": probe,
        }
        self.owners: dict[str, Any] = {name: o for name, o in owners.items() if o is not None}
        self.resume_from = resume_from
        self._waiting = False
        self._minutes, self._last = minutes, time.monotonic()
        self._interruption = interruption or Interruption()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (order := order_of(kwargs["train_dataloader"])) is not None:
            self.owners["order"] = order
        if self.resume_from is not None:
            file = self.resume_from / state_file(rank())
            saved = torch.load(file, weights_only=True)
            if saved.keys() != self.owners.keys():
                raise UserError(
                    f"{file} holds {', '.join(saved)}, and this run needs {', '.join(self.owners)}:"
                    " another version wrote it. Start from the start: overwrite=true"
                )
            for name, owner in self.owners.items():
                owner.load_state_dict(saved[name])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = time.monotonic() - self._last > 60 * self._minutes > 0
        control.should_save |= any_of(due or self._interruption.asked is not None)
        if state.global_step >= state.max_steps:
            control.should_save = False
        elif control.should_save and float(state.epoch).is_integer():
            control.should_save, self._waiting = False, True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (sampler := self.owners["memory"].sampler) is not None:
            sampler.gather()
        if (order := self.owners.get("order")) is not None:
            order.began = None
        if self._waiting:
            control.should_save, self._waiting = True, False

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked = any_of(self._interruption.asked is not None)
        control.should_save |= asked and state.global_step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = {name: owner.state_dict() for name, owner in self.owners.items()}
        path = Path(args.output_dir, f"checkpoint-{state.global_step}")
        path.mkdir(parents=True, exist_ok=True)
        torch.save(saved, path / state_file(rank()))
        gather([None])  # all have written theirs
        if rank() == 0:
            seal(path)
            for older in sorted(path.parent.glob("checkpoint-*")):
                if older != path:
                    remove(older)
        self._last = time.monotonic()
        told = gather([self._interruption.asked])
        self._interruption.asked = next((name for name in told if name is not None), None)
        self._interruption.raise_if_asked()


def seal(path: Path) -> None:
    """Say of the checkpoint ``path`` that it is whole, once all of it has reached the disk."""
    inside = sorted(path.rglob("*"))  # FSDP's shards lie in folders
    files = {str(one.relative_to(path)): _fingerprint(one) for one in inside if one.is_file()}
    files.pop(MANIFEST, None)
    for one in inside:
        _sync(one)
    part = path / f"{MANIFEST}.part"
    part.write_text(json.dumps(files, indent=2) + "\n")
    _sync(part)
    part.replace(path / MANIFEST)
    _sync(path)


def remove(path: Path) -> None:
    """Remove a checkpoint; one that this is cut off from removing is no whole one any more."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def damage(path: Path) -> str | None:
    """What of a sealed checkpoint is not as it was; None if nothing."""
    try:
        files = json.loads((path / MANIFEST).read_text())
        for name, expected in files.items():
            if not (path / name).exists():
                return f"{name} is missing"
            if _fingerprint(path / name) != expected:
                return f"{name} is not as it was written"
    except (OSError, ValueError, AttributeError) as error:
        return f"{MANIFEST}: {error}"
    return None


def start_over(folder: Path, record: Path) -> None:
    """Make ``folder`` a new one for a run that is to replace the completed ``record``, unless it is
    of such a run already, which was cut off."""
    if not _replaces(folder, record):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / REPLACES).write_text(_sum(record))


def clear(folder: Path, record: Path) -> None:
    """Remove what the run of the completed ``record`` left in ``folder`` when it was cut off just
    after it; a run that is to replace the record goes on from what is its own."""
    if not _replaces(folder, record):
        shutil.rmtree(folder, ignore_errors=True)


def _replaces(folder: Path, record: Path) -> bool:
    mark = folder / REPLACES
    return mark.exists() and mark.read_text() == _sum(record)


def _sum(record: Path) -> str:
    return hashlib.sha256(record.read_bytes()).hexdigest() if record.exists() else "nothing"


def keep_last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``. One that is damaged is set aside, with a word, and
    those that are older or were not written to their end are removed."""
    last = None
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if last is not None or not (path / MANIFEST).exists():
            remove(path)  # or the Trainer might take it for the newest
        elif (why := damage(path)) is None:
            last = path
        else:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)  # of the same step, damaged before
            path.rename(aside)
            print(f"a damaged checkpoint is set aside: {aside} ({why})")
    return last


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
