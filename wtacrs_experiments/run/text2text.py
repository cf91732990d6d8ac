"""A task as text to text, the way T5 is trained (arXiv 1910.10683, appendix D): the answer is text.

The sentences of a row become one text, "rte sentence1: ... sentence2: ...", and the decoder is
trained to write the word of the right class, or, where the label is a score, the score as a number
rounded to a step of 0.2: "3.8". Texts and words are in each task's YAML file. A prediction is
the likelihood of every possible answer, all its tokens and the end: one score a class, so that the
metrics of classifiers serve as they are; of numbers, the likeliest one. So nothing is decoded that
is no answer, and answers may begin alike, as "3.8" and "3.6" do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from wtacrs_experiments.config import TaskConfig
from wtacrs_experiments.config.known import TEXT_TO_TEXT
from wtacrs_experiments.config.roots import no_words
from wtacrs_experiments.errors import UserError


def is_text_to_text(architecture: PreTrainedConfig | None) -> bool:
    """Whether a model of this config is trained text to text."""
    return getattr(architecture, "model_type", None) in TEXT_TO_TEXT


class TextToText:
    """A task as text: from labels to target tokens, and from likelihoods back to predictions.

    Args:
        task: the group ``task``. Its ``text_to_text`` has ``input``, the text with {0} and {1} for
            the sentences, and ``words``, one a class in the order of ``labels``, or ``step``, to
            which a score of ``score_range`` is rounded.
        tokenizer: the model's.

    Attributes:
        input: the text.
        words: every possible answer.
        targets: the token ids of each, with the end token if the tokenizer has one.
        numbers: what each says, where the label is a score; else None.

    Raises:
        UserError: a task without texts (digits), or two words that are the same to the tokenizer.
    """

    def __init__(self, task: TaskConfig, tokenizer: PreTrainedTokenizerBase | None) -> None:
        given = task.text_to_text
        if given is None or tokenizer is None:
            raise UserError(no_words(task.name))
        self.tokenizer, self.input = tokenizer, given.input
        self.padding = task.padding
        self.numbers = _numbers(task, given.step) if given.step is not None else None
        self.words = [*(given.words or ())] or [f"{number:.1f}" for number in self.numbers or ()]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.targets = [
            tokenizer(word, add_special_tokens=False).input_ids + end for word in self.words
        ]
        for i, target in enumerate(self.targets):
            if (j := self.targets.index(target)) < i:
                raise UserError(
                    f"task={task.name}: the words {self.words[j]!r} and {self.words[i]!r} are the "
                    f"same tokens {tokenizer.convert_ids_to_tokens(target)}, so a model cannot "
                    "tell them apart; choose others in task.text_to_text.words"
                )

    def answer(self, label: float) -> int:
        """The index of the answer to a row with this label: its class, or the nearest number."""
        if (numbers := self.numbers) is None:
            return int(label)
        return min(range(len(numbers)), key=lambda i: abs(numbers[i] - label))

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch: input_ids and attention_mask (b, t), labels (b, target tokens), -100 for none.

        Training rows bring their sample ids (b,); those of an evaluation, which have none, the
        labels as they are (b,), under ``answers``.
        """
        inputs = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows]
        batch = dict(self.tokenizer.pad(inputs, return_tensors="pt", **self.padding))
        targets = [torch.tensor(self.targets[self.answer(row["labels"])]) for row in rows]
        batch["labels"] = pad_sequence(targets, batch_first=True, padding_value=-100)
        if "sample_ids" in rows[0]:
            batch["sample_ids"] = torch.tensor([row["sample_ids"] for row in rows])
        else:
            batch["answers"] = torch.tensor([row["labels"] for row in rows])
        return batch

    @torch.no_grad()
    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """(b, classes) log-likelihoods of the words, or (b, 1) the likeliest numbers.

        The encoder runs once; the decoder once for each possible answer.
        """
        mask = batch["attention_mask"]
        encoded = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask)
        scores = []
        for target in self.targets:
            labels = torch.tensor([target] * len(mask), device=mask.device)
            logits = model(encoder_outputs=encoded, attention_mask=mask, labels=labels).logits
            loss = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
            scores.append(-loss.sum(1))
        likelihoods = torch.stack(scores, dim=1)  # (b, answers)
        if self.numbers is None:
            return likelihoods
        return torch.tensor(self.numbers, device=mask.device)[likelihoods.argmax(1)][:, None]


def _numbers(task: TaskConfig, step: float) -> list[float]:
    """The scores that can be written: multiples of the step from one end to the other."""
    low, high = task.score_range or (0.0, 0.0)
    return [round(low + i * step, 6) for i in range(round((high - low) / step) + 1)]


def text_to_text(
    architecture: PreTrainedConfig | None,
    task: TaskConfig,
    tokenizer: PreTrainedTokenizerBase | None,
) -> TextToText | None:
    """The task as text if a model of this config is trained so, else None.

    Raises:
        UserError: see ``TextToText``.
    """
    return TextToText(task, tokenizer) if is_text_to_text(architecture) else None
