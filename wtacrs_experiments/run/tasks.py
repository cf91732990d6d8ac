"""A task's config -> tokenised training and validation sets.

Where the data come from is said in the config and nowhere else. A row that the reader does not
understand stops the run with its path and line, because a row skipped or guessed would change
every number in the table without a trace.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from wtacrs_experiments.config import TaskConfig
from wtacrs_experiments.config.task import OWN
from wtacrs_experiments.run import hub, sft
from wtacrs_experiments.run.files import read_splits
from wtacrs_experiments.run.glue import Rows, TaskError, read_file
from wtacrs_experiments.run.labels import labelled


@dataclass(frozen=True)
class TaskData:
    """The tokenised task; rows are not padded, since padding a batch is the collator's work."""

    train: Dataset  # input_ids, attention_mask, (token_type_ids,) labels, sample_ids
    validation: dict[str, Dataset]  # first key "validation"; the same columns without sample_ids
    num_labels: int  # 1 for regression
    regression: bool
    max_tokens: int  # of the longest training row, after truncation


def load_task(
    task: TaskConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    text: str | None = None,
) -> TaskData:
    """Read, check, cut and tokenise the task `task`.

    With `text`, say "rte sentence1: {0} sentence2: {1}", the sentences of a row are put into it and
    tokenised as one.

    `tokenizer` may be None for digits, whose pixels are their own token ids. `sample_ids` is a
    row's position 0..N-1 in the training set used. With `max_train_rows` below the file's rows,
    that set is the first rows of one fixed shuffle: subsets are nested, and equal between seeds.
    So it is with `max_eval_rows` and the other splits.

    Raises TaskError for settings and data that break a rule, and when the hub cannot be reached.
    """
    if task.source == "sft":
        return _continued(task, tokenizer)
    _check_length(task, tokenizer)
    splits = _read(task)
    if text is not None:
        splits = {name: _as_text(rows, text) for name, rows in splits.items()}
    most = {"train": task.max_train_rows}
    found = {
        name: _encode(_subset(rows, most.get(name, task.max_eval_rows)), task, tokenizer)
        for name, rows in splits.items()
    }
    train = found.pop("train")
    train = train.add_column("sample_ids", np.arange(len(train)))
    return TaskData(
        train=train,
        validation=found,
        num_labels=1 if task.labels is None else len(task.labels),
        regression=task.regression,
        max_tokens=pc.max(pc.list_value_length(train.data.column("input_ids"))).as_py(),
    )


def _read(task: TaskConfig) -> dict[str, Rows]:
    if task.source == "digits":
        return _read_digits()
    if task.source == "csv":
        return {name: labelled(task, rows) for name, rows in read_splits(task).items()}
    return hub.read_hub(task) if task.data_dir is None else _read_folder(task)


def _continued(task: TaskConfig, tokenizer: PreTrainedTokenizerBase | None) -> TaskData:
    """Prompts and completions."""
    if tokenizer is None:
        raise TaskError(f"task {task.name!r} is text, which tokenizer=None cannot read.")
    found = {}
    for name, rows in read_splits(task).items():
        most = task.max_train_rows if name == "train" else task.max_eval_rows
        pairs = sft.pairs(rows, tokenizer)
        kept = [pairs[i] for i in _kept(len(pairs), most)]
        found[name] = sft.encode(kept, tokenizer, task.max_length)
    train = found.pop("train")
    train = train.add_column("sample_ids", np.arange(len(train)))
    longest = max(map(len, train["input_ids"]))
    return TaskData(train, found, num_labels=0, regression=False, max_tokens=longest)


