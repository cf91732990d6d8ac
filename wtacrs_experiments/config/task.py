"""The group ``task``: what its data look like, so that a new task is a new YAML file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from wtacrs_experiments.config.build import left_out
from wtacrs_experiments.config.known import CLASSIFICATION, HUB, LANGUAGE, REGRESSION
from wtacrs_experiments.config.rules import (
    check_choice,
    check_distinct,
    check_filled,
    check_inside,
    check_name,
    check_range,
    check_text,
    wrong,
)
from wtacrs_experiments.config.sentences import HubConfig, TextToTextConfig, check_sentences

OWN = ("sft", "csv")  # their rows lie in files of one's own
ON_HUB = HUB + r"[\w.-]+(/[\w.-]+){0,2}(:[\w.-]+)?"
SOURCES = ("glue", "digits", *OWN)
MOST_NUMBERS = 1000  # that a regression can answer: each is tried for each row


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A task: data, columns, labels, metrics."""

    name: str
    # glue: tables of text, in a folder or on the hub; digits, in scikit-learn; of one's own: sft,
    # to be continued, and csv, with a label.
    source: str = "glue"
    data_dir: str | None = None  # a folder in the GLUE layout; null: the hub
    # Of one's own: .csv .tsv .jsonl .json, a folder of datasets, or hub:OWNER/DATA.
    train_file: str | None = left_out()
    eval_file: str | None = left_out()  # null: a tenth of the rows
    data_sha256: str | None = left_out()  # of its rows or files, which a run finds out
    max_length: int = 128  # tokens of a row, the rest is cut off
    pad_to_max_length: bool = left_out(False)  # each row; false: a batch to its longest row
    max_train_rows: int | None = None  # null: all
    max_eval_rows: int | None = left_out()  # of each split that is evaluated; null: all
    folder: str | None = left_out()  # in data_dir
    files: dict[str, str] | None = left_out()  # train, validation and maybe more, in the folder
    columns: int | dict[str, int] | None = left_out()  # of a row; by split where they differ
    header: bool | None = left_out()  # whether the first line names the columns
    text: tuple[int, ...] | None = left_out()  # columns of the sentences, one or two
    label: int | None = left_out()  # column; below 0 it is counted from the end
    text_columns: tuple[str, ...] | None = left_out()  # of csv: names, of one sentence or two
    label_column: str | None = left_out()
    labels: tuple[str, ...] | None = None  # classes in order; null: a score, or what csv's rows say
    score_range: tuple[float, ...] | None = left_out()  # least and largest score
    text_to_text: TextToTextConfig | None = left_out()
    hub: HubConfig | None = left_out()
    metrics: tuple[str, ...]  # the first is the main one

    def __post_init__(self) -> None:
        check_name("task.name", self.name)
        check_choice("task.source", self.source, SOURCES)
        check_text("task.data_dir", self.data_dir)
        check_range("task.max_length", self.max_length, 2, most=2**20)
        for key in ("max_train_rows", "max_eval_rows"):
            if (most := getattr(self, key)) is not None:
                check_range(f"task.{key}", most, 1, remedy="null takes all")
        if self.pad_to_max_length and self.source == "digits":
            rule = "is of text; the rows of task=digits are of one length already"
            raise wrong("task.pad_to_max_length", True, rule)
        self._check_own()
        if self.source == "sft":
            self._check_continued()
        if self.source == "sft" or not self.is_settled:
            return
        self._check_labels()
        self._check_metrics()
        if self.source == "glue":
            self._check_layout()
        self._check_words()

    @property
    def regression(self) -> bool:
        """Whether a row has a score, and no class."""
        return self.labels is None and self.source != "sft"

    @property
    def on_hub(self) -> bool:
        """Whether its rows are read from its home there."""
        return self.source == "glue" and self.data_dir is None

    @property
    def is_settled(self) -> bool:
        """Whether labels and metrics are known; those of a csv may be told by its rows alone."""
        known = self.labels is not None or self.score_range is not None
        return self.source != "csv" or (known and bool(self.metrics))

    @property
    def sentences(self) -> int:
        """How many a row has."""
        return len(self.text_columns or self.text or ())

    @property
    def padding(self) -> dict[str, Any]:
        """What a tokenizer is told of it."""
        if self.pad_to_max_length:
            return {"padding": "max_length", "max_length": self.max_length}
        return {"padding": "longest"}

    def width(self, split: str) -> int:
        """Columns of a row in the file of ``split``."""
        columns = self.columns if isinstance(self.columns, int) else (self.columns or {}).get(split)
        assert columns is not None
        return columns

    def _check_own(self) -> None:
        """What is said of files of one's own."""
        for key in ("train_file", "eval_file"):
            if (file := getattr(self, key)) is not None:
                check_text(f"task.{key}", file)
                if self.source not in OWN:
                    raise wrong(f"task.{key}", file, f"is of task={' and '.join(OWN)}")
                if file.startswith(HUB) and not re.fullmatch(ON_HUB, file):
                    rule = (
                        "must be hub:OWNER/DATA, then /CONFIGURATION and :SPLIT if it has several"
                    )
                    raise wrong(f"task.{key}", file, rule)
        if self.source in OWN and self.train_file is None:
            files = "a file, .csv .tsv .jsonl .json, a datasets folder, or hub:OWNER/DATA"
            raise wrong("task.train_file", None, f"must name {files}")
        for key in ("text_columns", "label_column"):
            value = getattr(self, key)
            if (value is None) == (self.source == "csv"):
                rule = "must be given for task=csv" if value is None else "is of task=csv"
                raise wrong(f"task.{key}", value, rule)
        if self.text_columns is not None and self.label_column is not None:
            check_sentences("task.text_columns", self.text_columns)
            check_text("task.label_column", self.label_column)
            if self.label_column in self.text_columns:
                raise wrong("task.text_columns", self.text_columns, "holds task.label_column")

    def _check_continued(self) -> None:
        check_filled("task.metrics", self.metrics)
        check_distinct("task.metrics", self.metrics)
        for name in self.metrics:
            check_choice("task.metrics", name, LANGUAGE)
        if self.labels is not None:
            raise wrong("task.labels", self.labels, "mean nothing to task=sft")

    def _check_labels(self) -> None:
        if self.labels is None:
            scores = self.score_range
            if scores is None or len(scores) != 2 or not scores[0] < scores[1]:
                rule = "must be [least, largest] where task.labels is null"
                raise wrong("task.score_range", scores, rule)
            return
        check_distinct("task.labels", self.labels)
        check_range("task.labels: their number", len(self.labels), 2)
        if self.source == "digits" and len(self.labels) != 10:
            raise wrong("task.labels", self.labels, "must be the ten digits")

    def _check_words(self) -> None:
        text = self.text_to_text
        if text is None:
            return
        if (text.words is None) != self.regression or (text.step is None) == self.regression:
            rule = "needs words for its labels, or the step of its scores where it has no labels"
            raise wrong("task.text_to_text", {"words": text.words, "step": text.step}, rule)
        if text.words is not None and len(text.words) != len(self.labels or ()):
            rule = f"must be a word for each of the {len(self.labels or ())} labels"
            raise wrong("task.text_to_text.words", text.words, rule)
        if text.step is not None:
            self._check_step(text.step)
        for i in range(2):
            if (f"{{{i}}}" in text.input) != (i < self.sentences):
                rule = (
                    "must hold {0} for the first sentence and {1} for the second, if there is one"
                )
                raise wrong("task.text_to_text.input", text.input, rule)
        try:
            text.input.format(*("",) * self.sentences)
        except (IndexError, KeyError, ValueError, AttributeError) as error:
            rule = "has more in braces than {0} and {1}"
            raise wrong("task.text_to_text.input", text.input, rule) from error

    def _check_step(self, step: float) -> None:
        least, largest = self.score_range or (0.0, 0.0)
        numbers, tenths = (largest - least) / step, step * 10
        if abs(tenths - round(tenths)) > 1e-6:
            rule = "must be tenths: scores are written with one digit after the point"
            raise wrong("task.text_to_text.step", step, rule)
        if abs(numbers - round(numbers)) > 1e-6 or not 1 <= numbers <= MOST_NUMBERS:
            rule = f"must divide task.score_range into 1 to {MOST_NUMBERS} steps"
            raise wrong("task.text_to_text.step", step, rule)

    def _check_metrics(self) -> None:
        check_filled("task.metrics", self.metrics)
        check_distinct("task.metrics", self.metrics)
        for name in self.metrics:
            check_choice("task.metrics", name, (*CLASSIFICATION, *REGRESSION))
            if (name in REGRESSION) != self.regression:
                fit = REGRESSION if self.regression else CLASSIFICATION
                kind = "scores (task.labels is null)" if self.regression else "classes"
                raise wrong("task.metrics", name, f"is none for {kind}; choose {', '.join(fit)}")
            if name == "f1" and len(self.labels or ()) != 2:
                raise wrong("task.metrics", name, "is that of class 1 of two; choose accuracy")

    def _check_layout(self) -> None:
        for key in ("folder", "files", "columns", "header", "text", "label", "hub"):
            if getattr(self, key) is None:
                raise wrong(f"task.{key}", None, "must be given for task.source=glue")
        check_inside("task.folder", self.folder or "")
        files = self.files or {}
        for split, file in files.items():
            check_inside(f"task.files.{split}", file)
        if not {"train", "validation"} <= files.keys():
            raise wrong("task.files", files, "must name those of train and validation")
        if len({of_scores(split) for split in files}) < len(files):
            raise wrong("task.files", files, "names two splits whose scores would be called alike")
        if isinstance(self.columns, dict) and (lacking := files.keys() - self.columns.keys()):
            raise wrong("task.columns", self.columns, f"lacks {', '.join(sorted(lacking))}")
        check_sentences("task.text", self.text or ())
        label = self.label or 0
        for split in files:
            width = self.width(split)
            check_range("task.columns", width, 1)
            for key, column in (("label", label), *(("text", c) for c in self.text or ())):
                least = -width if key == "label" else 0
                if not least <= column < width:
                    rule = f"is none of the {width} columns, counted from 0, of {files[split]}"
                    raise wrong(f"task.{key}", column, rule)
            if label % width in (self.text or ()):
                raise wrong("task.text", self.text, "holds the label's column, task.label")


def of_scores(split: str) -> str:
    """What the names of a split's scores begin with in a record: of validation itself nothing."""
    rest = split.removeprefix("validation").strip("_")
    return f"{rest}_" if rest else ""
