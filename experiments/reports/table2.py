"""The paper's Table 2, planned, and ours beside it: python -m experiments.reports.table2.

T5-Base and T5-Large, batch 100, sequence 128, float32, AdamW, dropout 0.1, targets of 2 tokens.
Published numbers: results/paper/table2.csv, from Table 2 of arXiv 2305.15265. They are of another
machine, another transformers and a unit of its own, so compressions are compared, not bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.errors import UserError
from experiments.plan.kept import Record, planned_step
from experiments.reports.tables import splice
from experiments.words import GIB, MISSING

MODELS = {"T5-Base": "t5_base", "T5-Large": "t5_large"}
SIZE = ("batch_size=100", "max_length=128", "target_length=2", "precision=fp32", "device=cuda")
FULL = "Full"
METHODS = {  # names of the paper's rows as the paper has them; full attends as its code does
    FULL: ("memory=plain", "memory.attention=eager"),
    "LoRA": ("memory=plain", "memory.attention=eager", "tuning=lora"),
    "LST": ("memory=plain", "memory.attention=eager", "tuning=lst"),
    "WTA-CRS@0.3": ("memory=paper", "budget=0.3"),
    "WTA-CRS@0.1": ("memory=paper", "budget=0.1"),
    "LoRA+WTA-CRS@0.3": ("memory=paper", "budget=0.3", "tuning=lora"),
    "LoRA+WTA-CRS@0.1": ("memory=paper", "budget=0.1", "tuning=lora"),
    "Full, sdpa": ("memory=plain", "memory.attention=sdpa"),
    "checkpoint": ("memory=checkpoint",),
    "lean@0.3, nothing recomputed": ("memory=lean", "memory.recompute=none", "budget=0.3"),
    "lean@0.1, nothing recomputed": ("memory=lean", "memory.recompute=none", "budget=0.1"),
    "lean@0.3": ("memory=lean", "budget=0.3"),
    "lean@0.1": ("memory=lean", "budget=0.1"),
    "leanest@0.3": ("memory=leanest", "budget=0.3"),
    "leanest@0.1": ("memory=leanest", "budget=0.1"),
    "LoRA+lean@0.3": ("memory=lean", "budget=0.3", "tuning=lora"),
    "LoRA+lean@0.1": ("memory=lean", "budget=0.1", "tuning=lora"),
    "LoRA+checkpoint": ("memory=checkpoint", "tuning=lora"),
    "LoRA+leanest@0.3": ("memory=leanest", "budget=0.3", "tuning=lora"),
}
PAPER_UNIT = 1000 * 2**20  # bytes in the paper's "GB"
NOTE = """
Batch 100, sequence 128, targets of 2 tokens, float32, AdamW, dropout 0.1; planned for CUDA's
kernels. Operations are those of matrix products. Column "paper": Table 2 of arXiv 2305.15265.
"""
TOLERANCE = 0.05  # a compression that differs by more has its cause named


def plan_all(folder: Path, overwrite: bool = False) -> dict[str, dict[str, Record]]:
    """Model -> method -> record of its planned step; what has a record is not planned again."""
    return {
        title: {
            method: planned_step((f"model={model}", *SIZE, *overrides), folder, overwrite)
            for method, overrides in METHODS.items()
        }
        for title, model in MODELS.items()
    }


def table(records: dict[str, dict[str, Record]], paper: pd.DataFrame) -> pd.DataFrame:
    """One row a model and method: bytes, compressions, operations, and the cause of a difference.

    Args:
        records: as ``plan_all`` gives them.
        paper: model, method, peak_gb, compression.
    """
    published = paper.set_index(["model", "method"])
    rows = []
    for model, methods in records.items():
        full = methods[FULL]
        for method, record in methods.items():
            memory = record["memory"]
            known = (model, method) in published.index
            row = {
                "model": model,
                "method": method,
                "peak_bytes": memory["peak_bytes"],
                "compression": full["memory"]["peak_bytes"] / memory["peak_bytes"],
                "paper_peak_bytes": None,
                "paper_compression": None,
                "difference": None,
                "flops_ratio": record["flops"] / full["flops"],
                **{f"{part}_at_peak_bytes": count for part, count in memory["at_peak"].items()},
                "cause": "",
            }
            if known:
                row["paper_peak_bytes"] = published.loc[(model, method), "peak_gb"] * PAPER_UNIT
                row["paper_compression"] = published.loc[(model, method), "compression"]
                row["difference"] = row["compression"] / row["paper_compression"] - 1
                if abs(row["difference"]) > TOLERANCE:
                    paper_full = published.loc[(model, FULL), "peak_gb"] * PAPER_UNIT
                    row["cause"] = cause(row, record, full, paper_full)
            rows.append(row)
    return pd.DataFrame(rows)


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
            "peak GiB": (rows["peak_bytes"] / GIB).map("{:.2f}".format),
            "full / peak": rows["compression"].map("{:.2f}×".format),
            "paper": [cell(value, "{:.3g}×") for value in rows["paper_compression"]],
            "difference": [cell(value, "{:+.0%}") for value in rows["difference"]],
            "operations / full": rows["flops_ratio"].map("{:.2f}×".format),
            "cause of more than 5 %": rows["cause"],
        }
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reports.table2", description=__doc__
    )
    parser.add_argument("--records", type=Path, default=Path("results/plan"))
    parser.add_argument("--paper", type=Path, default=Path("results/paper/table2.csv"))
    parser.add_argument("--output", type=Path, default=Path("results/tables/table2"))
    parser.add_argument("--splice", type=Path, help="put T5-Base's rows into this document")
    parser.add_argument("--overwrite", action="store_true", help="plan again what has a record")
    options = parser.parse_args(arguments)
    try:
        records = plan_all(options.records, options.overwrite)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = table(records, pd.read_csv(options.paper))
    text = display(rows)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(options.output.with_suffix(".csv"), index=False)
    alignment = ["right" if name[0] in "pfdo" else "left" for name in text]
    markdown = text.to_markdown(index=False, disable_numparse=True, colalign=alignment)
    options.output.with_suffix(".md").write_text(f"{markdown}\n{NOTE}")
    if options.splice is not None:
        short = text[text["model"] == "T5-Base"].drop(columns=["model", "cause of more than 5 %"])
        lines = short.to_markdown(
            index=False, disable_numparse=True, colalign=["left"] + ["right"] * 5
        )
        splice(options.splice, f"{lines}\n", "table2")
    print(markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
