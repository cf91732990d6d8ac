"""Records -> Markdown, CSV and LaTeX: python -m wtacrs_experiments.reports.tables outputs/runs.

A row is a method, a budget and a memory preset; seeds are averaged, with their number and standard
deviation beside the mean. Ratios, and differences paired by seed (``paired``), are against the
plain model (estimator "full", memory "plain") of the same task, model, tuning and settings. The
paper's score stands beside ours where it has one. Runs that failed, ran out of memory or were
interrupted are counted in the cell of the score. What is not known is shown as missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from wtacrs_experiments.config import EstimatorConfig
from wtacrs_experiments.errors import UserError, one_line
from wtacrs_experiments.reports.commits import commit_note
from wtacrs_experiments.reports.latex import latex
from wtacrs_experiments.reports.paper import paper_scores
from wtacrs_experiments.reports.runs import NOT_DONE, PROTOCOLS, aggregate, load_runs
from wtacrs_experiments.words import CAUSE, MIB, MISSING, scale

SCORES = {"paper": "score at best epoch", "held_out": "score, held out"}
READING = (
    "\nFull is plain full of the same tuning (under lora, plain LoRA), paired by seed; an interval "
    "of two pairs says little.\n\nsamples/s and speed are of runs at different times, beside "
    "whatever else the machine did; times to compare are paired: `make bench`.\n"
)
_WORDS = (
    *("method", "task", "model", "tuning", "estimator", "memory", "settings", "metric"),
    *("against full", CAUSE),
)


def display(table: pd.DataFrame, protocol: str = "paper") -> pd.DataFrame:
    """The aggregated table as text cells, in the paper's manner; scores × 100, perplexity as is."""
    names = ["task", "model", "tuning", "estimator", "budget", "grad_norms", "memory"]
    ambiguous = table.duplicated(names).any()
    # The paper's scores are those of the best epoch, so they stand beside no other.
    published = paper_scores(table) if protocol == "paper" else pd.Series(MISSING, table.index)
    rows = []
    for at, row in table.iterrows():
        full = row["estimator"] == "full"
        rows.append(
            {
                "task": row["task"],
                "model": row["model"],
                "tuning": row["tuning"],
                "estimator": "full" if full else _estimator(row),
                "memory": row["memory"],
                # Only where names do not tell rows apart: the hashes, as in the CSV.
                **({"settings": f"{row['settings']} {row['method']}"} if ambiguous else {}),
                "metric": row["metric"],
                SCORES[protocol]: _with_failures(row, _score(row, "score")),
                **({"paper": published[at]} if (published != MISSING).any() else {}),
                **({"score at last epoch": _score(row, "last")} if protocol == "paper" else {}),
                "n": str(row["n"]),
                "score − full [95 %]": _difference(row),
                "against full": _cell(row["against_full"], "{}"),
                "peak MiB": _cell(row["peak_bytes"] / MIB, "{:.1f}"),
                "full / peak": _cell(row["peak_bytes_full_ratio"], "{:.2f}×"),
                "saved MiB": _cell(row["saved_bytes"] / MIB, "{:.1f}"),
                "full / saved": _cell(row["saved_bytes_full_ratio"], "{:.2f}×"),
                "samples/s": _cell(row["samples_per_second"], "{:.1f}"),
                "speed": _cell(row["speed_ratio"], "{:.2f}×"),
            }
        )
    return pd.DataFrame(rows)


def _cell(value: Any, text: str) -> str:
    return MISSING if value is None or pd.isna(value) else text.format(value)


def _estimator(row: pd.Series) -> str:
    """Its name and budget, and where gradient norms come from if that was chosen: "wtacrs@0.3"."""
    source = row["grad_norms"]
    usual = pd.isna(source) or source == EstimatorConfig.grad_norms
    return f"{row['estimator']}@{row['budget']:g}" + ("" if usual else f", grad_norms={source}")


