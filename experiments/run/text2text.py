"""Classification as text to text, the way T5 is trained: the answer is a word.

The decoder is trained to write the word of the right class. A prediction is what the logits at its
first position say of the first token of every word, one score a class, so that the metrics of
classifiers serve as they are. That position sees no label: its input is the start token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from experiments.config import TaskConfig
from experiments.config.known import TEXT_TO_TEXT
from experiments.config.roots import no_words
from experiments.errors import UserError


def is_text_to_text(architecture: PreTrainedConfig | None) -> bool:
    """Whether a model of this config is trained text to text."""
    return getattr(architecture, "model_type", None) in TEXT_TO_TEXT


class TextToText:
    """A task as text: from classes to target tokens, and from logits back to scores per class.

    Args:
        task: the group ``task``, which has the words.
        tokenizer: the model's.

    Attributes:
        targets: the token ids of each class's word, with the end token if the tokenizer has one.

    Raises:
        UserError: a task without words (regression, digits), or two words with one first token.
    """

    def __init__(self, task: TaskConfig, tokenizer: PreTrainedTokenizerBase | None) -> None:
        words = None if task.text_to_text is None else task.text_to_text.words
        if words is None or tokenizer is None:
            raise UserError(no_words(task.name))
        self.tokenizer = tokenizer
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.targets = [tokenizer(word, add_special_tokens=False).input_ids + end for word in words]
        self.first_tokens = [target[0] for target in self.targets]
        for i, first in enumerate(self.first_tokens):
            if (j := self.first_tokens.index(first)) < i:
                raise UserError(
                    f"task={task.name}: the words {words[j]!r} and {words[i]!r} begin with the "
                    f"same token {tokenizer.convert_ids_to_tokens(first)!r}, so the first token "
                    "cannot tell them apart; choose others in task.text_to_text.words"
                )

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch: input_ids and attention_mask (b, t), labels (b, target tokens), -100 for none.

        Sample ids (b,) come along where the rows have them.
        """
        inputs = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows]
        batch = dict(self.tokenizer.pad(inputs, return_tensors="pt"))
        targets = [torch.tensor(self.targets[row["labels"]]) for row in rows]
        batch["labels"] = pad_sequence(targets, batch_first=True, padding_value=-100)
        if "sample_ids" in rows[0]:
            batch["sample_ids"] = torch.tensor([row["sample_ids"] for row in rows])
        return batch

    def scores(self, outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """(b, classes) from the model's outputs, of which the logits (b, t, vocabulary) are first.

        For the Trainer's ``preprocess_logits_for_metrics``: the whole logits are never gathered.
        """
        return outputs[0][:, 0, self.first_tokens]

    def classes(self, labels: np.ndarray) -> np.ndarray:
        """(n,) classes from the collated labels (n, target tokens)."""
        return np.array([self.first_tokens.index(first) for first in labels[:, 0]])


def text_to_text(
    model: PreTrainedModel, task: TaskConfig, tokenizer: PreTrainedTokenizerBase | None
) -> TextToText | None:
    """The task as text if ``model`` is trained so, else None.

    Raises:
        UserError: see ``TextToText``.
    """
    return TextToText(task, tokenizer) if is_text_to_text(model.config) else None
