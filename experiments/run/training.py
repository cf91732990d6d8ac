"""Training with transformers' Trainer: its loop, our callbacks."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean as mean
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

from experiments.config import RunConfig
from experiments.errors import UserError
from experiments.run import protocol, sft
from experiments.run.ranks import gather
from experiments.run.tasks import TaskData
from experiments.run.text2text import is_text_to_text, text_to_text
from experiments.run.trainers import OrderedTrainer, TextTrainer
from wtacrs.facts import IGNORED

CURVE_STEPS = 10  # of a point


class BatchFacts:
    """Hooks of a model that count what training steps process.

    Sums stay on the device, since reading one would stop it, and are added to in place: nothing
    grows with the run, and a step whose memory is measured shows none of ours.

    Attributes:
        samples: of each step.
        tokens: sum of the non-padding ones after the first ``warmup_steps`` steps (source and
            target, where the answer is text).
        loss_sum, steps: of the losses, in float64, and how many they are; those before a
            resumption too.
        curve: the mean loss of each ten steps, and the number of the last of them.
    """

    def __init__(self, model: PreTrainedModel, warmup_steps: int = 0) -> None:
        self.warmup_steps = warmup_steps
        self.samples: list[int] = []
        self.tokens: Tensor | int = 0
        self.loss_sum: Tensor | float = 0.0
        self.steps = 0
        self.curve: dict[str, list[float]] = {"step": [], "loss": []}
        self._sum_before = 0.0  # of the point of the curve that comes next
        self._text_to_text = is_text_to_text(getattr(model, "config", None))
        model.register_forward_pre_hook(self, with_kwargs=True)
        model.register_forward_hook(self._after)

    def __call__(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if model.training:
            mask = kwargs["attention_mask"]
            self.samples.append(mask.shape[0])
            tokens = mask.sum(dtype=torch.int64)
            if self._text_to_text:
                tokens = tokens + (kwargs["labels"] != IGNORED).sum()
            total = torch.as_tensor(self.tokens, device=tokens.device)
            self.tokens = total.add_(tokens, alpha=int(len(self.samples) > self.warmup_steps))

    def _after(self, model: Any, args: Any, output: Any) -> None:
        if model.training:
            loss = output.loss.detach()
            total = torch.as_tensor(self.loss_sum, dtype=torch.float64, device=loss.device)
            self.loss_sum = total.add_(loss)
            self.steps += 1
            if self.steps % CURVE_STEPS == 0:
                now = float(self.loss_sum)
                self.curve["step"].append(self.steps)
                self.curve["loss"].append((now - self._sum_before) / CURVE_STEPS)
                self._sum_before = now

    @property
    def mean_loss(self) -> float:
        """Mean loss over all training steps so far; not finite once a loss was not."""
        return mean(gather([float(self.loss_sum) / self.steps]))

    @property
    def mean_curve(self) -> dict[str, list[float]]:
        """``curve``, its losses the means over processes."""
        losses = zip(*gather([self.curve["loss"]]), strict=True)
        return {"step": self.curve["step"], "loss": [mean(each) for each in losses]}

    def state_dict(self) -> dict[str, Any]:
        """What the losses of the whole run need; times, and so tokens, are of each part."""
        losses = {"loss_sum": float(self.loss_sum), "steps": self.steps}
        return {**losses, "curve": self.curve, "sum_before": self._sum_before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.loss_sum, self.steps = state["loss_sum"], state["steps"]
        self.curve, self._sum_before = state["curve"], state["sum_before"]


def training_arguments(config: RunConfig, folder: Path) -> TrainingArguments:
    """The Trainer's arguments for a run."""
    t = config.training
    steps, share = t.checkpoint_steps, t.batch_size // t.world_size
    # Of a language model logits (b, t, vocabulary) have to fit, as they do in training.
    evaluated = min(t.eval_batch_size, share) if config.task.source == "sft" else t.eval_batch_size
    # Said plainly: without an accelerator the Trainer refuses bf16 unless told to use the CPU.
    on_cpu = t.device == "cpu" or not torch.cuda.is_available()  # Apple's GPU has no float64
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=t.epochs,
        max_steps=t.max_steps,
        per_device_train_batch_size=share,
        per_device_eval_batch_size=evaluated,
        learning_rate=t.learning_rate,
        weight_decay=t.weight_decay,
        warmup_steps=t.warmup_ratio,  # below 1 it is a share of all steps
        max_grad_norm=t.max_grad_norm,
        bf16=t.precision == "bf16-autocast",
        use_cpu=on_cpu,
        train_sampling_strategy="group_by_length" if t.group_by_length else "random",
        seed=config.seed,
        data_seed=config.seed,
        # A classifier's loss is a mean already: to count items over processes would scale it.
        average_tokens_across_devices=False,
        eval_strategy="epoch",
        logging_strategy="epoch" if config.logging.name == "none" else "steps",
        logging_steps=10,
        logging_nan_inf_filter=False,  # a loss that is not finite is not replaced by others
        save_strategy="steps" if steps > 0 else "no",
        save_steps=steps if steps > 0 else 500,
        report_to=[] if config.logging.name == "none" else [config.logging.name],
        run_name=folder.name,
        remove_unused_columns=False,  # sample_ids are ours; wtacrs takes them out
        disable_tqdm=not (t.progress and sys.stderr.isatty()),
        dataloader_pin_memory=not on_cpu,
    )


