"""Parts of the group ``task``: sentences on the hub, and how T5 reads and answers them."""

from __future__ import annotations

from dataclasses import dataclass

from wtacrs_experiments.config.build import left_out
from wtacrs_experiments.config.rules import check_distinct, check_range, check_text, wrong


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Where the same rows lie on the hub."""

    path: str
    name: str
    text: tuple[str, ...]  # columns
    splits: dict[str, str] | None = left_out()  # where a split has another name there

    def __post_init__(self) -> None:
        for key in ("path", "name"):
            check_text(f"task.hub.{key}", getattr(self, key))
        check_sentences("task.hub.text", self.text)


@dataclass(frozen=True, kw_only=True)
class TextToTextConfig:
    """How a text-to-text model reads a row and what it writes for an answer."""

    input: str  # {0} stands for the first sentence, {1} for the second
    words: tuple[str, ...] | None = left_out()  # of each label, in order
    step: float | None = left_out()  # between the scores that are written, of a regression

    def __post_init__(self) -> None:
        check_text("task.text_to_text.input", self.input)
        check_distinct("task.text_to_text.words", self.words or ())
        for word in self.words or ():
            check_text("task.text_to_text.words", word)
        if self.step is not None:
            check_range("task.text_to_text.step", self.step, above=0)


def check_sentences(key: str, columns: tuple[int, ...] | tuple[str, ...]) -> None:
    """Columns of one sentence or two."""
    if not 1 <= len(columns) <= 2:
        raise wrong(key, columns, "must name the columns of one sentence or two")
    check_distinct(key, columns)
    for column in columns:
        if isinstance(column, str):
            check_text(key, column)
