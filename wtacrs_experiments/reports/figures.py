"""Records -> figures: python -m wtacrs_experiments.reports.figures variance results/variance.

variance: the four figures and the two tables of experiment=variance, from its records.
ablation: score against budget per method, from the records of runs; named after their folder.
tradeoff: score and time against peak memory per method, from the records of runs of one task.
memory, batches: of what the peak is made, and the largest batches, from plans in results/plan.

Nothing is measured or planned. Files go to outputs/figures and outputs/tables, or below --output.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from wtacrs_experiments.errors import UserError, one_line
from wtacrs_experiments.records.planned import read_planned
from wtacrs_experiments.records.record import read_record
from wtacrs_experiments.reports.commits import commit_note
from wtacrs_experiments.reports.drawing import STYLE, ablation_figure, save
from wtacrs_experiments.reports.memory_figures import batch_figure, memory_figure
from wtacrs_experiments.reports.paper import TABLE2
from wtacrs_experiments.reports.runs import GROUP, aggregate, load_runs
from wtacrs_experiments.reports.tradeoff import tradeoff_figure
from wtacrs_experiments.reports.variance_data import (
    error_frame,
    load_probes,
    summarise,
    winner_frame,
)
from wtacrs_experiments.reports.variance_figures import (
    budget_figure,
    source_figure,
    winner_mass_figure,
    winners_figure,
)
from wtacrs_experiments.reports.variance_tables import probe_table, variance_table


def variance(folder: Path, output: Path, name: str) -> None:
    """All that experiment=variance shows."""
    probes = load_probes(folder)
    errors, winners = summarise(error_frame(probes)), winner_frame(probes)
    save(winner_mass_figure(probes), output / "figures" / f"{name}_winner_mass")
    save(budget_figure(errors), output / "figures" / f"{name}_budget")
    save(source_figure(errors), output / "figures" / f"{name}_source")
    save(winners_figure(winners, errors), output / "figures" / f"{name}_winners")
    (output / "tables").mkdir(parents=True, exist_ok=True)
    note = commit_note(read_record(path).provenance for path in sorted(folder.glob("*.json")))
    for end, text in (("", variance_table(errors)), ("_probes", probe_table(errors))):
        path = output / "tables" / f"{name}{end}.md"
        path.write_text(text + note, encoding="utf-8")
        print(path)


def ablation(folder: Path, output: Path, name: str) -> None:
    """The figure of experiment=ablation, and of experiment=centred."""
    table = aggregate(load_runs(folder))
    done = table[table["n"] > 0]
    if done.empty:
        raise UserError(f"{folder} holds no completed run, so there is no score to draw")
    save(ablation_figure(done), output / "figures" / name)


def tradeoff(folder: Path, output: Path, name: str) -> None:
    """The figure of what each method costs and gives."""
    table = aggregate(load_runs(folder))
    done = table[(table["n"] > 0) & table["peak_bytes"].notna() & table["speed_ratio"].notna()]
    if done.empty:
        raise UserError(
            f"{folder} holds no completed run beside a full one, whose memory and time are measured"
        )
    if len(done[GROUP].drop_duplicates()) > 1:
        raise UserError(f"{folder} holds several tasks, models or settings; give runs of one")
    save(tradeoff_figure(done), output / "figures" / name)


def memory(folder: Path, output: Path, name: str) -> None:
    """The figure of the parts of the peak."""
    drawn = memory_figure(read_planned(folder, "table2"), pd.read_csv(TABLE2))
    save(drawn, output / "figures" / "memory_breakdown")


def batches(folder: Path, output: Path, name: str) -> None:
    """The figure of the largest batches."""
    save(batch_figure(read_planned(folder, "batches")), output / "figures" / "memory_batch")


KINDS = {
    **{"variance": variance, "ablation": ablation, "tradeoff": tradeoff},
    **{"memory": memory, "batches": batches},
}


@one_line()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m wtacrs_experiments.reports.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("records", type=Path)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    parser.add_argument("--name", help="how files begin; else the folder of the records is it")
    options = parser.parse_args(arguments)
    draw(options.kind, options.records, options.output, options.name)
    return 0


def draw(kind: str, folder: Path, output: Path, name: str | None = None) -> None:
    """Draw one of ``KINDS`` in the project's style, below ``output``.

    Raises:
        UserError: the folder does not hold its records.
    """
    with plt.rc_context(STYLE):
        KINDS[kind](folder, output, name or folder.resolve().name)


if __name__ == "__main__":
    sys.exit(main())
