"""The paper's scores: Table 1 of arXiv 2305.15265, in reports/paper_data/table1_glue.csv.

GLUE score x 100, mean ± standard deviation over three seeds, at the best epoch on the validation
split. A score is held beside ours only where the metric is the same.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pandas as pd

from wtacrs_experiments.config import PAPER
from wtacrs_experiments.words import MISSING

TABLE1 = PAPER / "table1_glue.csv"
TABLE2 = PAPER / "table2.csv"
MODELS = {
    **{"bert_base": "BERT-Base", "bert_large": "BERT-Large"},
    **{"t5_base": "T5-Base", "t5_large": "T5-Large", "t5_3b": "T5-3B"},
}
LARGEST = {  # batches of Figure 8, where memory ends
    "T5-Large": {"Full": 230, "WTA-CRS@0.3": 550, "WTA-CRS@0.1": 755},
    "T5-3B": {"Full": 55, "WTA-CRS@0.3": 135, "WTA-CRS@0.1": 195},
}
METRICS = {"cola": "matthews_correlation", "stsb": "pearson", "mrpc": "f1", "qqp": "f1"}


def paper_scores(table: pd.DataFrame) -> pd.Series:
    """The paper's cell of each row of a table of runs, as text; missing where it has none."""
    published = _published()
    return pd.Series(
        [
            published.get((row.model, paper_method(row), row.task), MISSING)
            if row.metric == METRICS.get(row.task, "accuracy")
            else MISSING
            for row in table.itertuples()
        ],
        table.index,
        dtype=object,
    )


def paper_method(row: Any) -> str | None:
    """What the paper calls the method of a row (tuning, estimator, budget, memory); None if not."""
    tuning, estimator, memory = (getattr(row, name) for name in ("tuning", "estimator", "memory"))
    if tuning not in ("full", "lora"):
        return None
    if estimator == "full" and memory == "plain":
        return {"full": "Full", "lora": "LoRA"}[tuning]
    if estimator == "wtacrs" and memory in ("linear", "paper"):
        return f"{'LoRA+' if tuning == 'lora' else ''}WTA-CRS@{row.budget:g}"
    return None


@cache
def _published() -> dict[tuple[str, str | None, str], str]:
    if not TABLE1.exists():  # an installed package has no results
        return {}
    long = pd.read_csv(TABLE1).melt(["model", "method"], var_name="task", value_name="score")
    ours = {theirs: name for name, theirs in MODELS.items()}
    return {
        (ours[row.model], row.method, row.task): str(row.score).replace("±", " ± ")
        for row in long.itertuples()
        if row.task != "avg"
    }
