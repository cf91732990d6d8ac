"""The groups ``training``, ``measure`` and ``logging`` of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wtacrs_experiments.config.build import counted, left_out
from wtacrs_experiments.config.known import CENTRES, ESTIMATORS, GRAD_NORMS, OPTIMIZERS, PRECISIONS
from wtacrs_experiments.config.rules import (
    check_budget,
    check_choice,
    check_distinct,
    check_range,
    wrong,
)

MOST_STEPS = 2**40
WARMUP_RATIO = 0.06
MOST_SAMPLES = 2**20  # of a batch; more is a slip of the pen, and sizes of tensors would overflow


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """AdamW and linear decay; the usual fine-tuning values for encoders."""

    epochs: float = counted(3)
    max_steps: int = -1  # above 0 it ends the run, whatever the epochs say
    batch_size: int = 32
    # Batches of batch_size whose gradients are added up to one step; memory is that of one batch.
    gradient_accumulation_steps: int = left_out(1)
    eval_batch_size: int = 128  # of task=sft at most batch_size: its logits are large
    optimizer: str = left_out(OPTIMIZERS[0])  # as the Trainer's optim; 8-bit: of bitsandbytes
    learning_rate: float = 5.0e-5
    weight_decay: float = 0.01
    warmup_ratio: float = WARMUP_RATIO  # of all steps
    warmup_steps: int | None = left_out()  # in its place: how many
    max_grad_norm: float = 1.0
    group_by_length: bool = False  # batches of samples of about the same length, so less padding
    # bf16-autocast: products in bf16; bf16: parameters, gradients and optimizer state too.
    precision: str = "fp32"
    device: str = "auto"  # or cpu
    # Above 0: end after so many epochs in which the task's first metric was no better than before.
    early_stopping_patience: int | None = left_out()
    checkpoint_steps: int = 0  # above 0: save every so many steps, and resume from the last one
    checkpoint_minutes: float = 5  # the same by the clock; 0: not
    save_model: bool | None = left_out()  # beside the record; null: of tasks of one's own
    progress: bool = True
    world_size: int = left_out(1)  # processes that share a batch; torchrun says how many

    def __post_init__(self) -> None:
        check_range("training.epochs", self.epochs, above=0, most=100_000)
        for name in ("batch_size", "eval_batch_size", "gradient_accumulation_steps"):
            check_range(f"training.{name}", getattr(self, name), above=0, most=MOST_SAMPLES)
        if self.max_steps != -1:
            end = "-1 leaves the end to training.epochs"
            if self.max_steps == 0:
                raise wrong("training.max_steps", 0, f"trains nothing; {end}")
            check_range("training.max_steps", self.max_steps, 1, most=MOST_STEPS, remedy=end)
        for name in ("learning_rate", "weight_decay", "max_grad_norm", "checkpoint_steps"):
            check_range(f"training.{name}", getattr(self, name), 0)
        check_range("training.checkpoint_minutes", self.checkpoint_minutes, 0)
        check_choice("training.optimizer", self.optimizer, OPTIMIZERS)
        self._check_warmup()
        self._check_stopping()
        if self.world_size < 1 or self.batch_size % self.world_size:
            rule = f"processes cannot share a batch of training.batch_size={self.batch_size} evenly"
            raise wrong("training.world_size", self.world_size, rule)
        check_choice("training.precision", self.precision, PRECISIONS)
        check_choice("training.device", self.device, ("auto", "cpu"))

    def steps(self, rows: int) -> int:
        """Steps of the optimizer, in all epochs, over a training set of ``rows``."""
        if self.max_steps > 0:
            return self.max_steps
        batches = math.ceil(rows / self.batch_size)
        return math.ceil(math.ceil(batches / self.gradient_accumulation_steps) * self.epochs)

    def _check_warmup(self) -> None:
        ratio, steps = self.warmup_ratio, self.warmup_steps
        if not 0 <= ratio < 1:
            rule = "is a share of all steps, in [0, 1), for instance 0.06"
            many = "; for a number of steps: training.warmup_steps" if ratio >= 1 else ""
            raise wrong("training.warmup_ratio", ratio, rule + many)
        if steps is None:
            return
        check_range("training.warmup_steps", steps, 0, most=MOST_STEPS)
        if ratio not in (0, WARMUP_RATIO):
            rule = f"and training.warmup_ratio={ratio:g} both say how long it is; leave one out"
            raise wrong("training.warmup_steps", steps, rule)
        object.__setattr__(self, "warmup_ratio", 0.0)

    def _check_stopping(self) -> None:
        if (patience := self.early_stopping_patience) is None:
            return
        remedy = "null trains to the end"
        check_range("training.early_stopping_patience", patience, 1, remedy=remedy)
        if self.max_steps == -1 and patience >= self.epochs:
            rule = f"would never stop a run of training.epochs={self.epochs:g}; give fewer"
            raise wrong("training.early_stopping_patience", patience, rule)


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What is measured of a run, beside its accuracy."""

    warmup_steps: int = 5  # steps left out of the throughput
    memory: bool = True  # one training step on the longest batch, after training
    alone: bool = left_out(False)  # no training and no evaluation: memory, and who holds it
    # Steps, from 0, at which the error of dW is measured; null: not at all.
    probe_steps: tuple[int, ...] | None = left_out()
    methods: tuple[str, ...] | None = left_out()  # estimators, or with a centre: pps/lowrank
    budgets: tuple[float, ...] | None = left_out()
    sources: tuple[str, ...] | None = left_out()  # of gradient norms; oracle: the true ones
    code_sha256: str | None = left_out()  # of plugins with some of the methods; a run finds it out

    def __post_init__(self) -> None:
        check_range("measure.warmup_steps", self.warmup_steps, 0)
        if self.alone and not self.memory:
            raise wrong("measure.memory", False, "measures nothing with measure=memory; true")
        probing = ("probe_steps", "methods", "budgets", "sources")
        if all(getattr(self, key) is None for key in probing):
            return
        for key in probing:
            if not getattr(self, key):
                rule = "probes nothing; give at least one, or measure=default"
                raise wrong(f"measure.{key}", getattr(self, key), rule)
            check_distinct(f"measure.{key}", getattr(self, key))
        if self.alone:
            raise wrong("measure.alone", True, "trains nothing, so there is nothing to probe")
        for step in self.probe_steps or ():
            check_range("measure.probe_steps", step, 0)
        for budget in self.budgets or ():
            check_budget("measure.budgets", budget)
        for source in self.sources or ():
            check_choice("measure.sources", source, (*GRAD_NORMS, "oracle"))


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """A tracker beside the record, which is all that is needed."""

    name: str = "none"
    project: str | None = left_out()
    mode: str | None = left_out()

    def __post_init__(self) -> None:
        check_choice("logging.name", self.name, ("none", "wandb"))
        if self.name == "wandb":
            if not self.project or not self.project.strip():
                raise wrong("logging.project", self.project, "must name a project of wandb")
            modes = ("offline", "online", "disabled")
            if self.mode not in modes:
                raise wrong("logging.mode", self.mode, f"is unknown; choose {', '.join(modes)}")


def check_method(method: str, plugins: tuple[str, ...]) -> str:
    """Check "pps" or "pps/lowrank"; returns what it centres."""
    estimator, _, centre = method.partition("/")
    if (estimator not in ESTIMATORS[1:] and not plugins) or (centre or "none") not in CENTRES:
        estimators, centres = ", ".join(ESTIMATORS[1:]), ", ".join(CENTRES)
        rule = f"is unknown; give an estimator ({estimators}), or one with what it centres"
        raise wrong("measure.methods", method, f"{rule} ({centres}), say pps/classes")
    return centre or "none"
