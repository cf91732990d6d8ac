"""Training with transformers' Trainer: its loop, our callbacks."""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from wtacrs_experiments.config import RunConfig, TaskConfig, as_record, sweep
from wtacrs_experiments.config.known import BITSANDBYTES
from wtacrs_experiments.config.task import of_scores
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import record_path
from wtacrs_experiments.run import protocol, sft
from wtacrs_experiments.run.batch_facts import BatchFacts
from wtacrs_experiments.run.devices import on_cpu
from wtacrs_experiments.run.progress import Bars, Lines
from wtacrs_experiments.run.stopping import EarlyStop, stopped, stopping_arguments
from wtacrs_experiments.run.tasks import TaskData
from wtacrs_experiments.run.text2text import TextToText, text_to_text
from wtacrs_experiments.run.trainers import OrderedTrainer, TextTrainer


def check_optimizer(name: str) -> None:
    """Raise UserError for an optimizer whose package is not installed."""
    if name in BITSANDBYTES and find_spec("bitsandbytes") is None:
        raise UserError(
            f"training.optimizer={name} needs a package: pip install bitsandbytes, or "
            "training.optimizer=adafactor, whose state is small too"
        )


def training_arguments(config: RunConfig, folder: Path) -> TrainingArguments:
    """The Trainer's arguments for a run."""
    t = config.training
    steps, share = t.checkpoint_steps, t.batch_size // t.world_size
    # Of a language model logits (b, t, vocabulary) have to fit, as they do in training.
    evaluated = min(t.eval_batch_size, share) if config.task.source == "sft" else t.eval_batch_size
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=t.epochs,
        max_steps=t.max_steps,
        per_device_train_batch_size=share,
        per_device_eval_batch_size=evaluated,
        gradient_accumulation_steps=t.gradient_accumulation_steps,
        optim=t.optimizer,
        learning_rate=t.learning_rate,
        weight_decay=t.weight_decay,
        warmup_steps=t.warmup_ratio if t.warmup_steps is None else t.warmup_steps,  # < 1: a share
        max_grad_norm=t.max_grad_norm,
        bf16=t.precision == "bf16-autocast",
        use_cpu=on_cpu(t.device),  # said plainly, or the Trainer refuses bf16
        train_sampling_strategy="group_by_length" if t.group_by_length else "random",
        seed=config.seed,
        data_seed=config.seed,
        # A classifier's loss is a mean already: to count items over processes would scale it.
        average_tokens_across_devices=False,
        eval_strategy="epoch",
        **stopping_arguments(config),
        logging_strategy="epoch" if config.logging.name == "none" else "steps",
        logging_steps=10,
        logging_nan_inf_filter=False,  # a loss that is not finite is not replaced by others
        save_strategy="steps" if steps > 0 else "no",
        save_steps=steps if steps > 0 else 500,
        report_to=[] if config.logging.name == "none" else [config.logging.name],
        run_name=folder.name,
        remove_unused_columns=False,  # sample_ids are ours; wtacrs takes them out
        disable_tqdm=not (t.progress and sys.stderr.isatty() and sys.stdout.isatty()),
        dataloader_pin_memory=not on_cpu(t.device),
    )


