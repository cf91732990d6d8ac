"""Models: unmodified transformers classes, from the hub, a package, a local folder, or new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from wtacrs_experiments.config import ModelConfig
from wtacrs_experiments.config.places import model_folder
from wtacrs_experiments.config.rules import nearest
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.run.pretrained import ModelError, check_reads_text, from_pretrained
from wtacrs_experiments.run.text2text import is_text_to_text


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer. A language model from scratch reads bytes; of another the tokens are
    data already, and there is None."""
    _be_quiet()
    if config.source == "scratch":
        return ByT5Tokenizer(extra_ids=0) if config.head == "language_model" else None
    tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, config)
    if tokenizer.pad_token is None:  # of a decoder; what pads is masked
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_architecture(config: ModelConfig) -> PreTrainedConfig:
    """The model's config alone: its type and sizes.

    Raises:
        ModelError: as ``load_model``.
    """
    if config.source == "scratch":
        return _sizes(config)
    architecture: PreTrainedConfig = from_pretrained(AutoConfig, config)
    _check_keys(config, architecture)
    return architecture


def load_model(config: ModelConfig, num_labels: int, regression: bool) -> PreTrainedModel:
    """A model in float32 that is ready to be trained, in the way of its type.

    A T5 is text to text as it is and gets no head (``text2text``), nor does a language model. Every
    other type is a sequence classifier with a new head, initialised from torch's generator.

    Args:
        config: the group ``model``.
        num_labels: classes, 1 for regression.
        regression: mean squared error in place of cross entropy.

    Raises:
        ModelError: package not installed, hub out of reach, folder incomplete, impossible sizes, a
            trained head for another number of labels.
    """
    _be_quiet()
    problem = "regression" if regression else "single_label_classification"
    head = {"num_labels": num_labels, "problem_type": problem}
    architecture = load_architecture(config)
    if config.head == "language_model":
        _check_decodes(config, architecture)
    if config.source == "scratch":
        return _new(config, architecture, head)
    loader, settings = _loader(architecture, head, config.head)

    def load() -> PreTrainedModel:
        try:
            given = {**config.config, **settings}
            return from_pretrained(loader, config, dtype=torch.float32, **given)
        except RuntimeError as error:
            if config.config or "ignore_mismatched_sizes" not in str(error):
                raise
            raise ModelError(_other_head(config, num_labels)) from error

    loaded: PreTrainedModel = _made(config, load)
    return loaded


def pad_alike(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Tell a model that does not know it what its batches are padded with: a decoder that
    classifies reads the last token before that."""
    if tokenizer is not None and getattr(model.config, "pad_token_id", 0) is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def _other_head(config: ModelConfig, outputs: int) -> str:
    return (
        f"model={config.name}: {config.path} has a head of another size than the task's {outputs} "
        f"output{'s' if outputs > 1 else ', a score'}; give one that was saved without a head, or "
        "with one for as many labels"
    )


def new_model(config: ModelConfig) -> PreTrainedModel:
    """The architecture of ``load_model`` with random weights in float32, two classes, no download.

    For what depends on sizes alone: memory, speed, planning. Under torch's ``FakeTensorMode`` it
    takes seconds and no memory whatever the size. The sizes are those of the folder or
    package; of ``architecture`` if no folder is there, or the hub's; of ``config`` (scratch).

    Raises:
        ModelError: package not installed, no ``architecture`` in the config, impossible sizes.
    """
    _be_quiet()
    if config.source == "scratch":
        architecture = _sizes(config)
    elif config.source == "package" or model_folder(config.path).is_dir():
        _check_keys(config, from_pretrained(AutoConfig, config))
        architecture = _made(config, lambda: from_pretrained(AutoConfig, config, **config.config))
    elif config.architecture is not None:
        architecture = _sizes(config)
    else:
        architecture = _of_hub(config)
    return _new(config, architecture, {"num_labels": 2})


def _of_hub(config: ModelConfig) -> PreTrainedConfig:
    """The sizes in the hub's config.json."""
    try:
        found: PreTrainedConfig = from_pretrained(AutoConfig, config, **config.config)
        return found
    except ModelError as error:
        raise ModelError(
            f"model={config.name} has no sizes; give model.architecture: model_type and the values "
            f"of its config.json, as conf/model/bert_base.yaml does ({error})"
        ) from error


def _sizes(config: ModelConfig) -> PreTrainedConfig:
    """The architecture that the config alone describes: its type, and its sizes."""
    sizes = {**(config.architecture or {}), **config.config}
    sizes.pop("model_type", None)
    kind = config.model_type
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"model={config.name}: {kind!r} is no type of model that transformers knows"
            f"{nearest(str(kind), CONFIG_MAPPING)}"
        )
    _check_keys(config, AutoConfig.for_model(kind))
    return _made(config, lambda: AutoConfig.for_model(kind, **sizes))


def _check_keys(config: ModelConfig, architecture: PreTrainedConfig) -> None:
    """Refuse a key that means nothing to the model: transformers would take it and be silent."""
    known = {*architecture.to_dict(), *architecture.attribute_map, *vars(architecture)}
    for key in {**(config.architecture or {}), **config.config}:
        if key not in known and not key.endswith("_token_id"):  # which any type takes
            raise ModelError(
                f"model={config.name}: {key} is no size of a {architecture.model_type}"
                f"{nearest(key, known)}"
            )


def _made(config: ModelConfig, make: Callable[[], Any]) -> Any:
    """What ``make`` makes, or one message that the sizes fit no model."""
    try:
        return make()
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # which of them, is different from model to model
        if "can't allocate memory" in str(error):
            raise
        reason = [*str(error).split("\n"), ""][0] or type(error).__name__
        raise ModelError(f"model={config.name}: these sizes make no model ({reason})") from error


def _check_decodes(config: ModelConfig, architecture: PreTrainedConfig) -> None:
    """Refuse what is no decoder: an encoder would see the words that it is to predict."""
    kind = architecture.model_type
    encodes = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not architecture.is_decoder
    if encodes or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"model={config.name}: a {kind} is no decoder, which task=sft trains; give "
            "model.path=FOLDER of one, say a Llama's"
        )


def _loader(
    architecture: PreTrainedConfig, head: dict[str, Any], of: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """The class that makes a model of this type, and the settings it takes beside the sizes."""
    if of == "language_model":
        return AutoModelForCausalLM, {"use_cache": False}
    if is_text_to_text(architecture):
        # The cache of keys and values is for generating; training would keep it for nothing.
        return AutoModelForSeq2SeqLM, {"use_cache": False}
    return AutoModelForSequenceClassification, head


def _new(
    config: ModelConfig, architecture: PreTrainedConfig, head: dict[str, Any]
) -> PreTrainedModel:
    check_reads_text(config.name, architecture.model_type)
    loader, settings = _loader(architecture, head, config.head)
    for name, value in settings.items():
        setattr(architecture, name, value)
    return _made(config, lambda: loader.from_config(architecture, dtype=torch.float32))


def _be_quiet() -> None:
    # That the head is new, and each weight loaded or saved, is no news.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