class LossBar(ProgressCallback):
    """The Trainer's bars with the loss beside them, in place of a dictionary every ten steps."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.4f}")


def pad_pixels(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The collator of a task without tokenizer."""
    batch = {
        key: pad_sequence([torch.tensor(row[key]) for row in rows], batch_first=True)
        for key in ("input_ids", "attention_mask")
    }
    for key in rows[0].keys() - batch.keys():
        batch[key] = torch.tensor([row[key] for row in rows])
    return batch


def build_trainer(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    data: TaskData,
    folder: Path,
    callbacks: list[TrainerCallback],
) -> Trainer:
    """A Trainer over the task, padding each batch to its own longest sequence."""
    names = list(config.task.metrics)
    text = text_to_text(model.config, config.task, tokenizer)
    collate: Any = pad_pixels if tokenizer is None else DataCollatorWithPadding(tokenizer)

    def score(p: EvalPrediction) -> dict[str, float]:
        labels = np.asarray(p.label_ids)  # of a language model (n, t), and not read
        return protocol.scores(
            names, np.asarray(p.predictions), labels.reshape(len(labels), -1).T[0]
        )

    more: dict[str, Any] = {}
    if config.task.source == "sft" and tokenizer is not None:
        collate, more["preprocess_logits_for_metrics"] = sft.collator(tokenizer), sft.sums
    trainer = (OrderedTrainer if text is None else TextTrainer)(
        model=model,
        args=training_arguments(config, folder),
        train_dataset=data.train,
        eval_dataset=dict(data.validation),
        data_collator=collate if text is None else text.collate,
        compute_metrics=score,
        callbacks=callbacks,
        **more,
    )
    if isinstance(trainer, TextTrainer) and text is not None:
        trainer.text = text
    trainer.remove_callback(PrinterCallback)  # the report at the end says it all
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(LossBar)
    return trainer


def longest_sequence(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    data: TaskData,
) -> int:
    """Tokens of the longest sequence that training meets; a target may be the longer one."""
    text = text_to_text(model.config, config.task, tokenizer)
    return max([data.max_tokens, *map(len, text.targets if text else [])])


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
    for entry in trainer.state.log_history:
        for key, value in entry.items():
            for prefix in ("eval_validation_mismatched_", "eval_validation_"):
                name = key.removeprefix(prefix)
                if name != key and not name.endswith(("runtime", "_per_second")):
                    at = {"epoch": entry["epoch"], "step": entry["step"]}
                    mismatched = "mismatched_" if "mismatched" in prefix else ""
                    epochs.setdefault(entry["step"], at)[mismatched + name] = value
                    break
    if not epochs:
        raise UserError("training ended before any evaluation; raise training.max_steps")
    per_epoch, main = list(epochs.values()), config.task.metrics[0]
    return {
        **protocol.summary(per_epoch, main),
        "per_epoch": per_epoch,
        "train_loss": facts.mean_loss,
        "loss_curve": facts.mean_curve,
    }
