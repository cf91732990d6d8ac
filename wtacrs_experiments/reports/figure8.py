"""Figure 8 of the paper and ours beside it: python -m wtacrs_experiments.reports.figure8 FOLDER.

Batch sizes over full's largest, samples a second over full's at its last point: machines and models
differ, these ratios compare. Ours: figure8-<model>.json in the folder. The paper's:
reports/paper_data/figure8_throughput.csv, read off the plot of arXiv 2305.15265, with the largest
batches that its text and marks give; full's last points there come before these.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from wtacrs_experiments.config import PAPER
from wtacrs_experiments.errors import NoRecordError, UserError, one_line
from wtacrs_experiments.records.shape import parse
from wtacrs_experiments.reports.commits import commit_note
from wtacrs_experiments.reports.drawing import STYLE, panels, save
from wtacrs_experiments.reports.paper import LARGEST

THROUGHPUT = PAPER / "figure8_throughput.csv"
LOOKS = {
    "full": ("#000000", "o"),
    "checkpoint": ("#CC79A7", "s"),
    "WTA-CRS@0.3": ("#0072B2", "^"),
    "WTA-CRS@0.1": ("#56B4E9", "v"),
    "leanest@0.3": ("#D55E00", "D"),
}


def paper_points(path: Path) -> pd.DataFrame:
    """model, method, batch_size, samples, largest; of the paper."""
    rows = pd.read_csv(path).rename(columns={"sentences_per_second": "samples"})
    pairs = zip(rows["model"], rows["method"], strict=True)
    rows["largest"] = [LARGEST[model][method] for model, method in pairs]
    rows["method"] = rows["method"].replace("Full", "full")
    return rows.assign(model=rows["model"] + " (paper)")


def our_points(folder: Path) -> pd.DataFrame:
    """The same of our records; samples are relative to the record's reference step. Where memory
    ended before the largest batch that was planned, the largest is the last one that was measured.

    Raises:
        NoRecordError: there is none.
        UserError: full has no point in one.
    """
    rows = []
    for record in _records(folder):
        precision = record.get("precision", "fp32")
        model = record["model"] + ("" if precision == "fp32" else f", {precision}")
        for method, found in record["methods"].items():
            points = [one for one in found["points"] if one["relative_samples_per_second"]]
            if method == "full" and not points:
                raise UserError(f"{folder}: {model} has no point of full, the base of every ratio")
            rows += [
                {
                    "model": model,
                    "method": method,
                    "batch_size": point["batch_size"],
                    "samples": point["relative_samples_per_second"]["median"],
                    "largest": max(one["batch_size"] for one in points),
                }
                for point in points
            ]
    if not rows:
        raise NoRecordError(
            f"{folder} holds no figure8-<model>.json; make them: "
            "python -m wtacrs_experiments.bench.figure8 model=bert_base"
        )
    return pd.DataFrame(rows)


def _records(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("figure8-*.json"))
    return [read_measured(path) for path in paths]


def read_measured(path: Path) -> dict[str, Any]:
    """A record of ``wtacrs_experiments.bench.figure8``.

    Raises:
        UserError: it is none.
    """
    try:
        record: dict[str, Any] = parse(path.read_text(encoding="utf-8"))
        _ = str(record["model"]), record["provenance"].get("git_commit")
        for found in record["methods"].values():
            for point in found["points"]:
                relative = point["relative_samples_per_second"] or {"median": 0}
                _ = found["largest_batch"] + point["batch_size"] + relative["median"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path} is no record of wtacrs_experiments.bench.figure8 ({why})"
        ) from error
    return record


def relative(points: pd.DataFrame) -> pd.DataFrame:
    """With batch_ratio and largest_ratio, over full's largest batch, and samples_ratio, over full's
    at its last point."""
    full = points[points["method"] == "full"].sort_values("batch_size").groupby("model").last()
    of = full.loc[points["model"]]
    return points.assign(
        batch_ratio=points["batch_size"] / of["largest"].to_numpy(),
        samples_ratio=points["samples"] / of["samples"].to_numpy(),
        largest_ratio=points["largest"] / of["largest"].to_numpy(),
    )


def figure(points: pd.DataFrame) -> Any:
    """A panel a model; a dotted line where a method's memory ends."""

    def draw(axis: Axes, model: str) -> None:
        for method, (colour, marker) in LOOKS.items():
            line = points[(points["model"] == model) & (points["method"] == method)]
            if line.empty:
                continue
            look: dict[str, Any] = {"color": colour, "marker": marker, "label": method}
            axis.plot(line["batch_ratio"], line["samples_ratio"], **look)
            axis.axvline(line["largest_ratio"].iloc[0], color=colour, ls=":", lw=1)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.2g}")
        axis.set_xlabel("batch / full's largest")

    names = [*points["model"].unique()]
    return panels(names, draw, "samples a second / full's at its last point")


def table(points: pd.DataFrame) -> pd.DataFrame:
    """A row a model and method: the largest batch, and the samples a second at the last point."""
    last = points.sort_values("batch_size").groupby(["model", "method"], sort=False).last()
    shown = last.reset_index().sort_values(["model", "largest"])
    return pd.DataFrame(
        {
            "model": shown["model"],
            "method": shown["method"],
            "largest batch": shown["largest"].astype(str),
            "/ full's": shown["largest_ratio"].map("{:.2f}×".format),
            "samples/s / full's": shown["samples_ratio"].map("{:.2f}×".format),
        }
    )


def write(folder: Path, paper: Path, output: Path) -> Path:
    """Write the figure and the table below ``output``; returns the file of the table.

    Raises:
        UserError: ``folder`` has no record.
    """
    points = relative(pd.concat([our_points(folder), paper_points(paper)]))
    with plt.rc_context(STYLE):
        save(figure(points), output / "figures" / "figure8")
    path = output / "tables" / "figure8.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    text, alignment = table(points), ["left", "left", "right", "right", "right"]
    shown = text.to_markdown(index=False, disable_numparse=True, colalign=alignment)
    note = commit_note(record["provenance"] for record in _records(folder))
    path.write_text(f"{shown}\n{note}", encoding="utf-8")
    return path


@one_line()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m wtacrs_experiments.reports.figure8", description=__doc__
    )
    parser.add_argument("records", type=Path, nargs="?", default=Path("outputs/bench"))
    parser.add_argument("--paper", type=Path, default=THROUGHPUT)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(arguments)
    print(write(options.records, options.paper, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
