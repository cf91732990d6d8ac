"""One run: config -> record. The whole main job on one screen.

load data and model -> tune -> sample -> train -> evaluate -> measure -> save the model ->
write the record. A run that has a completed record is skipped; one that failed or was cut off is
run again.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
import time
import traceback
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)

from wtacrs import ESTIMATORS, Handle
from wtacrs_experiments.config import RunConfig, as_record, known
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.claims import Claim, UnderWay, claimed
from wtacrs_experiments.records.provenance import provenance
from wtacrs_experiments.records.record import RunRecord, check_writable, record_path
from wtacrs_experiments.run import checkpoints, measure, ranks, saving, tracker, training, tuning
from wtacrs_experiments.run.attribution import measure_alone
from wtacrs_experiments.run.batch_facts import BatchFacts
from wtacrs_experiments.run.bf16 import products
from wtacrs_experiments.run.divergence import Divergence, train
from wtacrs_experiments.run.interruption import Interruption
from wtacrs_experiments.run.memory import memory_config, save_memory
from wtacrs_experiments.run.models import load_architecture, load_model, load_tokenizer, pad_alike
from wtacrs_experiments.run.outcome import RunError, existing, keep, status_of
from wtacrs_experiments.run.own_task import settle
from wtacrs_experiments.run.probe import VarianceProbe
from wtacrs_experiments.run.summary import show
from wtacrs_experiments.run.tasks import TaskData, load_task
from wtacrs_experiments.run.text2text import text_to_text

CHECKPOINTS = Path("outputs/checkpoints")


def run(config: RunConfig) -> RunRecord | None:
    """Carry out the run that ``config`` describes, or return the record it has already.

    Returns:
        The record; None where another process carries the run out.

    Raises:
        RunError: bad input (nothing was trained), or a failure (recorded).
        KeyboardInterrupt: after the record has been written.
    """
    try:
        config = settle(config)
        load_plugins(config)
        training.check_optimizer(config.training.optimizer)
        ranks.join(config)
        path = record_path(as_record(config))
        if ranks.rank() > 0:
            follow(config, path)
            return None
        check_writable(path.parent)
        model = saving.model_folder(path) if config.saves_model else None
        with ranks.leading() as lead, claimed(path, as_record(config)) as claim:
            # Looked for again: another process may just have written it.
            if (done := existing(path, config.overwrite, model)) is None:
                lead()
                return completed(config, path, claim)
            checkpoints.clear(checkpoint_folder(path), path)
        print(f"skipped, completed before: {path}; overwrite=true runs it again")
        return done
    except UnderWay as other:
        print(f"skipped, {other}")
        return None
    except RunError:
        raise
    except UserError as error:
        raise RunError(str(error)) from error
    except OSError as error:
        what = str(error) if error.filename else f"results_dir={config.results_dir}: {error}"
        raise RunError(what) from error


def follow(config: RunConfig, path: Path) -> None:
    """Carry out the share of a process that is not the first, if that one says so."""
    if ranks.follows():
        with redirect_stdout(None), Interruption() as interruption, products(config.training):
            record = RunRecord("failed", as_record(config))
            carry_out(config, record, checkpoint_folder(path), interruption)


def completed(config: RunConfig, path: Path, claim: Claim) -> RunRecord:
    """Carry out a run that is claimed and write its record, however it ends.

    Raises:
        RunError, KeyboardInterrupt: as ``run`` does.
    """
    record = RunRecord("failed", as_record(config), provenance=provenance())
    started, folder = time.perf_counter(), checkpoint_folder(path)
    with Interruption() as interruption:
        try:
            if config.overwrite:
                checkpoints.start_over(folder, path)
            tell_of_other_worlds(config, path)
            with products(config.training):
                carry_out(config, record, folder, interruption)
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
            interruption.hold()
            record.provenance["seconds"] = time.perf_counter() - started
            try:
                keep(record, path, claim)
            finally:
                tracker.finish(record)
    shutil.rmtree(folder, ignore_errors=True)
    show(record, path)
    interruption.raise_if_asked()  # a sweep ends here, too
    return record


def checkpoint_folder(path: Path) -> Path:
    """Where the checkpoints of the run with the record ``path`` lie: another one for each folder
    of results."""
    folder = hashlib.sha256(str(path.parent.resolve()).encode()).hexdigest()[:8]
    return CHECKPOINTS / f"{path.stem}-{folder}"


def tell_of_other_worlds(config: RunConfig, path: Path) -> None:
    """Say which checkpoints are of as many processes as this run does not have."""
    for size in range(1, config.training.batch_size + 1):
        if config.training.batch_size % size == 0:
            other = replace(config, training=replace(config.training, world_size=size))
            folder = checkpoint_folder(record_path(as_record(other)))
            if folder.is_dir() and folder != checkpoint_folder(path):
                print(
                    f"{folder} is of {size} processes, and this run of "
                    f"{config.training.world_size} begins anew; start {size} to go on with it"
                )


def load_plugins(config: RunConfig) -> None:
    """Import the plugins, and hold the estimator against all that there are then.

    Raises:
        UserError: a module that cannot be imported, an estimator that none of them brings, or one
            of the library's that is replaced.
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
    for name in known.ESTIMATORS[1:]:
        if not getattr(ESTIMATORS[name], "__module__", "").startswith("wtacrs."):
            raise UserError(
                f"plugins: the estimator {name!r} of the library was replaced, and its records "
                "would be taken for the library's; give yours a name of its own"
            )
    memory_config(config)


