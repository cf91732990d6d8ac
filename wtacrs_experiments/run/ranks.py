"""Several processes that carry out one run: torchrun, or accelerate launch.

Each process has its share of a batch, its own draws and its own samples' gradient norms. The first
one decides whether the run is to be done, and writes its record.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from accelerate.utils import (
    DistributedType,
    broadcast_object_list,
    gather_object,
    parse_flag_from_env,
)

from wtacrs_experiments.config import RunConfig, as_record
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.run.devices import on_cpu


def world_size() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def join(config: RunConfig) -> None:
    """Have the processes find each other, and agree on what to run.

    Raises:
        UserError: their configs differ, or what is asked for is done in one process only.
    """
    if world_size() == 1:
        return
    if config.measure.alone or config.measure.probe_steps is not None:
        raise UserError("mode=measure and measure=variance run in one process, without torchrun")
    state = PartialState(cpu=on_cpu(config.training.device))
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        if state.distributed_type == DistributedType.MULTI_CPU:
            raise UserError("accelerate shards (FSDP) on accelerators only; here it would be DDP")
        if config.saves_model:
            raise UserError("a sharded model is not saved; training.save_model=false, or DDP")
    configs = gather([as_record(config)])
    if any(other != configs[0] for other in configs):
        keys = [
            key for key in configs[0] if any(other[key] != configs[0][key] for other in configs)
        ]
        raise UserError(f"the processes were given other values of {', '.join(keys)}; give one")


def agreed(value: Any) -> Any:
    """What the first process says; the others' ``value`` is not looked at."""
    return value if world_size() == 1 else broadcast_object_list([value])[0]


@contextmanager
def leading() -> Iterator[Callable[[], None]]:
    """In the first process: what is called to have the others follow; if it is not, they leave."""
    told = []

    def lead() -> None:
        told.append(agreed(True))

    try:
        yield lead
    finally:
        if not told:
            agreed(False)


def follows() -> bool:
    """In another process: whether the first one goes on."""
    return bool(agreed(None))


def gather(values: list[Any]) -> list[Any]:
    """The values of all processes, in the order of their ranks."""
    return values if world_size() == 1 else gather_object(values)


def any_of(asked: bool) -> bool:
    """Whether any process says so; all of them ask at the same step."""
    return asked if world_size() == 1 else any(gather_object([asked]))
