"""A run whose loss is not finite any more ends there: nothing it does later says anything."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from wtacrs_experiments.config import RunConfig
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import RunRecord
from wtacrs_experiments.run import training
from wtacrs_experiments.run.batch_facts import BatchFacts
from wtacrs_experiments.run.metrics import Diverged
from wtacrs_experiments.run.ranks import any_of


class Divergence(TrainerCallback):
    """Ends the run after the step whose loss is not finite, in all processes, and before a
    checkpoint of it is written."""

    def __init__(self, facts: BatchFacts) -> None:
        self.facts = facts

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if any_of(not math.isfinite(self.facts.loss_sum)):
            raise Diverged("the loss is nan or inf")


def train(
    trainer: Trainer,
    resume_from: Path | None,
    record: RunRecord,
    config: RunConfig,
    facts: BatchFacts,
) -> dict[str, Any]:
    """Train, on from a checkpoint if there is one; returns the section ``metrics``.

    Raises:
        Diverged: the loss is no number; ``record`` has the epochs before it.
    """
    if resume_from is not None:
        print(f"resuming from {resume_from}")
    try:
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    except Diverged as error:
        with suppress(UserError):  # nothing was evaluated before
            record.metrics = training.describe_metrics(config, trainer, facts)
        remedy = "lower training.learning_rate or raise the budget"
        raise Diverged(f"diverged at step {trainer.state.global_step}: {error}; {remedy}") from None
    return training.describe_metrics(config, trainer, facts)
