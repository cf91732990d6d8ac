"""Of what a planned peak is made, and what would lower it: a line below the planner's table.

Presets and budgets lower activations alone. Where parameters, gradients and optimizer state are
most of the peak, all presets plan about the same, and other things help.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wtacrs_experiments.words import AT_PEAK

if TYPE_CHECKING:
    from wtacrs_experiments.plan.search import Plan  # which loads torch

STATES = ("parameter", "gradient", "optimizer")
MOST = 0.6  # of the peak
WHAT = "parameters, gradients and optimizer state"


def share_of_states(result: Plan) -> float:
    """What a smaller batch would leave: parameters, gradients and optimizer state, of the peak."""
    return sum(result.at_peak[part] for part in STATES) / result.peak_bytes


def advice(results: Sequence[Plan]) -> str:
    """One sentence about a point, or about all points of a grid."""
    shares = [share_of_states(result) for result in results]
    if min(shares) > MOST:
        share = " to ".join(dict.fromkeys(f"{end:.0%}" for end in (min(shares), max(shares))))
        named = (remedy for result in results for remedy in _about_states(result))
        remedies = " or ".join(dict.fromkeys(named)) or "a smaller model"
        return f"{WHAT} are {share} of the peak: no preset or budget lowers them; {remedies} does"
    highest = max(results, key=lambda result: result.peak_bytes)
    parts = {AT_PEAK[part]: highest.at_peak[part] for part in ("saved", "temporary")}
    parts[WHAT] = sum(highest.at_peak[part] for part in STATES)
    largest = max(parts, key=lambda part: parts[part])
    remedies = " or ".join((_about_states if largest == WHAT else _about_batch)(highest))
    of = "the peak" if len(results) == 1 else "the highest peak"
    share = f"{parts[largest] / highest.peak_bytes:.0%}"
    return f"{largest} are {share} of {of}: {remedies or 'a smaller model'} lowers them"


def _about_states(result: Plan) -> list[str]:
    config = result.config
    lora = [] if config["tuning"]["name"] == "lora" else ["tuning=lora"]
    return lora + ([] if config["precision"] == "bf16" else ["precision=bf16"])


def _about_batch(result: Plan) -> list[str]:
    config: dict[str, Any] = result.config
    preset = [] if config["memory"]["name"] == "leanest" else ["memory=leanest"]
    smaller = (
        "a smaller batch or max_length" if config["batch_size"] > 1 else "a smaller max_length"
    )
    return [*preset, smaller]
