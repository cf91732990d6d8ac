"""From the config of a plan to what its training step takes, and the largest batch that fits.

``__main__`` beside it is the command; ``rehearsal`` makes the step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from wtacrs_experiments.config import MemoryChoice, PlanConfig, TuningConfig, as_record, build
from wtacrs_experiments.config.groups import FULL
from wtacrs_experiments.config.roots import parse_bytes
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.plan.rehearsal import Rehearsal
from wtacrs_experiments.words import GIB, MIB, in_bytes


@dataclass(frozen=True)
class Plan:
    """What one setting takes; bytes as in ``wtacrs.measure.step.StepMemory``.

    Attributes:
        config: the setting, resolved.
        temporary_bytes: alive at the peak, and none of the other parts of ``at_peak``.
        at_peak: of what ``peak_bytes`` is made.
        flops: floating-point operations of the step's matrix products.
        relative_flops: the same over those of the plain step.
        max_batch_size: the largest batch that fits ``config.fits``, 0 for none; None without it.
        peak_bytes_around: of a step at that size, which fits, and at the next, which does not.
    """

    config: dict[str, Any]
    peak_bytes: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    saved_bytes: int
    temporary_bytes: int
    at_peak: dict[str, int]
    flops: int
    relative_flops: float
    max_batch_size: int | None
    peak_bytes_around: dict[int, int] | None


def plan(config: PlanConfig, *, may_not_fit: bool = False) -> Plan:
    """Plan the setting ``config``.

    Args:
        may_not_fit: 0 and no error where ``config.fits`` is too little for a batch of 1.

    Raises:
        UserError: the model cannot be had, or what is asked of it is not for a model like it.
    """
    rehearsal = Rehearsal(config)
    memory, flops = rehearsal.step(config.batch_size)
    largest, around = None, None
    if config.fits is not None:
        limit = parse_bytes(config.fits)
        largest = largest_batch(rehearsal.peak_bytes, limit, config.batch_size)
        if largest == 0 and not may_not_fit:
            raise UserError(_too_little(config, rehearsal))
        around = {size: rehearsal.peak_bytes(size) for size in (largest, largest + 1) if size}
        assert [peak <= limit for peak in around.values()] == [True, False][-len(around) :]
    return Plan(
        config=as_record(config),
        peak_bytes=memory.peak_bytes,
        parameter_bytes=memory.parameter_bytes,
        gradient_bytes=memory.gradient_bytes,
        optimizer_bytes=memory.optimizer_bytes,
        saved_bytes=memory.saved_bytes,
        temporary_bytes=memory.at_peak["temporary"],
        at_peak=memory.at_peak,
        flops=flops,
        relative_flops=flops / _plain_flops(_plain(config)),
        max_batch_size=largest,
        peak_bytes_around=around,
    )


def largest_batch(peak: Callable[[int], int], limit: int, first: int) -> int:
    """The largest batch whose ``peak``, in bytes, is at most ``limit``; 0 if there is none.

    The peak is close to piecewise linear in the batch. So a guess is where the line through two
    known sizes reaches the limit, and the search ends when the next size is known not to fit.

    Args:
        peak: batch size -> bytes, growing.
        limit: bytes.
        first: a batch size to begin with.
    """
    known = {0: 0, 1: peak(1)}
    if known[1] > limit:
        return 0
    low, high, guess = 1, 0, max(2, first)  # low fits; high does not, 0: not known yet
    slow = 0  # guesses that have not halved what is left, less those that have
    while high != low + 1:
        known[guess] = peak(guess)
        left = high - low if high else math.inf
        if known[guess] <= limit:
            low = guess
        else:
            high = guess
        slow = slow + 1 if high and high - low > left / 2 else max(slow - 1, 0)
        other = high or max(size for size in known if size < low)
        slope = (known[other] - known[low]) / (other - low)
        guess = low + int((limit - known[low]) / slope) if slope > 0 else 8 * low
        if slow >= 2:  # the line leads nowhere, at a bend
            guess = (low + high) // 2
        guess = min(max(guess, low + 1), high - 1 if high else 8 * low)  # no leap into the dark
    return low


def _plain(config: PlanConfig) -> str:
    """The plain step of the same model and size, as JSON."""
    groups = {"tuning": TuningConfig(name="full"), "memory": MemoryChoice(name="plain")}
    plain = replace(config, **groups, estimator=FULL, fits=None, output="table")  # type: ignore[arg-type]
    return json.dumps(as_record(plain))


@cache
def _plain_flops(plain: str) -> int:
    config = build(PlanConfig, json.loads(plain))
    return Rehearsal(config).step(config.batch_size)[1]


def _too_little(config: PlanConfig, rehearsal: Rehearsal) -> str:
    memory, _ = rehearsal.step(1)
    unit, name = (GIB, "GiB") if memory.peak_bytes >= GIB else (MIB, "MiB")
    smallest = math.ceil(100 * memory.peak_bytes / unit) / 100  # up, so that it does
    return (
        f"fits={config.fits} is too little for model={config.model.name} even with a batch of 1: "
        f"parameters take {in_bytes(memory.parameter_bytes)}, gradients "
        f"{in_bytes(memory.gradient_bytes)}, the optimizer {in_bytes(memory.optimizer_bytes)}. "
        f"The smallest that would do is fits={smallest:g}{name}"
    )
