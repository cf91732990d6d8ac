"""One run: config -> record. The whole main job on one screen.

load data and model -> tune -> sample -> train -> evaluate -> measure ->
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
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from experiments.config import LoggingConfig, RunConfig, as_record
from experiments.errors import UserError
from experiments.records.provenance import provenance
from experiments.records.record import (
    RunRecord,
    check_writable,
    read_record,
    record_path,
    write_record,
)
from experiments.records.running import marked
from experiments.run import checkpoints, measure, training, tuning
from experiments.run.attribution import measure_alone
from experiments.run.memory import memory_config, save_memory
from experiments.run.models import load_architecture, load_model, load_tokenizer, model_name
from experiments.run.probe import VarianceProbe
from experiments.run.summary import show
from experiments.run.tasks import TaskData, load_task
from experiments.run.text2text import text_to_text
from wtacrs import Handle

CHECKPOINTS = Path("outputs/checkpoints")


class RunError(UserError):
    """The run did not complete; its record, if it got that far, says why."""


def run(config: RunConfig) -> RunRecord:
    """Carry out the run that ``config`` describes, or return the record it has already.

    Raises:
        RunError: bad input (nothing was trained), or a failure (recorded).
        KeyboardInterrupt: after the record has been written.
    """
    try:
        config = replace(config, model=replace(config.model, name=model_name(config.model)))
        load_plugins(config)
        path = record_path(as_record(config))
        check_writable(path.parent)
        done = existing(path, config.overwrite)
    except UserError as error:
        raise RunError(str(error)) from error
    if done is not None:
        print(f"skipped, completed before: {path}; overwrite=true runs it again")
        return done
    record = RunRecord("failed", as_record(config), provenance=provenance())
    started = time.perf_counter()
    try:
        with marked(path, record.config):
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


def load_plugins(config: RunConfig) -> None:
    """Import the plugins, and hold the estimator against all that there are then.

    Raises:
        UserError: a module that cannot be imported, or an estimator that none of them brings.
    """
    for module in config.plugins:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a user's module does while it is imported
            raise UserError(
                f"plugins: module {module!r} cannot be imported ({type(error).__name__}: {error}); "
                "name a module on the Python path, say my_estimators for my_estimators.py in this "
                "folder"
            ) from error
    memory_config(config)


def check_probes(config: RunConfig, rows: int) -> None:
    """Raise UserError unless a probe comes before training ends."""
    steps = config.training.max_steps
    if steps < 0:
        steps = math.ceil(math.ceil(rows / config.training.batch_size) * config.training.epochs)
    if min(config.measure.probe_steps or (0,)) >= steps:
        raise UserError(
            f"measure.probe_steps={[*(config.measure.probe_steps or ())]}, counted from 0, lie "
            f"beyond the {steps} steps of this run: nothing would be probed"
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


def carry_out(config: RunConfig, record: RunRecord, folder: Path) -> None:
    """Load, train, measure; fills the sections of ``record`` as they become known."""
    tokenizer, data, model, handle = prepare(config)
    sampler = handle.sampler
    if config.measure.alone:
        measured = measure_alone(config, model, tokenizer, data, sampler)
        record.memory, record.attribution = measured
        record.sampling = tuning.describe_sampling(sampler)
        return
    if config.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    resume_from = checkpoints.keep_last_checkpoint(folder)
    probe = None
    if sampler is not None and config.measure.probe_steps is not None:
        check_probes(config, len(data.train))
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

    record.metrics = training.describe_metrics(config, trainer, facts)
    record.throughput = measure.describe_throughput(timer, facts)
    record.sampling = tuning.describe_sampling(sampler)
    if config.measure.memory:
        rows = training.longest_batch(data.train, config.training.batch_size)
        record.memory = measure.measure_memory(trainer, model, rows, sampler)
    if probe is not None:
        record.variance = {"probes": probe.results}
    shutil.rmtree(folder, ignore_errors=True)


def prepare(
    config: RunConfig,
) -> tuple[PreTrainedTokenizerBase | None, TaskData, PreTrainedModel, Handle]:
    """Tokenizer, data, the model as it will train, and what was done to it."""
    set_seed(config.seed)  # the new head, dropout and the order of the data
    tokenizer = load_tokenizer(config.model)
    text = text_to_text(load_architecture(config.model), config.task, tokenizer)
    data = load_task(config.task, tokenizer, config.seed, None if text is None else text.input)
    model = load_model(config.model, data.num_labels, data.regression)
    max_tokens = training.longest_sequence(config, model, tokenizer, data)
    tuning.tune(model, config.tuning)
    if config.training.precision == "bf16":
        model.to(torch.bfloat16)
    handle = save_memory(model, config, len(data.train), max_tokens)
    return tokenizer, data, model, handle


def prepare_logging(config: LoggingConfig) -> None:
    """Tell wandb of the group ``logging``.

    Raises:
        UserError: it is asked for and not installed.
    """
    if config.name == "wandb":
        if importlib.util.find_spec("wandb") is None:
            raise UserError("logging=wandb needs a package: pip install wandb, or logging=none")
        os.environ.setdefault("WANDB_PROJECT", config.project or "")
        os.environ.setdefault("WANDB_MODE", config.mode or "")


def status_of(error: BaseException) -> str:
    """The status of a run that ended with ``error``."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    # torch has no class of its own for a failed host allocation.
    no_host_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or no_host_memory:
        return "out_of_memory"
    return "failed"
