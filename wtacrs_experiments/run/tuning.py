"""Which parameters are trained, and which linear layers are sampled."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from wtacrs import Sampler, SamplingConfig
from wtacrs.swap import in_blocks
from wtacrs_experiments.config import PlanConfig, RunConfig, TuningConfig
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.run.lst import ladder_

LINEAR = (nn.Linear, Conv1D)


def tune(model: PreTrainedModel, config: TuningConfig) -> None:
    """Prepare ``model`` in place for the group ``tuning``. Full tuning leaves it as it is.

    LoRA freezes it, but for a new head, and adds trainable matrices A and B to the linear layers
    that ``targets`` names; LST freezes it and puts a small network beside it (``lst``). The model
    stays the object that it was.

    Raises:
        UserError: no targets for this type of model, or one that names no linear layer; no ladder.
    """
    if config.name == "full":
        return
    if config.reduction is not None:
        ladder_(model, config.reduction)
    else:
        _adapt(model, config)
    for part in new_head(model).values():
        part.requires_grad_(True)


def _adapt(model: PreTrainedModel, config: TuningConfig) -> None:
    """Put LoRA's matrices in."""
    assert config.rank is not None
    assert config.alpha is not None
    assert config.dropout is not None
    targets = lora_targets(model, config)
    check_rank(model, config.rank, targets)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=config.dropout,
        target_modules=targets,
    )
    # Injected, not wrapped: the names of layers, the Trainer and the hooks see the model itself.
    inject_adapter_in_model(lora, model)


def lora_targets(model: PreTrainedModel, config: TuningConfig) -> list[str]:
    """The names in ``config.targets`` for the type of ``model``, each of which some layer has; of a
    type without any, all linear layers in its blocks, as QLoRA does (arXiv 2305.14314)."""
    model_type = model.config.model_type
    names = [name for name, layer in model.named_modules() if isinstance(layer, LINEAR)]
    if not (targets := (config.targets or {}).get(model_type)):
        # In full: a last part may be that of a layer outside, as BERT's pooler has it.
        targets = tuple(name for name, layer in in_blocks(model) if isinstance(layer, LINEAR))
    if not targets:
        raise UserError(
            f"tuning=lora: no linear layer is in a block of this {type(model).__name__}"
        )
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            known = ", ".join(sorted({re.sub(r".*\.\d+\.", "", name) for name in names}))
            raise UserError(
                f"tuning.targets.{model_type}: no linear layer is named {target!r}; linear layers "
                f"of this {type(model).__name__}: {known}"
            )
    return list(targets)


def check_rank(model: PreTrainedModel, rank: int, targets: list[str]) -> None:
    """Raise UserError if an update of this rank could be more than the layer itself."""
    ends = tuple(f".{target}" for target in targets)
    for name, module in model.named_modules():
        if isinstance(module, LINEAR) and f".{name}".endswith(ends):
            one, other = module.weight.shape
            if rank > min(one, other):
                raise UserError(
                    f"tuning.rank={rank} is above {min(one, other)}, the most that {name} "
                    f"({one} × {other}) has; 8 to 64 are usual"
                )


def new_head(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The parts of a classifier that no pretraining has seen: those outside its base model.

    None for a language model: its head was pretrained, and may be its embedding.
    """
    base = model.base_model_prefix
    if not hasattr(model, base) or predicts_words(model):
        return {}
    parts = {name: child for name, child in model.named_children() if name != base}
    return {name: part for name, part in parts.items() if any(True for _ in part.parameters())}


def predicts_words(model: PreTrainedModel) -> bool:
    """Whether its head gives a score to each word."""
    return model.get_output_embeddings() is not None


def sampling_config(config: RunConfig | PlanConfig) -> SamplingConfig:
    """The library's config of a run or a plan.

    Raises:
        UserError: an estimator that no plugin brought, or that cannot do what is asked of it.
    """
    not_its = ("name", "code_sha256")
    group = {key: value for key, value in vars(config.estimator).items() if key not in not_its}
    try:
        return SamplingConfig(
            estimator=config.estimator.name, budget=config.budget, seed=config.seed, **group
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def describe_sampling(sampler: Sampler | None) -> dict[str, Any]:
    """The section ``sampling`` of a record.

    ``early`` and ``late`` count the layers (a parameter of experts is one) by when they pick their
    rows; ``rows_kept_fraction`` is of those that pick early, null where none does.
    """
    if sampler is None:
        return {"layers": 0, "early": 0, "late": 0, "skipped": {}, "rows_kept_fraction": 1.0}
    skipped = dict(Counter(sampler.skipped.values()))
    kept = sampler.rows_kept / sampler.rows_seen if sampler.rows_seen else None
    layers, late = len(sampler.names) + len(sampler.experts), len(sampler.late)
    return {
        "layers": layers,
        "early": layers - late,
        "late": late,
        "skipped": skipped,
        "rows_kept_fraction": kept,
    }
