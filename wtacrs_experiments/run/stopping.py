"""Early stopping: transformers' own, on the first metric of the task, by epochs."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, TrainerState

from wtacrs_experiments.config import RunConfig
from wtacrs_experiments.words import LOWER_IS_BETTER


class EarlyStop(EarlyStoppingCallback):
    """The callback, quiet where a run needs no word: the model of the last epoch is what it keeps,
    and of several splits that are evaluated the first decides.

    The epoch that ends a run leaves no checkpoint, from which the Trainer would train on.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        if args.metric_for_best_model in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)
        if control.should_training_stop:
            control.should_save = False


def stopping_arguments(config: RunConfig) -> dict[str, Any]:
    """What the Trainer's arguments say of it."""
    if config.training.early_stopping_patience is None:
        return {}
    main = config.task.metrics[0]
    return {
        "metric_for_best_model": f"eval_validation_{main}",
        "greater_is_better": main not in LOWER_IS_BETTER,
        "restore_callback_states_from_checkpoint": True,
    }


def stopped(config: RunConfig, state: TrainerState) -> dict[str, Any]:
    """What a record says of it: the epoch after which the run was stopped; null: it was not."""
    if config.training.early_stopping_patience is None:
        return {}
    return {"stopped_epoch": state.epoch if state.global_step < state.max_steps else None}
