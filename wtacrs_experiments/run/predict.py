"""The answers of a trained model to a file: python run.py predict outputs/runs/NAME FILE.

NAME is that of a run with training.save_model: its folder, or its record. FILE is a .csv, .tsv,
.jsonl or .json with the columns that the task reads: those of its sentences, or prompt. The output
has the rows of FILE and a column more: prediction. Of classes it is the label, and a column
probability says how sure the model is of it; of a language model the likeliest text by token.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wtacrs_experiments.config import RunConfig, TaskConfig
from wtacrs_experiments.errors import UserError, one_line
from wtacrs_experiments.records.store import write_text
from wtacrs_experiments.run.devices import on_cpu
from wtacrs_experiments.run.files import Row, read_rows
from wtacrs_experiments.run.labels import text_of
from wtacrs_experiments.run.saving import load_trained, model_folder
from wtacrs_experiments.run.sft import prompt_tokens
from wtacrs_experiments.run.text2text import text_to_text

ADDED = ("prediction", "probability")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
Answers = Iterator[dict[str, Any]]


def predict(
    folder: Path, file: Path, output: Path, batch_size: int, new_tokens: int, device: str
) -> int:
    """Write ``output``; returns the number of rows.

    Raises:
        UserError: no model, no file, or a row that the task cannot read (file and line are named).
    """
    if output.suffix not in (*SEPARATORS, ".jsonl"):
        raise UserError(f"--output {output} must end in .csv, .tsv or .jsonl")
    if output.resolve() == file.resolve():
        raise UserError(f"--output {output} is the file itself; give another")
    if file.is_dir():
        raise UserError(f"{file} is a folder; give a file: .csv, .tsv, .jsonl or .json")
    rows = read_rows(str(file))
    for where, row in rows:
        if taken := [name for name in ADDED if name in row]:
            raise UserError(f"{where}: {taken[0]} is there already; rename or remove the column")
    config, model, tokenizer = load_trained(folder)
    model.to(torch.device("cpu" if on_cpu(device) else "cuda"))
    if config.task.source == "sft":
        answers = generate(model, tokenizer, rows, batch_size, new_tokens)
    else:
        answers = classify(config, model, tokenizer, rows, batch_size)
    pairs = zip(rows, answers, strict=True)
    write_text(table([row | answer for (_, row), answer in pairs], output.suffix), output)
    return len(rows)


@torch.no_grad()
def classify(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    batch_size: int,
) -> Answers:
    """The label of each row and its probability, or its score."""
    task = config.task
    columns = text_columns(task)
    sentences = [[text_of(where, row, column) for column in columns] for where, row in rows]
    text = text_to_text(model.config, task, tokenizer)
    for start in range(0, len(rows), batch_size):
        piece = sentences[start : start + batch_size]
        if text is not None:
            piece = [[text.input.format(*one)] for one in piece]
        batch = tokenizer(
            *map(list, zip(*piece, strict=True)),
            truncation=True,
            max_length=task.max_length,
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        outputs = text.predict(model, batch) if text is not None else model(**batch).logits
        yield from _answers(task, outputs.float(), rows[start][0])


def _answers(task: TaskConfig, outputs: Tensor, where: str) -> Answers:
    """Of outputs (b, classes) or (b, 1); the log-likelihoods of words are logits too."""
    if not outputs.isfinite().all():
        raise UserError(f"{where} and those after it: the model predicts nan; its run has diverged")
    if task.labels is None:
        yield from ({"prediction": score} for score in outputs[:, 0].tolist())
        return
    sure, classes = outputs.softmax(1).max(1)
    for label, probability in zip(classes.tolist(), sure.tolist(), strict=True):
        yield {"prediction": task.labels[label], "probability": round(probability, 6)}


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    batch_size: int,
    new_tokens: int,
) -> Answers:
    """The completion of each prompt, the likeliest token after token, at most ``new_tokens``."""
    prompts = [prompt_tokens(where, row, tokenizer) for where, row in rows]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for (where, _), prompt in zip(rows, prompts, strict=True):
        if positions is not None and len(prompt) + new_tokens > positions:
            raise UserError(
                f"{where}: the prompt has {len(prompt)} tokens, and with {new_tokens} new ones "
                f"that is more than the {positions} positions of the model; lower --new-tokens"
            )
    tokenizer.padding_side = "left"
    for start in range(0, len(rows), batch_size):
        piece = [{"input_ids": prompt} for prompt in prompts[start : start + batch_size]]
        batch = tokenizer.pad(piece, return_tensors="pt").to(model.device)
        found: Any = model.generate(
            **batch, do_sample=False, max_new_tokens=new_tokens, use_cache=True
        )
        new = found[:, batch["input_ids"].shape[1] :]
        for text in tokenizer.batch_decode(new, skip_special_tokens=True):
            yield {"prediction": text}


def text_columns(task: TaskConfig) -> tuple[str, ...]:
    """The names of the columns of a row's sentences."""
    return task.text_columns or (task.hub.text if task.hub is not None else ())


def table(rows: list[dict[str, Any]], suffix: str) -> str:
    """The rows as a file of this kind holds them."""
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, [*columns], delimiter=SEPARATORS[suffix], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def positive(text: str) -> int:
    """A number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


@one_line()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="wtacrs predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="the folder of a run's model, or its record")
    parser.add_argument("file", type=Path)
    parser.add_argument("--output", type=Path, help=".csv, .tsv or .jsonl; default: FILE.predicted")
    parser.add_argument("--batch-size", type=positive, default=32)
    parser.add_argument("--new-tokens", type=positive, default=128, help="of a language model")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    given = parser.parse_args(arguments)
    folder = model_folder(given.model) if given.model.suffix == ".json" else given.model
    suffix = given.file.suffix if given.file.suffix in SEPARATORS else ".jsonl"
    output = given.output or given.file.with_name(f"{given.file.stem}.predicted{suffix}")
    count = predict(folder, given.file, output, given.batch_size, given.new_tokens, given.device)
    print(f"{count} rows: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
