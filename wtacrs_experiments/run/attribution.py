"""Memory alone: one step on the longest batch, no training (``measure=memory``).

Data, model, tuning and sampling are those of a run. One training step comes first, which makes the
optimizer's state and loads a device's kernels.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from wtacrs import Sampler
from wtacrs.measure.attribution import attribute
from wtacrs_experiments.config import LoggingConfig, RunConfig
from wtacrs_experiments.run.measure import measure_memory, step_on
from wtacrs_experiments.run.tasks import TaskData
from wtacrs_experiments.run.training import build_trainer, longest_batch


def measure_alone(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    data: TaskData,
    sampler: Sampler | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections ``memory`` and ``attribution`` of a record."""
    one_step = replace(config.training, max_steps=1, checkpoint_steps=0)
    config = replace(config, training=one_step, logging=LoggingConfig())
    with TemporaryDirectory() as folder:  # the Trainer makes it and leaves it empty
        trainer = build_trainer(config, model, tokenizer, data, Path(folder), [])
        trainer.args.eval_strategy = "no"
        trainer.train()
    rows = longest_batch(data.train, config.training.batch_size)
    return measure_memory(trainer, model, rows, sampler), describe_held(trainer, model, rows)


def describe_held(trainer: Trainer, model: PreTrainedModel, rows: list[Any]) -> dict[str, Any]:
    """The section ``attribution``: what is alive when the forward pass on ``rows`` ends.

    ``saved_bytes`` is the sum of ``rows``; the fields are those of ``wtacrs.measure.attribution``.
    """
    _, step = step_on(trainer, rows)
    found = asdict(attribute(model, step))
    model.zero_grad(set_to_none=True)
    return {"saved_bytes": found.pop("bytes"), **found}