def check_probes(config: RunConfig, rows: int) -> None:
    """Raise UserError unless a probe comes before training ends."""
    steps = config.training.steps(rows)
    if min(config.measure.probe_steps or (0,)) >= steps:
        raise UserError(
            f"measure.probe_steps={[*(config.measure.probe_steps or ())]}, counted from 0, lie "
            f"beyond the {steps} steps of this run: nothing would be probed"
        )


def carry_out(
    config: RunConfig, record: RunRecord, folder: Path, interruption: Interruption
) -> None:
    """Load, train, measure, save; ``record`` fills on the way, ``folder`` has the checkpoints."""
    tokenizer, data, model, handle = prepare(config)
    sampler = handle.sampler
    if config.measure.alone:
        measured = measure_alone(config, model, tokenizer, data, sampler)
        record.memory, record.attribution = measured
        record.sampling = tuning.describe_sampling(sampler)
        return
    resume_from = checkpoints.keep_last_checkpoint(folder) if ranks.rank() == 0 else None
    resume_from = ranks.agreed(resume_from)
    probe = None
    if sampler is not None and config.measure.probe_steps is not None:
        check_probes(config, len(data.train))
        probe = VarianceProbe(model, sampler, config.measure)
    facts, timer = BatchFacts(model, config.measure.warmup_steps), measure.StepTimer()
    minutes = config.training.checkpoint_minutes
    saver = checkpoints.Checkpoints(handle, facts, probe, resume_from, minutes, interruption)
    own = [] if probe is None else [probe]
    callbacks: list[TrainerCallback] = [facts, timer, Divergence(facts), saver, interruption, *own]
    if ranks.rank() == 0:
        tracker.start(config, folder.name, resumes=resume_from is not None)
    trainer = training.build_trainer(config, model, tokenizer, data, folder, callbacks)
    record.metrics = train(trainer, resume_from, record, config, facts)
    record.throughput = measure.describe_throughput(timer, facts)
    record.sampling = tuning.describe_sampling(sampler)
    if config.measure.memory:
        share = config.training.batch_size // config.training.world_size
        rows = training.longest_batch(data.train, share)
        record.memory = measure.measure_memory(trainer, model, rows, sampler)
    if probe is not None:
        record.variance = {"probes": probe.results}
    if config.saves_model and ranks.rank() == 0:
        handle.undo()
        where = saving.model_folder(record_path(record.config))
        saving.save_model(config, model, tokenizer, where)
        print(f"the trained model: {where}")


def prepare(
    config: RunConfig,
) -> tuple[PreTrainedTokenizerBase | None, TaskData, PreTrainedModel, Handle]:
    """Tokenizer, data, the model as it will train, and what was done to it."""
    set_seed(config.seed)  # the new head, dropout and the order of the data
    tokenizer = load_tokenizer(config.model)
    text = text_to_text(load_architecture(config.model), config.task, tokenizer)
    data = load_task(config.task, tokenizer, None if text is None else text.input)
    model = load_model(config.model, data.num_labels, data.regression)
    pad_alike(model, tokenizer)
    max_tokens = training.longest_sequence(config, model, tokenizer, data)
    tuning.tune(model, config.tuning)
    if config.training.precision == "bf16":
        model.to(torch.bfloat16)
    handle = save_memory(model, config, len(data.train), max_tokens)
    return tokenizer, data, model, handle
