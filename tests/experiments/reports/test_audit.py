"""Tables, figures and pages are what the records give, and the audit sees when they are not."""

import shutil

import pytest

from wtacrs_experiments.config import ROOT
from wtacrs_experiments.reports import audit
from wtacrs_experiments.reports.audit import rebuilt
from wtacrs_experiments.reports.published import PAGES, RESULTS


@pytest.fixture
def copied(tmp_path):
    """A copy of what is published."""
    root = tmp_path / "published"
    root.mkdir()
    shutil.copytree(ROOT / "results", root / "results")
    (root / "docs").mkdir()
    for page in PAGES:
        shutil.copy(ROOT / page, root / page)
    return root


@pytest.mark.slow
def test_each_difference_has_its_line(copied, monkeypatch):
    kept = {name: audit.PUBLISHED[name] for name in ("ablation", "centred")}
    monkeypatch.setattr(audit, "PUBLISHED", kept)
    monkeypatch.setattr(
        audit, "BUILT", ("tables/ablation.*", "figures/ablation.svg", "tables/centred.md")
    )
    results = copied / "results"
    for change in (
        results / "tables" / "ablation.md",
        results / "figures" / "ablation.svg",
    ):
        change.write_bytes(change.read_bytes().replace(b"3", b"4", 1))
    (results / "tables" / "ablation.tex").unlink()
    (results / "tables" / "ablation.txt").touch()
    document = copied / RESULTS
    document.write_text(document.read_text().replace("| cola ", "| rte  ", 1))
    shutil.rmtree(results / "centred")
    assert [*rebuilt(copied)] == [
        "docs/results.md: its tables are not those that the records give",
        "results/figures/ablation.svg: not what the records give",
        "results/tables/ablation.md: not what the records give",
        "results/tables/ablation.tex: missing, and the records give it",
        "results/tables/ablation.txt: no record gives it",
        "results/tables/centred.md: no record gives it",
    ]


@pytest.mark.parametrize(("found", "status"), [([], 0), (["a: b", "c: d"], 1)])
def test_command(found, status, monkeypatch, capsys):
    monkeypatch.setattr(audit.Records, "failures", lambda _: iter(found))
    assert audit.main(["--only", "records"]) == status
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == found
    assert last.endswith(f" records checked, {len(found)} failures")
