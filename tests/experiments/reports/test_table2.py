"""Table 2 from records: compressions, the paper's beside them, causes of differences."""

import pandas as pd
import pytest

from wtacrs_experiments.records.planned import index_path
from wtacrs_experiments.records.store import write_json
from wtacrs_experiments.reports import table2
from wtacrs_experiments.reports.table2 import FULL, PAPER_UNIT, display, table
from wtacrs_experiments.words import GIB


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


def test_a_row_that_only_the_paper_has_is_missing_here():
    lst = {"model": "T5-Base", "method": "LST", "peak_gb": 5 * GB, "compression": 3.0}
    paper = pd.concat([PAPER[:2], pd.DataFrame([lst]), PAPER[2:]])
    text = display(table(RECORDS, paper))
    assert text["method"].tolist() == ["Full", "LoRA", "LST", *[*RECORDS["T5-Base"]][2:]]
    (row,) = text[text["method"] == "LST"].to_dict("records")
    assert row.pop("paper") == "3×"
    assert {*row.values()} == {"T5-Base", "LST", "–", ""}


@pytest.fixture
def folder(tmp_path):
    """Plans as files, with their index, of two commits."""
    index = {}
    for at, (method, one) in enumerate(RECORDS["T5-Base"].items()):
        index[method] = f"step-{at}.json"
        made_by = {"git_commit": "abcd" if at else "ef01", "git_dirty": False}
        write_json({**one, "provenance": made_by}, tmp_path / index[method])
    write_json({"T5-Base": index}, index_path(tmp_path, "table2"))
    return tmp_path


def test_command(folder, tmp_path, capsys):
    document = tmp_path / "README.md"
    document.write_text("above\n<!-- begin table2 -->\n<!-- end table2 -->\n")
    output = tmp_path / "tables" / "table2"
    given = ["--records", str(folder), "--output", str(output), "--splice", str(document)]
    assert table2.main(given) == 0
    out, mixed = capsys.readouterr().out, "Records of 2 commits: abcd (4), ef01 (1)."
    assert f"{output}.md, .csv and .tex" in out
    for text in (out, document.read_text(), output.with_suffix(".md").read_text()):
        assert mixed in text
        assert "LST" in text
    assert "of what is not published" in output.with_suffix(".md").read_text()
    assert "of what is not published" not in document.read_text()
    assert "toprule" in output.with_suffix(".tex").read_text()
    rows = pd.read_csv(output.with_suffix(".csv")).set_index("method")
    assert rows["peak_bytes"]["Full"] == 12 * GIB
    assert table2.main(["--records", str(tmp_path / "tables"), "--output", str(output)]) == 1
    assert "plan.published table2" in capsys.readouterr().err
