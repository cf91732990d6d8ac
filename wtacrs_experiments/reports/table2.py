"""The paper's Table 2, planned, and ours beside it: python -m wtacrs_experiments.reports.table2.

Reads the records of ``python -m wtacrs_experiments.plan.published table2``, and plans nothing.
T5-Base and T5-Large, batch 100, sequence 128, float32, AdamW, dropout 0.1, targets of 2 tokens.
Published numbers: reports/paper_data/table2.csv, from Table 2 of arXiv 2305.15265. They are of
another machine, transformers and unit, so compressions are compared, not bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from wtacrs_experiments.errors import one_line
from wtacrs_experiments.records.planned import FULL, Planned, read_planned
from wtacrs_experiments.reports.commits import commit_note
from wtacrs_experiments.reports.latex import latex
from wtacrs_experiments.reports.paper import TABLE2
from wtacrs_experiments.reports.tables import markdown, splice
from wtacrs_experiments.words import CAUSE, GIB, MISSING

Record = dict[str, Any]

PAPER_UNIT = 1000 * 2**20  # bytes in the paper's "GB"
NOTE = """
Batch 100, sequence 128, targets of 2 tokens, float32, AdamW, dropout 0.1; planned for CUDA's
kernels. Operations are those of matrix products. Column "paper": Table 2 of arXiv 2305.15265; a
row that only the paper has is missing here.
"""
TOLERANCE = 0.05  # a compression that differs by more has its cause named


def table(records: Planned, paper: pd.DataFrame) -> pd.DataFrame:
    """One row a model and method: bytes, compressions, operations, and the cause of a difference.

    The paper's methods come first and in its order, with what is ours missing where it has no plan.

    Args:
        records: as ``read_planned`` gives them.
        paper: model, method, peak_gb, compression.
    """
    published = paper.set_index(["model", "method"])
    rows = []
    for model, methods in records.items():
        theirs = paper.loc[paper["model"] == model, "method"]
        for method in dict.fromkeys([*theirs, *methods]):
            known = (model, method) in published.index
            row = {"model": model, "method": method, **_ours(methods.get(method), methods[FULL])}
            row |= {"paper_peak_bytes": None, "paper_compression": None, "difference": None}
            row["cause"] = ""
            if known:
                row["paper_peak_bytes"] = published.loc[(model, method), "peak_gb"] * PAPER_UNIT
                row["paper_compression"] = published.loc[(model, method), "compression"]
            if known and method in methods:
                row["difference"] = row["compression"] / row["paper_compression"] - 1
                if abs(row["difference"]) > TOLERANCE:
                    paper_full = published.loc[(model, FULL), "peak_gb"] * PAPER_UNIT
                    row["cause"] = cause(row, methods[method], methods[FULL], paper_full)
            rows.append(row)
    return pd.DataFrame(rows)


def _ours(record: Record | None, full: Record) -> dict[str, Any]:
    if record is None:
        return {"peak_bytes": None, "compression": None, "flops_ratio": None}
    memory = record["memory"]
    return {
        "peak_bytes": memory["peak_bytes"],
        "compression": full["memory"]["peak_bytes"] / memory["peak_bytes"],
        "flops_ratio": record["flops"] / full["flops"],
        **{f"{part}_at_peak_bytes": count for part, count in memory["at_peak"].items()},
    }


def cause(row: dict[str, Any], record: Record, full: Record, paper_full: float) -> str:
    """Where the bytes are that make the compression differ from the paper's.

    Of the paper's rows only the peaks are known, so it is said what these leave open.
    """
    memory, full_memory = record["memory"], full["memory"]
    if record["config"]["tuning"]["name"] == "lora" and record["config"]["budget"] == 1:
        saved = full_memory["saved_bytes"] - memory["saved_bytes"]
        published = paper_full - row["paper_peak_bytes"]
        states = full_memory["optimizer_bytes"] + full_memory["gradient_bytes"]
        return (
            f"frozen layers keep no input here, {saved / GIB:.1f} GiB less; the paper's LoRA saves "
            f"{published / GIB:.1f} GiB in all, optimizer state and gradients alone being "
            f"{states / GIB:.1f}"
        )
    above = row["paper_peak_bytes"] - memory["peak_bytes"]
    full_above = paper_full - full_memory["peak_bytes"]
    return (
        f"the paper's peak is {above / GIB:.1f} GiB above this one, its full row's "
        f"{full_above / GIB:.1f} above ours: about as much on top of a smaller peak, of what is "
        "not published"
    )


def display(rows: pd.DataFrame) -> pd.DataFrame:
    """The table as text cells."""

    def cell(value: Any, text: str) -> str:
        return MISSING if pd.isna(value) else text.format(value)

    return pd.DataFrame(
        {
            "model": rows["model"],
            "method": rows["method"],
            "peak GiB": [cell(value / GIB, "{:.2f}") for value in rows["peak_bytes"].astype(float)],
            "full / peak": [cell(value, "{:.2f}×") for value in rows["compression"]],
            "paper": [cell(value, "{:.3g}×") for value in rows["paper_compression"]],
            "difference": [cell(value, "{:+.0%}") for value in rows["difference"]],
            "operations / full": [cell(value, "{:.2f}×") for value in rows["flops_ratio"]],
            CAUSE: rows["cause"],
        }
    )


def write(folder: Path, paper: Path, output: Path, document: Path | None = None) -> str:
    """Write ``output``.md, .csv and .tex; returns the Markdown table with what stands below it.

    Args:
        folder: of the plans.
        paper: the published numbers.
        document: where the table, without its causes, stands between its marks too.

    Raises:
        UserError: no plans, or a document without marks.
    """
    records = read_planned(folder, "table2")
    rows = table(records, pd.read_csv(paper))
    text = display(rows)
    short = text.drop(columns=CAUSE)
    made = [record["provenance"] for methods in records.values() for record in methods.values()]
    note = commit_note(made)
    output.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(output.with_suffix(".csv"), index=False, float_format="%.12g")
    output.with_suffix(".tex").write_text(latex(short), encoding="utf-8")
    whole = markdown(text)
    output.with_suffix(".md").write_text(f"{whole}{NOTE}{note}", encoding="utf-8")
    if document is not None:
        splice(document, f"{markdown(short)}{note}", "table2")
    return whole + note


@one_line()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m wtacrs_experiments.reports.table2", description=__doc__
    )
    parser.add_argument("--records", type=Path, default=Path("results/plan"))
    parser.add_argument("--paper", type=Path, default=TABLE2)
    parser.add_argument("--output", type=Path, default=Path("outputs/tables/table2"))
    parser.add_argument("--splice", type=Path, help="put the table into this document too")
    options = parser.parse_args(arguments)
    print(write(options.records, options.paper, options.output, options.splice))
    print(f"{options.output.with_suffix('.md')}, .csv and .tex")
    return 0


if __name__ == "__main__":
    sys.exit(main())
