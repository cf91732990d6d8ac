"""The figures of planned memory: what is drawn, from which records."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from wtacrs_experiments.plan.published import FITS
from wtacrs_experiments.records.planned import FULL, index_path
from wtacrs_experiments.records.store import write_json
from wtacrs_experiments.reports import memory_figures
from wtacrs_experiments.reports.figures import main
from wtacrs_experiments.reports.memory_figures import PARTS, batch_figure, memory_figure
from wtacrs_experiments.words import GIB


def batches(slope):
    """What was planned of a method whose peak is ``slope`` GiB a sample."""
    largest = {fits: int(float(fits[:-3]) / slope) for fits in FITS}
    sizes = {1, 7, *largest.values(), *(size + 1 for size in largest.values())}
    peaks = {str(size): int(size * slope * GIB) for size in sorted(sizes)}
    return {"peak_bytes_by_batch": peaks, "largest_batch": largest}


def test_every_memory_that_is_planned_has_a_mark():
    assert [*memory_figures.FITS] == [*FITS]
    looks = [*memory_figures.FITS.values()]
    assert all(len({*part}) == len(FITS) for part in zip(*looks, strict=True))


def test_batches_are_marks_alone_and_the_papers_stand_beside_ours():
    records = {
        "T5-Large": {"WTA-CRS@0.3": batches(0.01), FULL: batches(0.5)},
        "T5-3B": {FULL: batches(50.0), "checkpoint": batches(0.1)},
    }
    figure = batch_figure(records)
    large, other = figure.axes
    assert [text.get_text() for text in large.get_yticklabels()] == [FULL, "WTA-CRS@0.3"]
    assert (large.get_xscale(), large.get_xlim()) == ("log", other.get_xlim())
    ours = [line for line in large.lines if line.get_label().endswith("GiB")]
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ours[:6]]
    assert marks == [(48, 0), (80, 0), (160, 0), (2400, 1), (4000, 1), (8000, 1)]
    (paper,) = [line for line in large.lines if line.get_label().startswith("the paper's")]
    assert paper.get_xdata()[0] == pytest.approx(160 * 550 / 230)
    texts = [text.get_text() for text in other.texts]
    assert texts == ["1", "240", "400", "800"]  # nothing where not one sample fits
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["24 GiB", "40 GiB", "80 GiB", "the paper's ratio to full, in 80 GiB"]
    plt.close(figure)


def steps(peak):
    at_peak = dict.fromkeys(PARTS, peak * GIB // len(PARTS))
    return {"memory": {"peak_bytes": peak * GIB, "at_peak": at_peak}}


def test_parts_of_the_peak_are_stacked_and_the_papers_ratio_is_a_mark():
    paper = pd.DataFrame(
        [("A", FULL, 1.0), ("A", "lean@0.3", 1.6), ("B", "lean@0.3", 9.0)],
        columns=["model", "method", "compression"],
    )
    ours = {"A": {FULL: steps(10), "lean@0.3": steps(5)}, "B": {FULL: steps(20)}}
    figure = memory_figure(ours, paper)
    marks = [[(*line.get_xdata(), *line.get_ydata()) for line in a.lines] for a in figure.axes]
    assert marks == [[(6.25, 1)], []]
    ends = [bar.get_x() + bar.get_width() for bar in figure.axes[0].containers[-1]]
    assert ends == pytest.approx([10, 5])
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "10.0 (1.0×)",
        "5.0 (2.0×)",
    ]
    plt.close(figure)


def test_command_draws_records_and_plans_nothing(tmp_path, capsys):
    for at, slope in enumerate((0.5, 0.1)):
        write_json(batches(slope), tmp_path / f"batches-{at}.json")
    index = {"A": {FULL: "batches-0.json"}, "B": {FULL: "batches-1.json"}}
    write_json(index, index_path(tmp_path, "batches"))
    assert main(["batches", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    drawn = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert drawn == {"memory_batch.svg", "memory_batch.png"}
    assert main(["memory", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "plan.published table2" in capsys.readouterr().err
