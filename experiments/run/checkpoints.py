"""Checkpoints from which a run that was cut off goes on as the same run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from experiments.errors import UserError
from experiments.run.probe import VarianceProbe
from experiments.run.training import BatchFacts
from wtacrs import Handle

STATE_FILE = "wtacrs_state.pt"


class Checkpoints(TrainerCallback):
    """Makes a resumed run the same run, which the Trainer's checkpoints alone do not.

    They hold neither the sampler, nor the generator of rounded derivatives, nor the losses so far,
    nor what a probe has measured.
    One at the end of an epoch is made before the evaluation, which a resumed run would leave out;
    here it waits for it. From one at the very end the Trainer would train on; here it is not made.

    Args:
        handle: of the model, holds the state of its sampler.
        facts: counts its steps.
        probe: measures while it trains, if anything does.
        resume_from: the checkpoint to go on from, or None.
    """

    def __init__(
        self,
        handle: Handle,
        facts: BatchFacts,
        probe: VarianceProbe | None,
        resume_from: Path | None,
    ) -> None:
        owners = {
            "facts": facts,
            "memory": handle,
            "probe": probe,
        }
        self.owners: dict[str, Any] = {name: o for name, o in owners.items() if o is not None}
        self.resume_from = resume_from
        self._waiting = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.resume_from is not None:
            file = self.resume_from / STATE_FILE
            saved = torch.load(file, weights_only=True)
            if saved.keys() != self.owners.keys():
                raise UserError(
                    f"{file} holds {', '.join(saved)}, and this run needs {', '.join(self.owners)}:"
                    " another version wrote it. Start from the start: overwrite=true"
                )
            for name, owner in self.owners.items():
                owner.load_state_dict(saved[name])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False
        elif control.should_save and float(state.epoch).is_integer():
            control.should_save, self._waiting = False, True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._waiting:
            control.should_save, self._waiting = True, False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = {name: owner.state_dict() for name, owner in self.owners.items()}
        file = Path(args.output_dir, f"checkpoint-{state.global_step}", STATE_FILE)
        torch.save(saved, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)  # the last file of a checkpoint, and whole


def keep_last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder`` that was written to its end; the others are removed."""
    whole = [file.parent for file in folder.glob(f"checkpoint-*/{STATE_FILE}")]
    last = max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
    for path in folder.glob("checkpoint-*"):
        if path != last:
            shutil.rmtree(path)  # or the Trainer, which keeps one, might take it for the newest
    return last
