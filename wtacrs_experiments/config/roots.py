"""The two commands: what a run is, what a plan is, and which keys contradict each other."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from wtacrs_experiments.config.build import left_out
from wtacrs_experiments.config.groups import (
    FULL,
    EstimatorConfig,
    MemoryChoice,
    ModelConfig,
    TuningConfig,
    check_estimator,
)
from wtacrs_experiments.config.known import (
    BITSANDBYTES,
    LADDERS,
    NOTHING,
    OPTIMIZERS,
    PRECISIONS,
    TEXT_TO_TEXT,
)
from wtacrs_experiments.config.rules import (
    check_budget,
    check_choice,
    check_module,
    check_range,
    check_text,
    wrong,
)
from wtacrs_experiments.config.running import (
    MOST_SAMPLES,
    LoggingConfig,
    MeasureConfig,
    TrainingConfig,
    check_method,
)
from wtacrs_experiments.config.task import OWN, TaskConfig
from wtacrs_experiments.errors import UserError

UNITS = {
    **{"MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
    **{"MB": 10**6, "GB": 10**9, "TB": 10**12},
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: python run.py."""

    model: ModelConfig
    task: TaskConfig
    tuning: TuningConfig
    estimator: EstimatorConfig
    memory: MemoryChoice = field(default_factory=MemoryChoice)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    plugins: tuple[str, ...] = ()  # modules to import first, say one with an estimator of yours
    budget: float = 0.3  # share of the rows (batch x token) kept, in (0, 1]
    seed: int = 0
    results_dir: str = "outputs/runs"  # one JSON record a run; make has published ones
    overwrite: bool = False  # true: run again what has a record already
    mode: str = "train"  # measure: memory alone, as measure=memory; plan: see PlanConfig

    def __post_init__(self) -> None:
        check_text("results_dir", self.results_dir)
        for module in self.plugins:
            check_module("plugins", module)
        _settle(self, self.plugins)
        check_choice("mode", self.mode, ("train", "measure"))
        if self.measure.alone:
            object.__setattr__(self, "mode", "measure")
        elif self.mode == "measure":
            raise wrong("mode", "measure", "measures memory alone, as measure=memory does")
        self._check_fit()
        self._check_saving()
        self._check_probes()

    @property
    def saves_model(self) -> bool:
        """Whether the trained model is kept: if asked, else what is tuned on rows of one's own."""
        if self.training.save_model is None:
            can = self.tuning.name != "lst" and not self.measure.alone and not self._lacks_base
            return self.task.source in OWN and can
        return self.training.save_model

    @property
    def _lacks_base(self) -> bool:
        """Whether an adapter of it would have no base to be put on."""
        return self.tuning.name == "lora" and self.model.source == "scratch"

    def _check_saving(self) -> None:
        """What is to be saved is there, and can be loaded again."""
        if self.saves_model and self.tuning.name == "lst":
            rule = "cannot be: no from_pretrained knows the ladder of tuning=lst; choose another"
            raise wrong("training.save_model", True, f"{rule} tuning, or false")
        if self.saves_model and self._lacks_base:
            rule = "cannot be: an adapter from scratch has no base; tuning=full, or false"
            raise wrong("training.save_model", True, rule)
        if self.saves_model and self.measure.alone:
            raise wrong("training.save_model", True, "saves nothing: mode=measure does not train")

    def _check_fit(self) -> None:
        """The model can read the task, and answer."""
        model, task = self.model, self.task
        if model.source == "scratch" and task.source not in ("digits", "sft"):
            raise UserError(
                f"task={task.name} is text, which model={model.name}, from scratch and without a "
                "tokenizer, cannot read; choose a model with a tokenizer, or task=digits"
            )
        if model.source != "scratch" and task.source == "digits":
            raise UserError(
                f"task={task.name} is pixels, which are no tokens of model={model.name}; choose "
                "model=digits_tiny, or a task of text"
            )
        if model.model_type in TEXT_TO_TEXT and task.text_to_text is None:
            raise UserError(no_words(task.name))

    def _check_probes(self) -> None:
        """Something is probed, and with what the run learns."""
        steps, end = self.measure.probe_steps, self.training.max_steps
        if steps is None:
            return
        if self.estimator.name == "full":
            raise UserError(
                f"measure.probe_steps={[*steps]} with estimator=full samples no layer, so there is "
                "no error to probe; choose another estimator, and memory=linear or lean"
            )
        if 0 < end <= min(steps):
            rule = f"lie beyond training.max_steps={end}, counted from 0: nothing would be probed"
            raise wrong("measure.probe_steps", steps, rule)
        for method in self.measure.methods or ():
            centre = check_method(method, self.plugins)
            if centre == "lowrank" and self.estimator.center != "lowrank":
                rule = "needs directions, and this run learns none; train with estimator=pps or"
                raise wrong("measure.methods", method, f"{rule} estimator.center=lowrank")


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What a training step takes, without weights and without a GPU: python run.py mode=plan."""

    model: ModelConfig
    tuning: TuningConfig
    estimator: EstimatorConfig
    memory: MemoryChoice = field(default_factory=MemoryChoice)
    budget: float = 0.3  # share of the rows (batch x token) kept, in (0, 1]
    batch_size: int = 32
    max_length: int = 128  # tokens of each sample
    target_length: int = 2  # tokens of the answer, of T5: a label word and the end
    precision: str = "fp32"  # as training.precision of a run; so are the next two
    optimizer: str = left_out(OPTIMIZERS[0])
    gradient_accumulation_steps: int = left_out(1)
    device: str = "cuda"  # or cpu: whose kernels are counted; no such device is needed
    fits: str | None = None  # a memory, 24GiB or 80GB: the largest batch that fits is searched for
    output: str = "table"  # or json
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = ("batch_size", "max_length", "target_length", "gradient_accumulation_steps")
        for name in sizes:
            check_range(name, getattr(self, name), 1, most=MOST_SAMPLES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        if self.optimizer in BITSANDBYTES:
            rule = "cannot be planned: kernels of bitsandbytes make its states; measure it, with"
            raise wrong("optimizer", self.optimizer, f"{rule} mode=measure on the GPU")
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("device", self.device, ("cuda", "cpu"))
        check_choice("output", self.output, ("table", "json"))
        if self.fits is not None:
            parse_bytes(self.fits)
        _settle(self, ())
        if self.memory.recompute == "checkpoint_offload":
            raise UserError(
                "memory=checkpoint_offload cannot be planned, since fake tensors are all on the "
                "host; plan memory=checkpoint, of whose saved activations it moves the inputs of "
                "blocks"
            )


def _settle(config: RunConfig | PlanConfig, plugins: tuple[str, ...]) -> None:
    """Check what both have, and bring it to its plainest form: equal runs are written alike."""
    check_budget("budget", config.budget)
    check_range("seed", config.seed, 0, most=2**32 - 1)
    estimator, memory, budget = config.estimator, config.memory, config.budget
    check_estimator(estimator, plugins)
    check_ladder(config.model, config.tuning)
    if not memory.sample_linears:
        estimator = FULL
    if estimator.name == "full":
        budget = 1.0  # so that a sweep over budgets trains the baseline once
        exact = {key: getattr(memory, key) for key in NOTHING if key != "sample_linears"}
        if memory.attention == "sampled":
            raise UserError(
                f"memory={memory.name}: attention='sampled' needs a sampling estimator, not full"
            )
        if memory.name == "linear" and exact.items() <= NOTHING.items():
            memory = MemoryChoice(name="plain")
    estimator = replace(estimator, center=estimator.centring)
    settled: dict[str, Any] = {"estimator": estimator, "memory": memory, "budget": budget}
    for name, value in settled.items():
        object.__setattr__(config, name, value)


def check_ladder(model: ModelConfig, tuning: TuningConfig) -> None:
    """LST knows the type of the model, where the config tells it."""
    if tuning.name == "lst" and model.model_type not in (None, *LADDERS):
        raise UserError(
            f"tuning=lst has no ladder for model={model.name}, of type {model.model_type!r}; "
            f"choose a model of type {', '.join(LADDERS)}, or another tuning"
        )


def no_words(task: str) -> str:
    """Why a text-to-text model cannot answer."""
    return (
        f"task={task} has no words for its labels, which a text-to-text model must write; give "
        "task.text_to_text in its YAML file, as conf/task/rte.yaml has it, or choose a model that "
        "classifies, say model=bert_base"
    )


def parse_bytes(text: str, key: str = "fits=") -> int:
    """Bytes from "24GiB" (2^30) or "80GB" (10^9).

    Raises:
        UserError: no number above 0 with a unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text.strip())
    if match is None or match[2] not in UNITS or not float(match[1]) > 0:
        raise UserError(
            f"{key}{text} is no memory; give a number above 0 and one of the units "
            f"{', '.join(UNITS)}, for instance {key}24GiB"
        )
    return int(float(match[1]) * UNITS[match[2]])
