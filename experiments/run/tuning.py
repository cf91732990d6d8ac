"""Which parameters are trained, and which linear layers are sampled."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel

from experiments.errors import UserError
from experiments.run.lst import ladder_
from wtacrs import Sampler, SamplingConfig

METHODS = ("full", "lora", "lst")


def check_tuning(config: Any) -> None:
    """Check the group ``tuning``, before any work.

    Raises:
        UserError: an unknown method, or a number outside its rule.
    """
    if config.name not in METHODS:
        raise UserError(f"tuning={config.name!r} is unknown; choose {', '.join(METHODS)}")
    if config.name == "lst" and (type(config.reduction) is not int or config.reduction < 1):
        raise UserError(f"tuning.reduction={config.reduction!r} must be an integer >= 1")
    if config.name != "lora":
        return
    if type(config.rank) is not int or config.rank < 1:
        raise UserError(f"tuning.rank={config.rank!r} must be an integer >= 1")
    if type(config.alpha) not in (int, float) or not config.alpha > 0:
        raise UserError(f"tuning.alpha={config.alpha!r} must be a number above 0")
    if type(config.dropout) not in (int, float) or not 0 <= config.dropout < 1:
        raise UserError(f"tuning.dropout={config.dropout!r} must be a number in [0, 1)")


def tune(model: PreTrainedModel, config: Any) -> None:
    """Prepare ``model`` in place for the group ``tuning``. Full tuning leaves it as it is.

    LoRA freezes it, but for a new head, and adds trainable matrices A and B to the linear layers
    that ``targets`` names; LST freezes it and puts a small network beside it (``lst``). The model
    stays the object that it was.

    Raises:
        UserError: no targets for this type of model, or one that names no linear layer; no ladder.
    """
    if config.name == "full":
        return
    if config.name == "lst":
        ladder_(model, config.reduction)
    else:
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=lora_targets(model, config),
        )
        # Injected, not wrapped: names of layers, the Trainer and the hooks see the model itself.
        inject_adapter_in_model(lora, model)
    for parameter in new_head(model):
        parameter.requires_grad_(True)


def lora_targets(model: PreTrainedModel, config: Any) -> list[str]:
    """The names in ``config.targets`` for the type of ``model``, each of which some layer has."""
    model_type = model.config.model_type
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    known = f"linear layers of this {type(model).__name__}: " + ", ".join(
        sorted({re.sub(r".*\.\d+\.", "", name) for name in names})
    )
    targets = config.targets.get(model_type)
    if not targets:
        raise UserError(
            f"tuning.targets holds nothing for model_type {model_type!r}; give for instance "
            f"tuning.targets.{model_type}=[...] with names or last parts of names; {known}"
        )
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(
                f"tuning.targets.{model_type}: no linear layer is named {target!r}; {known}"
            )
    return list(targets)


def new_head(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """The parameters of a classifier that no pretraining has seen: those outside its base model.

    None for a model without a head of its own (T5's output layer is its embedding).
    """
    base = model.base_model_prefix
    if hasattr(model, base):
        for name, child in model.named_children():
            if name != base:
                yield from child.parameters()


def sampling_config(config: Any) -> SamplingConfig:
    """The library's config of a run; validates estimator, budget, grad_norms and floor."""
    group = {key: value for key, value in config.estimator.items() if key != "name"}
    try:
        return SamplingConfig(
            estimator=config.estimator.name, budget=config.budget, seed=config.seed, **group
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def describe_sampling(sampler: Sampler | None) -> dict[str, Any]:
    """The section ``sampling`` of a record.

    ``early`` and ``late`` count the layers by when they pick their rows; ``rows_kept_fraction`` is
    of those that pick early, null where none does.
    """
    if sampler is None:
        return {"layers": 0, "early": 0, "late": 0, "skipped": {}, "rows_kept_fraction": 1.0}
    skipped = dict(Counter(sampler.skipped.values()))
    kept = sampler.rows_kept / sampler.rows_seen if sampler.rows_seen else None
    late = len(sampler.late)
    return {
        "layers": len(sampler.names),
        "early": len(sampler.names) - late,
        "late": late,
        "skipped": skipped,
        "rows_kept_fraction": kept,
    }
