"""A model that is named by its path alone: its name, its sizes, its head."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

from wtacrs_experiments.config import CONF, ModelConfig
from wtacrs_experiments.config.places import model_folder


def settled(config: ModelConfig, predicts_words: bool | None = None) -> ModelConfig:
    """The group ``model`` for what ``model.path`` names, where that is not the group's own.

    So two folders are two models in records and tables. The name is the last part of the path; the
    sizes are those of its own config.json.

    Args:
        predicts_words: whether its head is a language model's; None: as the group or its
            config.json says.
    """
    folder, usual = model_folder(config.path), _usual_path(config.name)
    own = usual is not None and folder.resolve() != model_folder(usual).resolve()
    if usual is not None and not own:
        config = replace(config, path=usual)
    if own:
        name = re.sub(r"[^\w.]+", "_", folder.resolve().name) or config.name
        source = "folder" if folder.is_dir() else config.source
        config = replace(config, name=name, source=source, architecture=None, head=None)
    if predicts_words is None and own:
        predicts_words = any(one.endswith("ForCausalLM") for one in _architectures(folder))
    if predicts_words is None:
        return config
    return replace(config, head="language_model" if predicts_words else None)


@cache  # a grid asks for each of its cells
def _usual_path(name: str) -> str | None:
    """The path of the group of this name; None if there is none."""
    group = CONF / "model" / f"{name}.yaml"
    return str(OmegaConf.load(group).path) if group.is_file() else None


def _architectures(folder: Path) -> list[str]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
        return [one for one in found if isinstance(one, str)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
