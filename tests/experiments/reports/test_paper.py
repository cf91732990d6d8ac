"""What the paper shows, from the records: what misses is said, what can be made is made."""

from experiments.errors import UserError
from experiments.reports import paper
from experiments.reports.paper import Part, report


def part(missing, made=0, **settings):
    def make():
        calls.append(missing)
        return made

    calls = []
    return Part("Table 9", lambda: missing, make, "make table9", **settings), calls


def test_all_there(capsys):
    one, calls = part([])
    assert report((one,)) == 0
    assert (len(calls), capsys.readouterr().out) == (1, "Table 9: made, 0 records missing\n")


def test_what_is_there_is_shown_and_the_rest_named(capsys):
    one, calls = part(["a", "b", "c", "d", "e", "f"])
    assert report((one,)) == 0
    assert len(calls) == 1
    expected = "Table 9: made, 6 records missing\n  a; b; c; d; e and 1 more: make table9\n"
    assert capsys.readouterr().out == expected


def test_a_part_that_needs_all_is_left(capsys):
    one, calls = part(["a"], needs_all=True)
    assert report((one,)) == 0
    assert not calls
    assert "Table 9: not made, 1 records missing" in capsys.readouterr().out


def test_failures(capsys):
    failing, _ = part([], made=1)
    assert report((failing,)) == 1

    def unreadable():
        raise UserError("x.json is not a valid record")

    other = Part("Table 8", unreadable, lambda: 0, "make table8")
    one, calls = part([])
    report((other, one))
    assert len(calls) == 1
    assert "x.json is not a valid record" in capsys.readouterr().out


def test_shipped_records_complete_the_ablation(tmp_path, monkeypatch):
    assert paper.of_grid("ablation") == []
    monkeypatch.setattr(paper, "RESULTS", tmp_path)
    assert paper.of_figure8() == ["bert_base", "t5_small"]
    monkeypatch.setattr(paper.table2, "MODELS", {"T5-Base": "t5_base"})
    monkeypatch.setattr(paper.table2, "METHODS", {"Full": ("memory=plain",)})
    assert paper.of_table2() == ["T5-Base · Full"]
