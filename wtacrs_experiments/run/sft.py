"""Supervised fine-tuning of a language model on prompts and completions, or on text.

A row is {"prompt": ..., "completion": ...}, {"text": ...} or a chat, {"messages": [...]}, of which
the last message is learnt. The model reads the prompt and learns the completion and the end of the
text; a token of the prompt has the label -100. A text begins as the tokenizer begins one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from wtacrs.facts import IGNORED
from wtacrs_experiments.config import TaskConfig
from wtacrs_experiments.run.chat import answered, asked
from wtacrs_experiments.run.files import Row
from wtacrs_experiments.run.glue import TaskError
from wtacrs_experiments.run.labels import text_of


class Pair(NamedTuple):
    """What a model reads and what it learns to say then, as text."""

    prompt: str
    completion: str
    whole: bool = False  # a chat template has written it, special tokens and all


def pairs(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """The prompt and the completion of each row; "" is the prompt of a text.

    Raises:
        TaskError: a row that has neither, nor a chat.
    """
    return [_pair(where, row, tokenizer) for where, row in rows]


def _pair(where: str, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Pair:
    if row.get("messages") is not None:
        return Pair(*answered(where, row["messages"], tokenizer), whole=True)
    keys = ("prompt", "completion") if "completion" in row else ("text",)
    for key in keys:
        if not isinstance(row.get(key), str):
            raise TaskError(
                f"{where}: {key!r} must be text; a row has prompt and completion, or text, or "
                f"messages, and this one has {', '.join(map(str, row)) or 'nothing'}"
            )
    if not row[keys[-1]]:
        raise TaskError(f"{where}: {keys[-1]!r} is empty: there is nothing to learn")
    return Pair(row["prompt"], row["completion"]) if len(keys) == 2 else Pair("", row["text"])


def encode(rows: list[Pair], tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """input_ids, attention_mask and labels of each row, cut to ``length`` tokens.

    Raises:
        TaskError: prompts so long that no row has anything to learn.
    """
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for row in rows:
        told = ([] if row.whole else beginning(tokenizer)) + _tokens(row.prompt, tokenizer)
        answer = _tokens(row.completion, tokenizer) + ([] if row.whole else end)
        ids = (told + answer)[:length]
        if len(ids) <= max(1, len(told)):
            continue  # a batch of such rows would have no loss: nothing precedes the first token
        columns["input_ids"].append(ids)
        columns["attention_mask"].append([1] * len(ids))
        columns["labels"].append(([IGNORED] * len(told) + answer)[:length])
    left = len(rows) - len(columns["labels"])
    if left == len(rows):
        raise TaskError(f"task.max_length={length} cuts every completion off; raise it")
    if left:
        print(f"left out: {left} of {len(rows)} rows, whose prompts fill task.max_length={length}")
    return Dataset.from_dict(columns)


def prompt_tokens(where: str, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a prompt, or of a chat up to what the assistant is to say.

    Raises:
        TaskError: the row has neither, or an empty one.
    """
    if row.get("messages") is not None:
        return _tokens(asked(where, row["messages"], tokenizer), tokenizer)
    if not (prompt := text_of(where, row, "prompt")):
        raise TaskError(f"{where}: the prompt is empty, so there is nothing to go on from")
    return beginning(tokenizer) + _tokens(prompt, tokenizer)


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens with which the tokenizer begins a text."""
    ids: list[int] = tokenizer("").input_ids
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids  # it ends a text so


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def collator(tokenizer: PreTrainedTokenizerBase, task: TaskConfig) -> Any:
    """Pads rows as the task says, labels with -100."""
    tokenizer.padding_side = "right"
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED, **task.padding)


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