def _score(row: pd.Series, name: str) -> str:
    if pd.isna(row[name]):
        return MISSING
    times, digits = scale(row["metric"])
    text = f"{{:.{digits}f}}"
    return f"{text.format(times * row[name])} ± {_cell(times * row[f'{name}_std'], text)}"


def _with_failures(row: pd.Series, score: str) -> str:
    """The score with what did not complete: "3 failed", or "27.2 ± 2.0 (1 out of memory)"."""
    words = [f"{row[name]} {name.replace('_', ' ')}" for name in NOT_DONE if row[name]]
    if not words:
        return score
    text = ", ".join(words)
    return text if score == MISSING else f"{score} ({text})"


def _difference(row: pd.Series) -> str:
    if pd.isna(row["difference"]):
        return MISSING
    times, digits = scale(row["metric"])
    mean, low, high = (times * row[f"difference{end}"] for end in ("", "_low", "_high"))
    pairs = "" if row["pairs"] == row["n"] else f", {row['pairs']} pairs"
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]{pairs}"


def write_tables(folder: Path, output: Path, protocol: str = "paper") -> pd.DataFrame:
    """Write ``output``.md, .csv and .tex from the records in ``folder``; returns the text."""
    runs = load_runs(folder, protocol)
    table = aggregate(runs)
    text = display(table, protocol)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(markdown(text) + note(runs) + READING, encoding="utf-8")
    output.with_suffix(".tex").write_text(latex(text, words=5), encoding="utf-8")
    table.to_csv(output.with_suffix(".csv"), index=False, float_format="%.12g")
    return text


def note(runs: pd.DataFrame) -> str:
    """What is said below a table of these runs: whether they mix commits."""
    places = runs[["commit", "dirty"]].set_axis(["git_commit", "git_dirty"], axis=1)
    return commit_note(places.to_dict("records"))


def markdown(text: pd.DataFrame) -> str:
    """The displayed table as Markdown, words to the left."""
    alignment = ["left" if name in _WORDS else "right" for name in text]
    return text.to_markdown(index=False, disable_numparse=True, colalign=alignment) + "\n"


def splice(document: Path, table: str, mark: str) -> None:
    """Put ``table`` between the lines ``<!-- begin mark -->`` and ``<!-- end mark -->``.

    Raises:
        UserError: the document has no such lines.
    """
    begin, end = f"<!-- begin {mark} -->", f"<!-- end {mark} -->"
    before, found, rest = document.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"{document} has no lines {begin} and {end}; put them where the table goes")
    document.write_text(f"{before}{begin}\n{table}{end}{after}", encoding="utf-8")


def splice_task(
    document: Path, folder: Path, text: pd.DataFrame, task: str | None, mark: str
) -> None:
    """Put the rows of ``task``, or all, of a written table into ``document``."""
    runs = load_runs(folder)
    if task is not None:
        text, runs = text[text["task"] == task], runs[runs["task"] == task]
    splice(document, markdown(text) + note(runs) + READING, mark)


@one_line()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m wtacrs_experiments.reports.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("records", type=Path, nargs="?", default=Path("outputs/runs"))
    parser.add_argument("--output", type=Path, help="default: outputs/tables/NAME OF THE FOLDER")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper")
    parser.add_argument("--splice", type=Path, help="also put the table into this document")
    parser.add_argument("--task", help="put in the rows of this task alone")
    options = parser.parse_args(arguments)
    output = options.output or Path("outputs/tables") / options.records.resolve().name
    text = write_tables(options.records, output, options.protocol)
    if options.splice is not None:
        splice_task(options.splice, options.records, text, options.task, output.name)
    shown = Table(*text.columns)
    for row in text.itertuples(index=False):
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 240).print(shown)
    print(note(load_runs(options.records)) + READING, end="")
    print(f"{output.with_suffix('.md')}, .csv and .tex")
    return 0


if __name__ == "__main__":
    sys.exit(main())
