"""A training loop of your own, plain and with wtacrs: python examples/own_loop.py.

A BERT of two layers learns scikit-learn's handwritten digits as sequences of 64 pixel tokens. Both
runs see the same batches; the report at the end says what was swapped and what a step keeps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import wtacrs

STEPS, BATCH, TRAIN = 200, 32, 1500


def digits() -> tuple[Tensor, Tensor]:
    """Pixels (1797, 64) of value 0..16, and the digit of each row."""
    found = load_digits()
    return torch.from_numpy(found.data).long(), torch.from_numpy(found.target).long()


def new_model() -> BertForSequenceClassification:
    """The same weights at each call."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=17,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=64,
            initializer_range=0.125,  # 1 / sqrt(width)
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=None,
            num_labels=10,
        )
    )


def batches(pixels: Tensor, labels: Tensor) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        rows = torch.randint(TRAIN, (BATCH,), generator=generator)
        yield {"input_ids": pixels[rows], "labels": labels[rows]}


def train(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Train ``model``; returns its accuracy on the rows that it has not seen."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for batch in batches(pixels, labels):
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    with torch.no_grad():
        model.eval()  # a sampled layer is a plain one here
        found = model(input_ids=pixels[TRAIN:]).logits.argmax(-1)
        model.train()
    return (found == labels[TRAIN:]).float().mean().item()


def main() -> None:
    pixels, labels = digits()
    plain = train(new_model().train(), pixels, labels)
    model = new_model().train()
    handle = wtacrs.apply_(model, "leanest", budget=0.3)
    sampled = train(model, pixels, labels)
    print(f"accuracy: plain {plain:.3f}, leanest at 0.3 {sampled:.3f}")
    print(handle.report({"input_ids": pixels[:BATCH], "labels": labels[:BATCH]}))
    handle.undo()  # the plain model again, with the trained weights


if __name__ == "__main__":
    main()
