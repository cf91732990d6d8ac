"""What a table says beside numbers: failures, protocols, commits, the paper's scores, LaTeX."""

import pandas as pd
import pytest

from wtacrs_experiments.records.record import record_path, write_record
from wtacrs_experiments.reports import tables
from wtacrs_experiments.reports.latex import escaped
from wtacrs_experiments.reports.paper import paper_scores
from wtacrs_experiments.reports.runs import aggregate, load_runs
from wtacrs_experiments.reports.tables import display, write_tables


def test_what_did_not_complete_stands_in_the_cell_of_the_score(two_seeds, add_run, folder):
    add_run("seed=2", status="failed")
    for seed in (0, 1):
        add_run("budget=0.1", f"seed={seed}", status="out_of_memory")
    add_run("budget=0.1", "seed=2", status="interrupted")
    text = display(aggregate(load_runs(folder))).set_index("estimator")
    scores = text["score at best epoch"]
    assert scores["full"] == "92.0 ± 2.8"
    assert scores["wtacrs@0.3"] == "85.0 ± 7.1 (1 failed)"
    assert scores["wtacrs@0.1"] == "2 out of memory, 1 interrupted"
    assert text["n"].tolist() == ["2", "0", "2"]
    assert {text[name]["wtacrs@0.1"] for name in ("peak MiB", "samples/s")} == {"–"}


def test_a_failure_without_metrics_stands_in_its_group(two_seeds, make_record, folder):
    record = make_record("budget=0.1", status="failed")
    record.metrics = record.memory = record.throughput = None
    write_record(record, record_path(record.config))
    text = display(aggregate(load_runs(folder)))
    assert text["metric"].tolist() == ["accuracy"] * 3
    assert "settings" not in text


def test_held_out_protocol_reports_the_other_half(make_record, folder, tmp_path):
    for seed, score in enumerate((0.7, 0.8, None)):  # the last as records were before it
        record = make_record(f"seed={seed}", best=0.9)
        if score is not None:
            record.metrics["held_out"] = {"score": score, "picked_epoch": 2.0}
        write_record(record, record_path(record.config))
    text = write_tables(folder, tmp_path / "t", "held_out")
    assert "score at last epoch" not in text  # which is of all rows
    assert text["score, held out"].tolist() == ["75.0 ± 7.1"]
    assert text["n"].tolist() == ["2"]
    assert write_tables(folder, tmp_path / "t")["score at best epoch"].tolist() == ["90.0 ± 0.0"]


def test_old_records_have_no_held_out_score(two_seeds, folder):
    text = display(aggregate(load_runs(folder, "held_out")), "held_out")
    assert text["score, held out"].tolist() == ["–", "–"]


@pytest.mark.parametrize(
    ("commits", "dirty", "told"),
    [
        (("abc", "abc"), False, ""),
        (("abc", "def"), False, "\nRecords of 2 commits: abc (1), def (1).\n"),
        (("abc", "abc"), True, "\n2 of 2 records are of a tree with changes of no commit.\n"),
    ],
)
def test_a_table_says_which_commits_it_mixes(commits, dirty, told, make_record, folder, tmp_path):
    for seed, commit in enumerate(commits):
        record = make_record(f"seed={seed}")
        record.provenance = {"git_commit": commit, "git_dirty": dirty}
        write_record(record, record_path(record.config))
    text = write_tables(folder, tmp_path / "t")
    assert (tmp_path / "t.md").read_text() == tables.markdown(text) + told + tables.READING


def test_the_papers_score_stands_beside_ours():
    rows = pd.DataFrame(
        [
            ("bert_base", "full", "full", 1.0, "plain", "cola", "matthews_correlation"),
            ("bert_base", "lora", "wtacrs", 0.3, "linear", "rte", "accuracy"),
            ("bert_base", "full", "wtacrs", 0.3, "paper", "mrpc", "f1"),
            ("bert_base", "full", "wtacrs", 0.3, "paper", "mrpc", "accuracy"),  # not its metric
            ("bert_base", "full", "wtacrs", 0.2, "paper", "rte", "accuracy"),
            ("bert_base", "full", "wtacrs", 0.3, "lean", "rte", "accuracy"),
            ("minilm", "full", "full", 1.0, "plain", "rte", "accuracy"),
        ],
        columns=["model", "tuning", "estimator", "budget", "memory", "task", "metric"],
    )
    theirs = ["60.9 ± 1.89", "67.9 ± 0.72", "87.0 ± 0.14"]
    assert paper_scores(rows).tolist() == [*theirs, *["–"] * 4]


def test_latex(two_seeds, folder, tmp_path):
    write_tables(folder, tmp_path / "t")
    lines = (tmp_path / "t.tex").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(r"\begin{tabular}{lllllr")
    assert (lines[1], lines[3], *lines[-2:]) == (
        *(r"\toprule", r"\midrule", r"\bottomrule"),
        r"\end{tabular}",
    )
    assert {line.count(" & ") for line in lines[4:-2]} == {lines[2].count(" & ")}
    assert r"score $-$ full [95 \%]" in lines[2]
    assert r"digits\_tiny" in lines[4]
    assert r"92.0 $\pm$ 2.8" in lines[4]
    assert escaped("a\\b_~") == r"a\textbackslash{}b\_\textasciitilde{}"
