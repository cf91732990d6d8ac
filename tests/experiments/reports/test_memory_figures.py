"""The figures of planned memory: what is drawn, from which records."""

import matplotlib.pyplot as plt
import pytest

from experiments.plan.published import BATCH_METHODS, FITS
from experiments.records.planned import FULL, index_path
from experiments.records.store import write_json
from experiments.reports import memory_figures
from experiments.reports.figures import main
from experiments.reports.memory_figures import COLOURS, PARTS, batch_figure, memory_figure
from experiments.words import GIB


def batches(slope):
    """What was planned of a method whose peak is ``slope`` GiB a sample."""
    largest = {fits: int(float(fits[:-3]) / slope) for fits in FITS}
    sizes = {1, 7, *largest.values(), *(size + 1 for size in largest.values())}
    peaks = {str(size): int(size * slope * GIB) for size in sorted(sizes)}
    return {"peak_bytes_by_batch": peaks, "largest_batch": largest}


def test_methods_have_a_colour_each():
    assert {*COLOURS} == {*BATCH_METHODS}
    assert len({*COLOURS.values()}) == len(COLOURS)
    assert memory_figures.FITS == FITS


def test_points_are_the_largest_batches_alone():
    records = {
        "T5-Large": {FULL: batches(0.5), "leanest@0.3": batches(0.01)},
        "T5-3B": {FULL: batches(2.0), "checkpoint": batches(0.1)},
    }
    figure = batch_figure(records)
    above, below = figure.axes[0], figure.axes[2]
    points = [line for line in above.lines if line.get_marker() == "o"]
    assert [line.get_xdata().tolist() for line in points] == [[48, 80, 160], [2400, 4000, 8000]]
    curves = [line for line in above.lines if line.get_label() in COLOURS]
    assert {line.get_marker() for line in curves} == {"None"}
    assert below.get_yscale() == "log"
    assert [bar.get_height() for bar in below.containers[1]] == [2400, 4000, 8000]
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == [FULL, "leanest@0.3", "checkpoint"]  # of any model
    plt.close(figure)


def steps(peak):
    at_peak = dict.fromkeys(PARTS, peak * GIB // len(PARTS))
    return {"memory": {"peak_bytes": peak * GIB, "at_peak": at_peak}}


def test_parts_of_the_peak_are_stacked():
    figure = memory_figure({"A": {FULL: steps(10), "lean@0.3": steps(5)}, "B": {FULL: steps(20)}})
    ends = [bar.get_x() + bar.get_width() for bar in figure.axes[0].containers[-1]]
    assert ends == pytest.approx([10, 5])
    assert [text.get_text().strip() for text in figure.axes[0].texts] == [
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
