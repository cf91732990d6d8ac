"""A step of decoders of today, planned: peak and operations of each method, size by size.

Reads the records of ``python -m wtacrs_experiments.plan.published decoders``, and plans nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from wtacrs_experiments.records.planned import FULL, read_planned
from wtacrs_experiments.reports.commits import commit_note
from wtacrs_experiments.reports.latex import latex
from wtacrs_experiments.reports.tables import markdown, splice
from wtacrs_experiments.words import GIB, MISSING

SHOWN = "Llama-3.2-1B"  # in a document; the others stand in the table of all
NOTE = """
Parameters, gradients and AdamW's state in bf16; planned for CUDA's kernels. A cell is the peak of a
step in GiB, and its operations (of matrix products) beside those of full fine-tuning. A peak that
all methods share is that of parameters, gradients and optimizer state alone.
"""


def table(folder: Path) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """One row a model, size and method: bytes and operations; and what made the records."""
    rows, made = [], []
    for title, methods in read_planned(folder, "decoders").items():
        model, size = title.split(", ")
        for method, record in methods.items():
            memory, full = record["memory"], methods[FULL]
            rows.append(
                {
                    **{"model": model, "size": size, "method": method},
                    "peak_bytes": memory["peak_bytes"],
                    "saved_bytes": memory["saved_bytes"],
                    "compression": full["memory"]["peak_bytes"] / memory["peak_bytes"],
                    "flops_ratio": record["flops"] / full["flops"],
                }
            )
            made.append(record["provenance"])
    return pd.DataFrame(rows), made


def display(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a model and method, a column a size."""
    cells = rows.assign(
        cell=[
            f"{peak / GIB:.2f} · {ratio:.2f}×"
            for peak, ratio in zip(rows["peak_bytes"], rows["flops_ratio"], strict=True)
        ]
    )
    wide = cells.pivot_table(
        index=["model", "method"], columns="size", values="cell", aggfunc="first", sort=False
    )
    return wide.fillna(MISSING).reset_index().rename_axis(columns=None)


def write(folder: Path, output: Path, document: Path | None = None) -> str:
    """Write ``output``.md, .csv and .tex; returns the Markdown table with what stands below it.

    Args:
        folder: of the plans.
        document: where the rows of the model ``SHOWN`` stand between the marks "decoders", too.

    Raises:
        UserError: no plans, or a document without marks.
    """
    rows, made = table(folder)
    note = commit_note(made)
    text = display(rows)
    output.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(output.with_suffix(".csv"), index=False, float_format="%.12g")
    output.with_suffix(".tex").write_text(latex(text), encoding="utf-8")
    whole = f"{markdown(text)}{NOTE}{note}"
    output.with_suffix(".md").write_text(whole, encoding="utf-8")
    if document is not None:
        short = text[text["model"] == SHOWN]
        splice(document, f"{markdown(short)}{note}", "decoders")
    return whole
