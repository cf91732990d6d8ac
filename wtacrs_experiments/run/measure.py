"""What a run costs: step times while it trains, and the memory of one step after it.

Memory is that of one whole training step (forward, backward, optimizer) on the longest batch of the
training set, since that batch decides whether a run fits. It is measured after training, so that
the optimizer's state exists and measuring changes no result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback

from wtacrs import Sampler
from wtacrs.measure.step import measure_step
from wtacrs_experiments.run.batch_facts import BatchFacts
from wtacrs_experiments.run.ranks import gather, world_size


class StepTimer(TrainerCallback):
    """Wall-clock seconds of each training step, evaluation and data loading left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = self._now(args.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(self._now(args.device) - self._started)

    @staticmethod
    def _now(device: torch.device) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()


def describe_throughput(timer: StepTimer, facts: BatchFacts) -> dict[str, Any]:
    """The section ``throughput`` of a record; nulls if training ended within the warm-up."""
    warmup_steps = facts.warmup_steps
    seconds = np.array(timer.seconds[warmup_steps:])
    described: dict[str, Any] = {
        "samples_per_second": None,
        "tokens_per_second": None,
        "step_seconds": None,
        "steps_timed": len(seconds),
        "warmup_steps": warmup_steps,
    }
    if len(seconds):
        median, p10, p90 = np.percentile(seconds, [50, 10, 90]).tolist()
        samples, tokens = sum(facts.samples[warmup_steps:]), int(facts.tokens)
        described["samples_per_second"] = sum(gather([samples])) / seconds.sum()
        described["tokens_per_second"] = sum(gather([tokens])) / seconds.sum()
        described["step_seconds"] = {"median": median, "p10": p10, "p90": p90}
    return described


def step_on(trainer: Trainer, rows: list[Any]) -> tuple[dict[str, Tensor], Callable[[], Any]]:
    """The batch that is made of ``rows``, on the device, and its forward and backward pass."""
    collated = trainer.data_collator(rows)
    batch = {key: value.to(trainer.args.device) for key, value in collated.items()}
    return batch, lambda: trainer.training_step(trainer.model_wrapped, batch)


def measure_memory(
    trainer: Trainer, model: PreTrainedModel, rows: list[Any], sampler: Sampler | None
) -> dict[str, Any]:
    """The section ``memory`` of a record: one training step on the batch ``rows``, of several
    batches the last.

    ``saved_bytes`` is what is alive when the forward pass ends and was not before it: activations,
    and the loss. ``peak_bytes`` counts parameters, optimizer state and gradients too; ``at_peak``
    says of what it is made, as in ``wtacrs.measure.step.StepMemory``.
    """
    if sampler is not None:
        sampler.settle()  # the host table is no part of the step
    batch, step = step_on(trainer, rows)
    assert trainer.optimizer is not None
    accumulates = trainer.args.gradient_accumulation_steps > 1
    measured = measure_step(model, trainer.optimizer, batch, step=step, accumulates=accumulates)
    peaks = gather([measured.peak_bytes])
    return {
        **({"peak_bytes_by_rank": peaks} if world_size() > 1 else {}),
        "device": device_name(trainer.args.device),
        **asdict(measured),
        "temporary_bytes": measured.at_peak["temporary"],
        "host_cache_bytes": 0 if sampler is None else sampler.grad_norms.host_bytes,
    }


def device_name(device: torch.device) -> str:
    """The name of the card, or plainly cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
