"""Paired times: two sides that alternate in one process, for machines are noisy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def paired(first: Callable[[], Any], second: Callable[[], Any], pairs: int) -> list[float]:
    """Seconds of ``first`` over seconds of ``second``, for each of ``pairs`` pairs."""
    ratios = []
    for pair in range(pairs + 1):
        sides = (first, second) if pair % 2 else (second, first)  # neither always goes first
        seconds = {side: _seconds(side) for side in sides}
        ratios.append(seconds[first] / seconds[second])
    return ratios[1:]  # the first pair warms up


def _seconds(work: Callable[[], Any]) -> float:
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(values: list[float]) -> dict[str, float]:
    """Median and spread."""
    p10, median, p90 = np.percentile(values, [10, 50, 90]).tolist()
    return {"median": median, "p10": p10, "p90": p90, "n": len(values)}
