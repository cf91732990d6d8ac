"""Which parameters are trained, and which linear layers are sampled."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from experiments.errors import UserError
from wtacrs import Sampler, SamplingConfig, sample_linears_


def tune(model: nn.Module, config: Any) -> None:
    """Prepare ``model`` in place for the group ``tuning``. Full tuning leaves it as it is."""
    if config.name != "full":
        raise UserError(f"tuning={config.name!r} is unknown; choose full")


def sampling_config(config: Any) -> SamplingConfig:
    """The library's config of a run; validates estimator, budget, grad_norms and floor."""
    group = {key: value for key, value in config.estimator.items() if key != "name"}
    try:
        return SamplingConfig(
            estimator=config.estimator.name, budget=config.budget, seed=config.seed, **group
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def sample(model: nn.Module, config: Any, num_samples: int, max_tokens: int) -> Sampler | None:
    """Sample the model's linear layers; None for the estimator "full", which is the plain model."""
    sampling = sampling_config(config)
    if sampling.estimator == "full":
        return None
    try:
        return sample_linears_(model, sampling, num_samples=num_samples, max_tokens=max_tokens)
    except ValueError as error:
        raise UserError(str(error)) from error


def describe_sampling(sampler: Sampler | None) -> dict[str, Any]:
    """The section ``sampling`` of a record."""
    if sampler is None:
        return {"layers": 0, "skipped": {}, "rows_kept_fraction": 1.0}
    skipped = dict(Counter(sampler.skipped.values()))
    kept = sampler.rows_kept / sampler.rows_seen if sampler.rows_seen else None
    return {"layers": len(sampler.names), "skipped": skipped, "rows_kept_fraction": kept}
