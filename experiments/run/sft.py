"""Supervised fine-tuning of a language model on prompts and completions, or on text.

A row is {"prompt": ..., "completion": ...} or {"text": ...}: a line of a .jsonl file, or a row of a
folder that ``datasets`` has saved. The model reads the prompt and learns the completion and the end
of the text; a token of the prompt has the label -100. With ``python-library`` for a file the rows
are functions of Python's own library: from a signature to the documentation string.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, load_from_disk
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from experiments.config import TaskConfig
from experiments.config.known import PYTHON_LIBRARY
from experiments.run.glue import TaskError
from wtacrs.facts import IGNORED

Row = tuple[str, str]  # prompt, completion
HELD_OUT = 10  # one row of so many is for evaluation, where no file is
DOCUMENTED = [
    "argparse",
    "ast",
    "collections",
    "contextlib",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "email",
    "fractions",
    "functools",
    "heapq",
    "html",
    "inspect",
    "json",
    "logging",
    "os.path",
    "pathlib",
    "random",
    "re",
    "shutil",
    "statistics",
    "string",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "tokenize",
    "typing",
    "unittest",
]


def read_splits(task: TaskConfig) -> dict[str, list[Row]]:
    """The rows for training and for evaluation.

    Raises:
        TaskError: a file that is not there, or a row that is none, with its line.
    """
    if task.train_file == PYTHON_LIBRARY:
        rows, given = documentation(), None
    else:
        rows, given = _read(task.train_file or "", "train"), task.eval_file
    if given is not None:
        return {"train": rows, "validation": _read(given, "validation")}
    if len(rows) < 2:
        raise TaskError(f"{task.train_file} has one row; one more is needed for evaluation")
    order = np.random.RandomState(0).permutation(len(rows))
    held_out = {*order[: max(1, len(rows) // HELD_OUT)].tolist()}
    return {
        "train": [row for i, row in enumerate(rows) if i not in held_out],
        "validation": [row for i, row in enumerate(rows) if i in held_out],
    }


def fingerprint(task: TaskConfig) -> str:
    """A sum over all rows: it, and no file's name, says what a run was trained on."""
    content = json.dumps(read_splits(task), ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def documentation() -> list[Row]:
    """(signature, documentation string) of the public functions in modules of Python's library."""
    rows = {}
    for name in DOCUMENTED:
        module = importlib.import_module(name)
        for owner in (module, *(cls for _, cls in inspect.getmembers(module, inspect.isclass))):
            for key, function in inspect.getmembers(owner, inspect.isfunction):
                text = inspect.getdoc(function)
                if text and not key.startswith("_") and function.__module__ == module.__name__:
                    full = f"{name}.{function.__qualname__}{inspect.signature(function)}"
                    rows[full] = f"{text}\n"
    return [(f"{signature}\n", text) for signature, text in sorted(rows.items())]


def _read(name: str, split: str) -> list[Row]:
    path = Path(name).expanduser()
    if path.is_dir():
        found = _of_folder(path, split)
    elif path.is_file():
        found = _of_lines(path)
    else:
        raise TaskError(f"{path} is not there; give a .jsonl file or a folder saved by datasets")
    rows = [_row(content, where) for where, content in found]
    if not rows:
        raise TaskError(f"{path} has no rows")
    return rows


def _of_lines(path: Path) -> Iterable[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is no text in UTF-8 ({error})") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TaskError(
                    f"{path}:{number} is no JSON ({error}); a row is one line"
                ) from error


def _of_folder(path: Path, split: str) -> Iterable[tuple[str, Any]]:
    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # of which class, depends on what is wrong with the folder
        raise TaskError(f"{path} is no folder saved by datasets ({error})") from error
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            raise TaskError(f"{path} has no split {split!r}, but {', '.join(loaded)}")
        loaded = loaded[split]
    return ((f"{path} row {i}", dict(row)) for i, row in enumerate(loaded))


def _row(content: Any, where: str) -> Row:
    if not isinstance(content, dict):
        raise TaskError(
            f"{where}: a row is {{'prompt': ..., 'completion': ...}} or {{'text': ...}}"
        )
    keys = ("prompt", "completion") if "completion" in content else ("text",)
    for key in keys:
        if not isinstance(content.get(key), str):
            there = ", ".join(map(str, content)) or "nothing"
            raise TaskError(f"{where}: {key!r} must be text; the row has {there}")
    if not content[keys[-1]]:
        raise TaskError(f"{where}: {keys[-1]!r} is empty: there is nothing to learn")
    return (content["prompt"], content["completion"]) if len(keys) == 2 else ("", content["text"])


def encode(rows: list[Row], tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """input_ids, attention_mask and labels of each row, cut to ``length`` tokens.

    Raises:
        TaskError: prompts so long that no row has anything to learn.
    """
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for prompt, completion in rows:
        told = begin + tokenizer(prompt, add_special_tokens=False).input_ids
        answer = tokenizer(completion, add_special_tokens=False).input_ids + end
        if len(told) >= length:
            continue  # a batch of such rows would have no loss
        ids = (told + answer)[:length]
        columns["input_ids"].append(ids)
        columns["attention_mask"].append([1] * len(ids))
        columns["labels"].append(([IGNORED] * len(told) + answer)[:length])
    left = len(rows) - len(columns["labels"])
    if left == len(rows):
        raise TaskError(f"task.max_length={length} cuts every completion off; raise it")
    if left:
        print(f"left out: {left} of {len(rows)} rows, whose prompts fill task.max_length={length}")
    return Dataset.from_dict(columns)


def collator(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Pads each batch to its longest row, labels with -100."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)


def sums(logits: Any, labels: Tensor) -> Tensor:
    """(b, 3): of each row the sum of its tokens' losses, how many it has, how many were right."""
    if isinstance(logits, tuple):
        logits = logits[0]
    targets = labels[:, 1:]  # tokens before n predict token n
    losses = F.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    counted = targets != IGNORED
    right = (logits[:, :-1].argmax(-1) == targets) & counted
    return torch.stack([losses.sum(1), counted.sum(1), right.sum(1)], dim=1)
