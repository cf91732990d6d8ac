"""From the config of a plan to what its training step takes: settings, grids, the largest batch.

``experiments.plan.__main__`` is the command; ``experiments.plan.rehearsal`` makes the step.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config import CONF
from experiments.errors import UserError
from experiments.plan.rehearsal import Rehearsal
from experiments.records.record import DEFAULTS
from experiments.run.memory import check_memory
from experiments.run.tuning import check_tuning, sampling_config
from experiments.words import GIB, MIB

UNITS = {
    **{"MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
    **{"MB": 10**6, "GB": 10**9, "TB": 10**12},
}
CHOICES = {"precision": ("fp32", "bf16"), "device": ("cuda", "cpu"), "output": ("table", "json")}


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


def plan(config: DictConfig, *, may_not_fit: bool = False) -> Plan:
    """Plan the setting ``config``, which ``resolve`` has checked.

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
        config=OmegaConf.to_container(config),  # type: ignore[arg-type]
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


def _plain(config: DictConfig) -> str:
    """The plain step of the same model and size, as JSON."""
    groups = ("tuning", "full"), ("estimator", "full")
    plain = {key: OmegaConf.load(CONF / key / f"{name}.yaml") for key, name in groups}
    plain["memory"] = OmegaConf.create({"name": "plain", **DEFAULTS["memory"]})
    kept = {key: config[key] for key in ("model", "max_length", "target_length", "batch_size")}
    kept |= {key: config[key] for key in ("precision", "device", "seed")}
    return json.dumps(OmegaConf.to_container(OmegaConf.create({**kept, **plain, "budget": 1.0})))


@cache
def _plain_flops(plain: str) -> int:
    config = OmegaConf.create(plain)
    return Rehearsal(config).step(config.batch_size)[1]


def _too_little(config: DictConfig, rehearsal: Rehearsal) -> str:
    memory, _ = rehearsal.step(1)
    unit, name = (GIB, "GiB") if memory.peak_bytes >= GIB else (MIB, "MiB")
    smallest = math.ceil(100 * memory.peak_bytes / unit) / 100  # up, so that it does
    return (
        f"fits={config.fits} is too little for model={config.model.name} even with a batch of 1: "
        f"parameters take {shown(memory.parameter_bytes)}, gradients "
        f"{shown(memory.gradient_bytes)}, the optimizer {shown(memory.optimizer_bytes)}. "
        f"The smallest that would do is fits={smallest:g}{name}"
    )


def parse_bytes(text: Any) -> int:
    """Bytes from "24GiB" (2^30) or "80GB" (10^9).

    Raises:
        UserError: no number above 0 with a unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", str(text).strip())
    if match is None or match[2] not in UNITS or not float(match[1]) > 0:
        raise UserError(
            f"fits={text} is no memory; give a number above 0 and one of the units "
            f"{', '.join(UNITS)}, for instance fits=24GiB"
        )
    return int(float(match[1]) * UNITS[match[2]])


def shown(count: int) -> str:
    """Bytes for people."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def resolve(config: DictConfig) -> DictConfig:
    """The config of a plan with its values checked, in its plainest form.

    Raises:
        UserError: a value outside its rule.
    """
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))  # type: ignore[assignment]
    for name in ("batch_size", "max_length", "target_length"):
        if type(config[name]) is not int or config[name] < 1:
            raise UserError(f"{name}={config[name]!r} must be an integer >= 1")
    if type(config.seed) is not int:
        raise UserError(f"seed={config.seed!r} must be an integer")
    if type(config.budget) not in (int, float):
        raise UserError(f"budget={config.budget!r} must be a number in (0, 1]")
    for name, choices in CHOICES.items():
        if config[name] not in choices:
            raise UserError(f"{name}={config[name]!r} is unknown; choose {' or '.join(choices)}")
    if config.fits is not None:
        parse_bytes(config.fits)
    check_memory(config)
    if config.memory.recompute == "checkpoint_offload":
        raise UserError(
            "memory=checkpoint_offload cannot be planned, since fake tensors are all on the host; "
            "plan memory=checkpoint, of whose saved activations it moves the inputs of blocks"
        )
    check_tuning(config.tuning)
    sampling_config(config)
    config.budget = 1.0 if config.estimator.name == "full" else float(config.budget)
    return config


def settings(overrides: list[str]) -> dict[str, DictConfig]:
    """Label -> checked config of each point of the grid that ``overrides`` span, in order.

    The label tells the values that differ, as they came out: memory=plain makes any budget 1.0, so
    that a grid over budgets plans the baseline once.

    Raises:
        UserError: a group, choice, key or value that there is not.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        swept = [override.get_key_element() for override in parsed if override.is_sweep_override()]
        found: dict[str, DictConfig] = {}
        with initialize_config_dir(str(CONF), version_base="1.3"):
            for point in BasicSweeper.split_arguments(parsed, None)[0]:
                config = resolve(compose("plan", point))
                found[" ".join(f"{key}={_value(config, key)}" for key in swept)] = config
        return found
    except (HydraException, OmegaConfBaseException) as error:
        # One message; where Hydra has looked is no news.
        text = str(error).split("Config search path")[0]
        raise UserError(" ".join(text.split())) from error


def _value(config: DictConfig, key: str) -> Any:
    value = OmegaConf.select(config, key.lstrip("+"))
    return value.name if isinstance(value, DictConfig) and "name" in value else value
