"""Table 2 from records: compressions, the paper's beside them, causes of differences."""

import pandas as pd
import pytest

from experiments.reports.table2 import FULL, PAPER_UNIT, display, table
from experiments.words import GIB


def record(peak, saved, tuning="full", budget=1.0):
    memory = {
        **{"peak_bytes": peak * GIB, "saved_bytes": saved * GIB, "at_peak": {"saved": saved * GIB}},
        **{"optimizer_bytes": 2 * GIB, "gradient_bytes": GIB},
    }
    config = {"tuning": {"name": tuning}, "budget": budget}
    return {"config": config, "memory": memory, "flops": 3 * peak}


RECORDS = {
    "T5-Base": {
        FULL: record(12, 8),
        "LoRA": record(6, 5, tuning="lora"),
        "WTA-CRS@0.3": record(4, 2, budget=0.3),
        "WTA-CRS@0.1": record(5, 3, budget=0.1),
        "lean@0.3": record(3, 1, budget=0.3),
    }
}
GB = GIB / PAPER_UNIT  # in the paper's unit
PAPER = pd.DataFrame(
    [(FULL, 15 * GB, 1.0), ("LoRA", 10 * GB, 1.5), ("WTA-CRS@0.3", 6 * GB, 2.5),
     ("WTA-CRS@0.1", 6.2 * GB, 2.4)],
    columns=["method", "peak_gb", "compression"],
).assign(model="T5-Base")  # fmt: skip


def test_compression_is_that_of_full_over_the_peak():
    rows = table(RECORDS, PAPER).set_index("method")
    assert rows["compression"].tolist() == [1.0, 2.0, 3.0, 2.4, 4.0]
    assert rows["flops_ratio"]["lean@0.3"] == 0.25
    assert rows["difference"]["WTA-CRS@0.3"] == pytest.approx(0.2)
    assert rows["paper_peak_bytes"]["LoRA"] == pytest.approx(10 * GIB)


def test_a_difference_has_its_cause_in_bytes():
    causes = table(RECORDS, PAPER).set_index("method")["cause"]
    assert causes[FULL] == causes["WTA-CRS@0.1"] == causes["lean@0.3"] == ""
    assert "no input here, 3.0 GiB less" in causes["LoRA"]
    assert "saves 5.0 GiB in all, optimizer state and gradients alone being 3.0" in causes["LoRA"]
    assert "2.0 GiB above this one, its full row's 3.0 above ours" in causes["WTA-CRS@0.3"]


def test_what_the_paper_has_not_is_shown_as_missing():
    text = display(table(RECORDS, PAPER)).set_index("method")
    assert text["full / peak"]["lean@0.3"] == "4.00×"
    assert text["paper"]["lean@0.3"] == text["difference"]["lean@0.3"] == "–"
    assert text["difference"]["WTA-CRS@0.3"] == "+20%"
