"""One line in transformers' Trainer, and in what is built on it (TRL's SFTTrainer).

    Trainer(model, ..., callbacks=[WtacrsCallback("lean", budget=0.3)])

The model is changed when the Trainer is made: after its adapters, before its optimizer and before
it is compiled or distributed. What a resumed run needs lies in each checkpoint.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from wtacrs.apply import Handle, apply_
from wtacrs.config import MemoryConfig, config_of
from wtacrs.integrations.checkpointing import checkpoints, restore_checkpoint_

STATE_FILE = "wtacrs_state.pt"
BLOCK_KEEPS_ITS_INPUT = (
    "gradient_checkpointing is on: a block keeps its input alone, whatever is sampled in it. What "
    "sampling still saves is memory within the one block that is computed again, and (1 - budget) "
    "of the time of its weight gradients. 'leanest' in its place computes less again"
)
SWITCHES = ("activation_checkpointing", "gradient_checkpointing")  # by transformers' version


def state_file(process: int) -> str:
    """In a checkpoint: each process draws for itself, and has seen samples of its own."""
    return STATE_FILE if process == 0 else STATE_FILE.replace(".pt", f"-{process}.pt")


class WtacrsCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Applies a preset to the Trainer's model; saves and restores its state with each checkpoint.

    Gradient checkpointing, where the Trainer's arguments ask for it, composes with a preset that
    recomputes no block; one that does takes its place, and says so. A dataset's column
    ``sample_ids`` reaches it with ``remove_unused_columns=False``; layers that pick late need none.

    Args:
        memory, num_samples, max_tokens, sampling: as of ``apply_``.

    Attributes:
        handle: what was done; None before the Trainer is made.

    Raises:
        ValueError: as ``apply_`` and ``preset`` do.
    """

    def __init__(
        self,
        memory: str | MemoryConfig = "lean",
        *,
        num_samples: int | None = None,
        max_tokens: int | None = None,
        **sampling: Any,
    ) -> None:
        self.config = config_of(memory, sampling)
        self._sizes = {"num_samples": num_samples, "max_tokens": max_tokens}
        self.handle: Handle | None = None
        self._first_step, self._output = True, ""

    def state(self) -> dict[str, Any]:
        """Of the Trainer's state: where the checkpoint was written, for it may be resumed from
        another output folder."""
        return {"args": {}, "attributes": {"output": self._output}}

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, self._output = kwargs["model"], str(Path(args.output_dir).absolute())
        asked = [name for name in SWITCHES if getattr(args, name, False)]
        if (asked or checkpoints(model)) and self.config.recompute not in ("none", "attention"):
            for name in asked:
                setattr(args, name, False)
            restore_checkpoint_(model, embeddings_needed_gradients=False)
            warnings.warn(
                f"gradient_checkpointing is off: recompute={self.config.recompute!r} takes its "
                "place",
                stacklevel=2,
            )
        self.handle = apply_(model, self.config, **self._sizes)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.handle is None:  # it was added to a Trainer that was made before
            self.on_init_end(args, state, control, **kwargs)
        assert self.handle is not None
        self._first_step = True
        if state.global_step > 0 and any(self.handle.state_dict().values()):
            self.handle.load_state_dict(torch.load(self._state_file(args, state)))
        if state.is_world_process_zero:
            print(self.handle.report())
            if checkpoints(self.handle.model) and self.handle.sampler is not None:
                print(BLOCK_KEEPS_ITS_INPUT)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.handle is not None
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        folder.mkdir(parents=True, exist_ok=True)  # of several processes the first makes it
        torch.save(self.handle.state_dict(), folder / state_file(args.process_index))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.handle is not None and self.handle.sampler is not None:
            self.handle.sampler.gather()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.handle is not None
        sampler = self.handle.sampler
        if self._first_step and sampler is not None and not (sampler.rows_seen or sampler.late):
            warnings.warn(
                "no sampled layer has drawn in the first step: was the model replaced, or made "
                "anew, after the Trainer was made?",
                stacklevel=2,
            )
        self._first_step = False

    @staticmethod
    def _state_file(args: Any, state: Any) -> Path:
        """Of the checkpoint that training goes on from, wherever it lies.

        Raises:
            FileNotFoundError: it was saved without this callback.
        """
        name, asked = f"checkpoint-{state.global_step}", args.resume_from_checkpoint
        kept = state.stateful_callbacks.get(WtacrsCallback.__name__, {})
        written = kept.get("attributes", {}).get("output") if isinstance(kept, dict) else None
        folders = [Path(asked)] if isinstance(asked, str) else []
        folders += [Path(written or args.output_dir, name), Path(args.output_dir, name)]
        file = state_file(args.process_index)
        for folder in folders:
            if (folder / file).exists():
                return folder / file
        raise FileNotFoundError(
            f"{folders[0] / file} is not there: the checkpoint was saved without this "
            "callback, so what is drawn from here on cannot be what it would have been. Resume "
            "without it, or train from the start"
        )
