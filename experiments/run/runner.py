"""One run: config -> record. The whole main job on one screen.

compose and validate -> load data and model -> tune -> sample -> train -> evaluate -> measure ->
write the record. A run that has a completed record is skipped; one that failed or was cut off is
run again.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from experiments.errors import UserError
from experiments.records.provenance import provenance
from experiments.records.record import (
    RunRecord,
    check_writable,
    read_record,
    record_path,
    write_record,
)
from experiments.run import checkpoints, measure, training, tuning
from experiments.run.attribution import measure_alone
from experiments.run.memory import check_memory, save_memory
from experiments.run.models import load_architecture, load_model, load_tokenizer
from experiments.run.probe import VarianceProbe
from experiments.run.summary import show
from experiments.run.tasks import TaskData, load_task
from experiments.run.text2text import text_to_text
from wtacrs import Handle

CHECKPOINTS = Path("outputs/checkpoints")


class RunError(RuntimeError):
    """The run did not complete; its record, if it got that far, says why."""


def run(config: DictConfig) -> RunRecord:
    """Carry out the run that ``config`` describes, or return the record it has already.

    Raises:
        RunError: bad input (nothing was trained), or a failure (recorded).
        KeyboardInterrupt: after the record has been written.
    """
    try:
        config = resolve(config)
        path = record_path(OmegaConf.to_container(config))  # type: ignore[arg-type]
        check_writable(path.parent)
        done = existing(path, config.overwrite)
    except UserError as error:
        raise RunError(str(error)) from error
    if done is not None:
        print(f"skipped, completed before: {path}")
        return done
    record = RunRecord("failed", OmegaConf.to_container(config), provenance=provenance())  # type: ignore[arg-type]
    started = time.perf_counter()
    try:
        carry_out(config, record, CHECKPOINTS / path.stem)
        record.status = "completed"
    except BaseException as error:
        record.status = status_of(error)
        record.error = {"type": type(error).__name__, "message": str(error)}
        if isinstance(error, KeyboardInterrupt):
            raise
        if record.status == "failed" and not isinstance(error, UserError):
            traceback.print_exc()
        raise RunError(f"{str(error) or type(error).__name__}\nrecord: {path}") from None
    finally:
        record.provenance["seconds"] = time.perf_counter() - started
        write_record(record, path)
        if config.logging.name == "wandb" and (wandb := sys.modules.get("wandb")):
            wandb.finish()  # or the next run of a sweep would log into this one
    show(record, path)
    return record


def resolve(config: DictConfig) -> DictConfig:
    """The config with every interpolation resolved and its values checked.

    Raises:
        UserError: a value outside its rule.
    """
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))  # type: ignore[assignment]
    for module in config.plugins:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"plugins: module {module!r} cannot be imported ({error}); name a module on the "
                "Python path, say my_estimators for my_estimators.py in this folder"
            ) from error
    check_numbers(config)
    check_memory(config)
    tuning.check_tuning(config.tuning)
    config.estimator.center = tuning.sampling_config(config).centring  # "auto" is one of them
    config.budget = float(config.budget)  # 1 and 1.0 are one run
    if config.estimator.name == "full":
        config.budget = 1.0  # so that a sweep over budgets trains the baseline once
    for name in ("batch_size", "eval_batch_size", "epochs"):
        if config.training[name] <= 0:
            raise UserError(f"training.{name}={config.training[name]} must be above 0")
    for name, choices in (("precision", ("fp32", "bf16")), ("device", ("auto", "cpu"))):
        if config.training[name] not in choices:
            raise UserError(
                f"training.{name}={config.training[name]!r} is unknown; "
                f"choose {' or '.join(choices)}"
            )
    return config


def check_numbers(config: DictConfig) -> None:
    """Raise UserError for a value that is no number where one is needed."""
    integers = [f"training.{name}" for name in ("batch_size", "eval_batch_size", "max_steps")]
    integers += ["training.checkpoint_steps", "measure.warmup_steps", "seed"]
    numbers = ["learning_rate", "weight_decay", "warmup_ratio", "max_grad_norm", "epochs"]
    for name in [*integers, *(f"training.{number}" for number in numbers), "budget"]:
        value = OmegaConf.select(config, name)
        whole = name in integers
        if type(value) is not int and (whole or type(value) is not float):
            raise UserError(f"{name}={value!r} must be {'an integer' if whole else 'a number'}")
        if not math.isfinite(value) or (value < 0 and name != "training.max_steps"):
            raise UserError(f"{name}={value} must be finite and not below 0")
    if config.training.max_steps == 0:
        raise UserError("training.max_steps=0 trains nothing; -1 leaves the end to training.epochs")
    if config.training.warmup_ratio >= 1:
        raise UserError(
            f"training.warmup_ratio={config.training.warmup_ratio} is a share of all steps, in "
            "[0, 1), for instance 0.06"
        )


def existing(path: Path, overwrite: bool) -> RunRecord | None:
    """The completed record at ``path``, if the run need not be done again."""
    if overwrite or not path.exists():
        return None
    record = read_record(path)
    if record.status == "completed":
        return record
    print(f"running again, it was {record.status}: {path}")
    return None


def carry_out(config: Any, record: RunRecord, folder: Path) -> None:
    """Load, train, measure; fills the sections of ``record`` as they become known."""
    tokenizer, data, model, handle = prepare(config)
    sampler = handle.sampler
    if config.measure.get("alone"):
        measured = measure_alone(config, model, tokenizer, data, sampler)
        record.memory, record.attribution = measured
        record.sampling = tuning.describe_sampling(sampler)
        return
    if config.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    resume_from = checkpoints.keep_last_checkpoint(folder)
    probe = None
    if sampler is not None and "probe_steps" in config.measure:
        probe = VarianceProbe(model, sampler, config.measure)
    facts = training.BatchFacts(model, config.measure.warmup_steps)
    saver = checkpoints.Checkpoints(handle, facts, probe, resume_from)
    timer = measure.StepTimer()
    callbacks: list[TrainerCallback] = [timer, saver]
    prepare_logging(config.logging)
    trainer = training.build_trainer(config, model, tokenizer, data, folder, callbacks)
    if resume_from is not None:
        print(f"resuming from {resume_from}")
    trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))

    record.metrics = training.describe_metrics(config, trainer, facts.mean_loss)
    record.throughput = measure.describe_throughput(timer, facts)
    record.sampling = tuning.describe_sampling(sampler)
    if config.measure.memory:
        rows = training.longest_batch(data.train, config.training.batch_size)
        record.memory = measure.measure_memory(trainer, model, rows, sampler)
    if probe is not None:
        record.variance = {"probes": probe.results}
    shutil.rmtree(folder, ignore_errors=True)


def prepare(
    config: Any,
) -> tuple[PreTrainedTokenizerBase | None, TaskData, PreTrainedModel, Handle]:
    """Tokenizer, data, the model as it will train, and what was done to it."""
    set_seed(config.seed)  # the new head, dropout and the order of the data
    tokenizer = load_tokenizer(config.model)
    text = text_to_text(load_architecture(config.model), config.task, tokenizer)
    data = load_task(config.task, tokenizer, config.seed, None if text is None else text.input)
    model = load_model(config.model, data.num_labels, data.regression)
    max_tokens = training.longest_sequence(config, model, tokenizer, data)
    tuning.tune(model, config.tuning)
    handle = save_memory(model, config, len(data.train), max_tokens)
    return tokenizer, data, model, handle


def prepare_logging(config: Any) -> None:
    """Tell wandb of the group ``logging``.

    Raises:
        UserError: it is asked for and not installed.
    """
    if config.name == "wandb":
        if importlib.util.find_spec("wandb") is None:
            raise UserError("logging=wandb needs a package: pip install wandb, or logging=none")
        os.environ.setdefault("WANDB_PROJECT", config.project)
        os.environ.setdefault("WANDB_MODE", config.mode)


def status_of(error: BaseException) -> str:
    """The status of a run that ended with ``error``."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    # torch has no class of its own for a failed host allocation.
    no_host_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or no_host_memory:
        return "out_of_memory"
    return "failed"
