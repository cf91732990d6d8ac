"""A run whose loss is not finite any more ends there: nothing it does later says anything."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback

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
