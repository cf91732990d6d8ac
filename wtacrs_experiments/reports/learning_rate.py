"""Scores of full fine-tuning by learning rate: that of Table 1 beside others.

A row is a run of ``results/learning_rate``, or the run of Table 1 from which it differs by its
learning rate alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from wtacrs_experiments.reports.runs import no_record, read_run
from wtacrs_experiments.reports.table1 import run_key
from wtacrs_experiments.reports.tables import markdown, note, splice
from wtacrs_experiments.words import MISSING, scale

OF = "run"  # what runs have in common that differ by their learning rate alone


def runs(tried: Path, chosen: Path) -> pd.DataFrame:
    """The completed runs of ``tried``, and those of ``chosen`` that differ by their rate alone."""
    found = pd.DataFrame([row for path in tried.glob("*.json") if (row := _row(path))])
    if found.empty:
        raise no_record(tried)
    beside = [row for path in chosen.glob("*.json") if (row := _row(path))]
    of_them = [row for row in beside if row[OF] in set(found[OF])]
    return pd.concat([found, pd.DataFrame(of_them)]).sort_values(["task", "seed", "rate"])


def _row(path: Path) -> dict[str, Any] | None:
    """The run of a record as a row; None if it did not complete."""
    record, row = read_run(path)
    if record.status != "completed":
        return None
    training = dict(record.config["training"])
    rate, metrics = training.pop("learning_rate"), record.metrics or {}
    held_out = (metrics.get("held_out") or {}).get("score")
    own = {"rate": rate, "held_out": held_out, OF: run_key(record.config | {"training": training})}
    return row | own


def display(found: pd.DataFrame) -> pd.DataFrame:
    """The table as text cells; scores × 100."""
    text = found[["task", "seed"]].astype(str)
    text.insert(1, "metric", found["metric"])
    text["learning rate"] = found["rate"].map("{:g}".format)
    titles = {"best epoch": "score", "last epoch": "last", "held out": "held_out"}
    for title, name in titles.items():
        pairs = zip(found["metric"], found[name], strict=True)
        text[title] = [_score(metric, value) for metric, value in pairs]
    return text


def _score(metric: str, value: float | None) -> str:
    times, digits = scale(metric)
    return MISSING if value is None or pd.isna(value) else f"{times * value:.{digits}f}"


def write(tried: Path, chosen: Path, output: Path, document: Path) -> None:
    """Write the table to ``output``.md, and into ``document``.

    Args:
        tried: folder of the runs at other rates.
        chosen: folder of Table 1.

    Raises:
        UserError: no record in ``tried``, or a damaged one in either.
    """
    found = runs(tried, chosen)
    text = markdown(display(found)) + note(found)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    splice(document, text, "learning-rate")