def pad_pixels(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The collator of a task without tokenizer."""
    batch = {
        key: pad_sequence([torch.tensor(row[key]) for row in rows], batch_first=True)
        for key in ("input_ids", "attention_mask")
    }
    for key in rows[0].keys() - batch.keys():
        batch[key] = torch.tensor([row[key] for row in rows])
    return batch


def collator(
    task: TaskConfig, tokenizer: PreTrainedTokenizerBase | None, text: TextToText | None
) -> Any:
    """Makes a batch of rows, padded to its longest or to ``task.max_length``."""
    if tokenizer is None:
        return pad_pixels
    if text is not None:
        return text.collate
    if task.source == "sft":
        return sft.collator(tokenizer, task)
    return DataCollatorWithPadding(tokenizer, **task.padding)


def shown(config: RunConfig, facts: BatchFacts) -> TrainerCallback:
    """What tells how far the run is: bars, or lines where no terminal is."""
    place, name = sweep.place(), record_path(as_record(config)).stem
    title = " · ".join(filter(None, (place, name)))
    if place:
        print(title, flush=True)
    if sys.stderr.isatty() and sys.stdout.isatty():
        return Bars(facts, place)
    return Lines(facts, title, config.task.metrics[0])


def build_trainer(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    data: TaskData,
    folder: Path,
    callbacks: list[TrainerCallback],
) -> Trainer:
    """A Trainer over the task."""
    text = text_to_text(model.config, config.task, tokenizer)
    more: dict[str, Any] = {}
    if config.task.source == "sft":
        more["preprocess_logits_for_metrics"] = sft.sums
    if config.training.early_stopping_patience is not None:
        callbacks = [*callbacks, EarlyStop(config.training.early_stopping_patience)]
    trainer = (OrderedTrainer if text is None else TextTrainer)(
        model=model,
        args=training_arguments(config, folder),
        train_dataset=data.train,
        eval_dataset=dict(data.validation),
        data_collator=collator(config.task, tokenizer, text),
        compute_metrics=partial(_scores, [*config.task.metrics]),
        callbacks=callbacks,
        **more,
    )
    trainer.facts = next((one for one in callbacks if isinstance(one, BatchFacts)), None)
    if config.task.source != "sft":  # the mean of the batches' means
        trainer.loss_is_scaled_for_ga = False
    if isinstance(trainer, TextTrainer) and text is not None:
        trainer.text = text
    for usual in (PrinterCallback, ProgressCallback):  # which print dictionaries
        trainer.remove_callback(usual)
    if config.training.progress and trainer.facts is not None:
        trainer.add_callback(shown(config, trainer.facts))
    return trainer


def _scores(names: list[str], p: EvalPrediction) -> dict[str, float]:
    labels = np.asarray(p.label_ids)  # of a language model (n, t), and not read
    return protocol.scores(names, np.asarray(p.predictions), labels.reshape(len(labels), -1).T[0])


def longest_sequence(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    data: TaskData,
) -> int:
    """Tokens of the longest sequence that training meets; a target may be the longer one.

    Raises:
        UserError: rows are padded to more than the model has positions for.
    """
    text = text_to_text(model.config, config.task, tokenizer)
    longest, padded = data.max_tokens, config.task.max_length
    if config.task.pad_to_max_length:
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and tokenizer is not None:
            positions = min(positions, tokenizer.model_max_length)  # some count from 2
            if padded > positions:
                raise UserError(
                    f"task.pad_to_max_length=true pads rows to task.max_length={padded}, and "
                    f"model={config.model.name} has {positions} positions; lower task.max_length"
                )
        longest = padded
    return max([longest, *map(len, text.targets if text else [])])


def longest_batch(data: Dataset, size: int) -> list[dict[str, Any]]:
    """The ``size`` longest training samples: the batch that decides whether a run fits."""
    lengths = np.array([len(ids) for ids in data["input_ids"]])
    order = np.argsort(-lengths, kind="stable")[:size]
    return [data[int(i)] for i in order]


def describe_metrics(config: RunConfig, trainer: Trainer, facts: BatchFacts) -> dict[str, Any]:
    """The section ``metrics`` of a record, from the Trainer's log of evaluations.

    Raises:
        UserError: nothing was evaluated.
    """
    epochs: dict[float, dict[str, Any]] = {}
    splits = sorted(trainer.eval_dataset, key=len, reverse=True)  # one name may begin with another
    for entry in trainer.state.log_history:
        for key, value in entry.items():
            split = next((split for split in splits if key.startswith(f"eval_{split}_")), None)
            name = key.removeprefix(f"eval_{split}_")
            if split is not None and not name.endswith(("runtime", "_per_second")):
                at = {"epoch": entry["epoch"], "step": entry["step"]}
                epochs.setdefault(entry["step"], at)[of_scores(split) + name] = value
    if not epochs:
        raise UserError("training ended before any evaluation; raise training.max_steps")
    per_epoch, main = list(epochs.values()), config.task.metrics[0]
    return {
        **protocol.summary(per_epoch, main),
        "per_epoch": per_epoch,
        "train_loss": facts.mean_loss,
        "loss_curve": facts.mean_curve,
        **stopped(config, trainer.state),
    }
