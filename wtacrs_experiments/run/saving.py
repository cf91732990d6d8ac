"""The model that a run has trained, as a folder that from_pretrained reads.

With full tuning a model and its tokenizer. With LoRA peft's adapter alone, a few MB, and the new
head where there is one: PeftModel.from_pretrained(base, folder). The run's config lies beside them,
for ``predict``. The weights are those after the last step, whose score the record has as ``last``.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftModel, TaskType, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wtacrs_experiments.config import ModelConfig, RunConfig, as_record, build
from wtacrs_experiments.config.places import RUN_FILE
from wtacrs_experiments.errors import UserError, first_line
from wtacrs_experiments.records.store import write_json
from wtacrs_experiments.run.models import load_model, load_tokenizer, pad_alike
from wtacrs_experiments.run.pretrained import base_path
from wtacrs_experiments.run.text2text import is_text_to_text
from wtacrs_experiments.run.tuning import new_head

PREFIX = "base_model.model."  # of names in a file of peft's


def model_folder(record: Path) -> Path:
    """Where the model of a run lies: beside its record, under the same name."""
    return record.with_suffix("")


def save_model(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
) -> None:
    """Write ``model``, plain but for LoRA's matrices, into ``folder``: whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    if config.task.labels is not None and not is_text_to_text(model.config):
        model.config.id2label = dict(enumerate(config.task.labels))
        model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    if model.can_generate():  # training had no use for the cache of keys and values
        model.config.get_text_config().use_cache = True
    try:
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
            at = Path(name, folder.name)
            at.mkdir()
            if config.tuning.name == "lora":
                save_adapter(config, model, at)
            else:
                model.save_pretrained(at)
            if tokenizer is not None:
                tokenizer.save_pretrained(at)
            write_json(as_record(_from_anywhere(config)), at / RUN_FILE)
            for file in at.iterdir():
                if file.is_file():
                    file.chmod(0o644)  # safetensors' 0600 would hide it from colleagues
            shutil.rmtree(folder, ignore_errors=True)
            at.rename(folder)
    except OSError as error:
        raise UserError(f"the trained model cannot be written to {folder} ({error})") from error


def save_adapter(config: RunConfig, model: PreTrainedModel, folder: Path) -> None:
    """LoRA's matrices and the new head, as peft's ``PeftModel.save_pretrained`` writes them."""
    found = get_peft_model_state_dict(model, save_embedding_layers=False)
    heads = new_head(model)
    for name, head in heads.items():
        found |= {f"{name}.{key}": value for key, value in head.state_dict().items()}
    tensors = {f"{PREFIX}{key}": value.cpu().contiguous() for key, value in found.items()}
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    adapter = copy.copy(model.peft_config["default"])
    adapter.inference_mode = True
    adapter.modules_to_save = [*heads] or None
    adapter.task_type = TaskType.SEQ_CLS
    if model.can_generate():
        of_t5 = model.config.is_encoder_decoder
        adapter.task_type = TaskType.SEQ_2_SEQ_LM if of_t5 else TaskType.CAUSAL_LM
    adapter.base_model_name_or_path = base_path(config.model)
    adapter.save_pretrained(str(folder))


def load_trained(folder: Path) -> tuple[RunConfig, PreTrainedModel, PreTrainedTokenizerBase]:
    """What ``save_model`` wrote: the run's config, the model, LoRA's updates added in, tokenizer.

    Raises:
        UserError: the folder holds none, or what it needs is missing; a model without a tokenizer.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        raise UserError(
            f"{folder} holds no model of a run (no {RUN_FILE} is there); give the folder that a "
            "run has printed, outputs/runs/NAME; training.save_model=true writes it for any task"
        )
    try:
        config = build(RunConfig, json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); run the training again") from error
    outputs = len(config.task.labels or (0,))
    adapts = config.tuning.name == "lora"
    source = config.model if adapts else _at(config.model, folder)
    tokenizer = load_tokenizer(source)
    if tokenizer is None:
        raise UserError(f"task={config.task.name} has no text, so there is no file to predict on")
    model = load_model(source, outputs, config.task.regression)
    pad_alike(model, tokenizer)
    if adapts:
        model = _with_adapter(model, folder)
    return config, model.eval(), tokenizer


def _with_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the LoRA updates and the head that ``save_adapter`` wrote."""
    needed = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:  # of which peft would ask the hub
        raise UserError(f"{folder} lacks {' and '.join(missing)}; run the training again")
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5 by a name that is going.
            warnings.simplefilter("ignore", FutureWarning)
            adapted: Any = PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder} is damaged ({first_line(error)}); run the training again"
        ) from error
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def _from_anywhere(config: RunConfig) -> RunConfig:
    """The config with a path to the model that is one from any folder."""
    if config.model.source in ("package", "scratch"):
        return config
    return replace(config, model=replace(config.model, path=base_path(config.model)))


def _at(model: ModelConfig, folder: Path) -> ModelConfig:
    return replace(model, source="folder", path=str(folder), architecture=None, config={})