def _check_length(task: TaskConfig, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Refuse a length below which tokenizers give up and silently return the row uncut."""
    if task.source == "digits":
        return
    if tokenizer is None:
        raise TaskError(f"task {task.name!r} is text, which tokenizer=None cannot read.")
    sentences = task.sentences
    least = max(2, tokenizer.num_special_tokens_to_add(sentences == 2) + sentences)
    if task.max_length < least:
        rule = f"must be at least {least} for task {task.name!r}: special tokens and one a sentence"
        raise TaskError(f"task.max_length={task.max_length} {rule}")


def _read_digits() -> dict[str, Rows]:
    """64 pixels 0..16 as token ids, split 80/20 by one fixed stratified draw."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x, y = digits.data.astype(np.int64), digits.target  # (1797, 64), (1797,)
    x, x_held, y, y_held = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    return {
        "train": Rows(x.tolist(), y.tolist()),
        "validation": Rows(x_held.tolist(), y_held.tolist()),
    }


def check_source(task: TaskConfig) -> None:
    """Whether the task's files lie in its folder, or the hub knows it; nothing is read.

    Raises TaskError if not.
    """
    if task.source in ("digits", *OWN):
        return
    if task.data_dir is not None:
        _folder(task)
        return
    from datasets import load_dataset_builder

    assert task.hub is not None
    try:
        load_dataset_builder(task.hub.path, task.hub.name)
    except Exception as error:  # as in read_hub
        raise TaskError(hub.out_of_reach(task, error)) from error


def _folder(task: TaskConfig) -> Path:
    """The task's folder, in which all of its files are."""
    root = Path(task.data_dir or "").expanduser()
    if not root.is_dir():
        raise TaskError(
            f"task.data_dir={task.data_dir!r} (or GLUE_DIR) is not a folder; it must hold one"
            " folder per GLUE task. Correct it, or leave it null to read from the hub."
        )
    folder = root / (task.folder or "")
    files = task.files or {}
    for path in (folder, *(folder / name for name in files.values())):
        if not (path.is_dir() if path == folder else path.is_file()):
            there = ", ".join(sorted(entry.name for entry in path.parent.iterdir())) or "nothing"
            raise TaskError(
                f"{path} is missing, and task {task.name!r} needs it; {path.parent} holds:"
                f" {there}. Put it there, or set task.data_dir=null to read from the hub."
            )
    return folder


def _read_folder(task: TaskConfig) -> dict[str, Rows]:
    folder = _folder(task)
    return {
        split: read_file(folder / name, task, split) for split, name in (task.files or {}).items()
    }


def _subset(rows: Rows, most: int | None) -> Rows:
    kept = _kept(len(rows.labels), most)
    return Rows([rows.inputs[i] for i in kept], [rows.labels[i] for i in kept])


def _kept(rows: int, most: int | None) -> Sequence[int]:
    if most is None or most >= rows:
        return range(rows)
    # RandomState, not default_rng: numpy promises that only the former's stream never changes.
    kept: list[int] = np.random.RandomState(0).permutation(rows)[:most].tolist()
    return kept


def _as_text(rows: Rows, text: str) -> Rows:
    return Rows([[text.format(*sentences)] for sentences in rows.inputs], rows.labels)


def _encode(rows: Rows, task: TaskConfig, tokenizer: PreTrainedTokenizerBase | None) -> Dataset:
    length = task.max_length
    columns: dict[str, list[Any]] = defaultdict(list)
    if task.source == "digits":
        columns["input_ids"] = [pixels[:length] for pixels in rows.inputs]
        columns["attention_mask"] = [[1] * len(pixels) for pixels in columns["input_ids"]]
    else:
        # In pieces, since a tokenizer's own result is many times larger than the ids in it; and
        # not by Dataset.map, which spends longer on hashing the tokenizer than most tasks need.
        for start in range(0, len(rows.inputs), 1000):
            sentences = map(list, zip(*rows.inputs[start : start + 1000], strict=True))
            assert tokenizer is not None  # as _check_length has seen
            piece = tokenizer(*sentences, truncation=True, max_length=length)
            for name, values in piece.items():
                columns[name].extend(values)
    return Dataset.from_dict({**columns, "labels": rows.labels})
