"""A task from a table of one's own, no YAML and no Python: right results, or file and line."""

import csv
import json
from dataclasses import replace

import pytest

from tests.experiments.run.decoders import save_llama, write_jsonl
from wtacrs_experiments.config import RunConfig, as_record, compose
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import config_hash, record_path
from wtacrs_experiments.run import predict
from wtacrs_experiments.run.models import load_tokenizer
from wtacrs_experiments.run.own_task import settled_task
from wtacrs_experiments.run.runner import run, settle
from wtacrs_experiments.run.saving import model_folder
from wtacrs_experiments.run.tasks import load_task

QUICK = ("training.max_steps=2", "training.batch_size=4", "measure.memory=false")


@pytest.fixture
def given(saved_model, tmp_path):
    """Factory: the config of ``python run.py task=csv`` on this file, with a local model."""

    def make(content, *overrides, name="my.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        of_it = ("task=csv", f"task.train_file={tmp_path / name}", f"model.path={saved_model}")
        return settle(
            compose(RunConfig, [*of_it, f"results_dir={tmp_path / 'runs'}", *QUICK, *overrides])
        )

    return make


def table(*labels, separator=",", text="word {}"):
    rows = [f"{text.format(i)}{separator}{label}" for i, label in enumerate(labels)]
    return "\n".join([f"text{separator}label", *rows]) + "\n"


def loaded(config):
    """(text, label) of all rows, in order of the file."""
    tokenizer = load_tokenizer(config.model)
    data = load_task(config.task, tokenizer)
    rows = [*data.train, *data.validation["validation"]]
    told = [(tokenizer.decode(row["input_ids"][1:-1]), row["labels"]) for row in rows]
    return sorted(told), data


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("no", "yes", "no", " yes "), ("no", "yes")),
        (("10", "9", "10", "9"), ("9", "10")),
        (("1.0", "0.0", "1.0"), ("0.0", "1.0")),
        (("True", "False", "True"), ("False", "True")),
        (("1", "unknown", "1"), ("1", "unknown")),
    ],
    ids=str,
)
def test_words_and_whole_numbers_are_classes(labels, classes, given):
    config = given(table(*labels))
    assert (config.task.labels, config.task.score_range) == (classes, None)
    assert config.task.metrics == ("accuracy",)
    assert [label for _, label in loaded(config)[0]] == [classes.index(x.strip()) for x in labels]


def test_numbers_with_a_fraction_are_scores(given):
    config = given(table("0.5", "3", "-1e-1", "2"))
    assert (config.task.labels, config.task.score_range) == (None, (-0.1, 3.0))
    assert config.task.metrics == ("pearson", "spearman")
    found, data = loaded(config)
    assert [score for _, score in found] == [0.5, 3.0, -0.1, 2.0]
    assert data.regression


def test_what_is_said_of_the_labels_counts(given):
    config = given(table("b", "a", "b"), "task.labels=[b,a]", "task.metrics=[f1]")
    assert [label for _, label in loaded(config)[0]] == [0, 1, 0]
    assert config.task.metrics == ("f1",)
    config = given(table("1", "5", "3"), "task.score_range=[1,5]")
    assert [score for _, score in loaded(config)[0]] == [1.0, 5.0, 3.0]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_and_quotes(separator, given):
    rows = [(f'a{separator} "b"\nc', "x"), ("d", "y"), ("e", "x")]
    lines = [("text", "label"), *rows]
    quoted = "\r\n".join(
        separator.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines
    )
    config = given(b"\xef\xbb\xbf" + quoted.encode())
    texts = {text for text, _ in loaded(config)[0]}
    assert len(texts) == 3
    assert any('" b " c' in text for text in texts)


def test_json_and_columns_of_other_names_and_two_sentences(given):
    rows = [{"id": i, "q": f"ask {i}", "a": f"say {i}", "ok": i % 2 == 0} for i in range(4)]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    named = ("task.text_columns=[q,a]", "task.label_column=ok")
    config = given(content, *named, name="my.jsonl")
    assert config.task.labels == ("false", "true")
    assert [label for _, label in loaded(config)[0]] == [1, 0, 1, 0]
    assert [text for text, _ in loaded(config)[0]][1] == "ask 1 [SEP] say 1"
    assert config.task.name == "csv_my"
    array = given(json.dumps(rows), *named, name="my.json")
    assert loaded(array)[0] == loaded(config)[0]


def test_two_files(given, tmp_path):
    more = table("a", "c", text="more {}")
    (tmp_path / "eval.csv").write_text(more)
    two = (f"task.train_file={tmp_path / 'my.csv'}", f"task.eval_file={tmp_path / 'eval.csv'}")
    config = given(table("a", "b"), *two)
    assert config.task.labels == ("a", "b", "c")  # of both
    data = loaded(config)[1]
    assert data.train["labels"] == [0, 1]
    assert data.validation["validation"]["labels"] == [0, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table("1", "1.0", "2"), "my.csv:3: label='1.0' is '1' of "),
        (table("0", "2", "NaN"), "my.csv:4: label='NaN' is no label"),
        ("text,lable\na,x\nb,y\n", "my.csv:2: has no column 'label', but text, lable"),
        ("txt,label\na,x\nb,y\n", "my.csv:2: has no column 'text', but txt, label"),
        ("text,label\na,x\nb,\n", "my.csv:3: label holds no label ('')"),
        ("text,label\na,x\n  ,y\n", "my.csv:3: text is empty"),
        ("text,label\na,x\nb,y,z\n", "my.csv:3: 3 cells, and the header has 2 columns"),
        ('text,label\n"a"b,x\n', "my.csv:2: "),
        ("text,text\na,x\n", "my.csv:1: the header must name each column once"),
        ("text,label\n", "my.csv has no rows"),
        ("", "my.csv has no rows"),
        ("text,label\na,x\nb,x\n", "my.csv:2: all rows have the same label, 'x'"),
        ("text,label\na,0.5\nb,high\n", "my.csv:3: label='high' is no number, as others there are"),
        ("text;label\na;3,5\nb;2,5\n", "my.csv:2: label='3,5': write numbers with a point"),
        (table(*range(40)), "label has 40 different labels in 40 rows; is it the label's"),
        (b"text,label\na\xff,x\nb,y\n", "my.csv:2 is no text in UTF-8"),
    ],
    ids=lambda one: str(one)[:30],
)
def test_odd_tables(content, message, given, tmp_path):
    with pytest.raises(UserError) as caught:
        loaded(given(content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.train_file=null"], "must name a file"),
        (["task.text_columns=text"], "must be a list, say [text]"),
        (["task.text_columns=[]"], "one sentence or two"),
        (["task.text_columns=[text,label]"], "holds task.label_column"),
        (["task.text_columns=null"], "must be given for task=csv"),
        (["task.label_column=null"], "must be given for task=csv"),
        (["task.labels=[x]"], "their number=1 must be at least 2"),
        (["task.metrics=[pearson]"], "is none for classes"),
        (["model=t5_small", "model.path=google-t5/t5-small"], "has no words for its labels"),
        (["task=cola", "task.train_file=null", "task.label_column=x"], "is of task=csv"),
    ],
    ids=str,
)
def test_what_is_asked_for_is_refused_at_once(overrides, message, given):
    with pytest.raises(UserError) as caught:
        given(table("x", "y", "x"), *overrides)
    assert message in str(caught.value)


def test_a_label_that_is_not_said(given, tmp_path):
    config = given(table("x", "y", "z"), "task.labels=[x,y]")
    with pytest.raises(UserError, match=r"my.csv:4: label 'z' must be one of \['x', 'y'\]"):
        loaded(config)


def test_a_record_needs_no_file_to_be_read_again(given, tmp_path):
    config = given(table("x", "y", "x"))
    (tmp_path / "my.csv").unlink()
    assert compose_again(config) == config
    assert config_hash(as_record(given(table("x", "y", "x")))) == config_hash(as_record(config))
    assert config_hash(as_record(given(table("x", "y", "y")))) != config_hash(as_record(config))


def compose_again(config):
    from wtacrs_experiments.config import build

    return build(RunConfig, as_record(config))


@pytest.mark.parametrize("model", ["encoder", "decoder"])
def test_from_a_table_to_answers(model, given, tmp_path, capsys):
    path = () if model == "encoder" else (f"model.path={save_llama(tmp_path / 'tiny')}",)
    config = given(table(*("good", "bad") * 8), *path, "memory=lean", "training.batch_size=2")
    record = run(config)
    assert (record.status, record.metrics["main"]) == ("completed", "accuracy")
    file = write_jsonl(tmp_path / "new.jsonl", [{"text": "word 3"}, {"text": "a"}])
    folder = model_folder(record_path(as_record(config)))
    assert predict.main([str(folder), str(file), "--output", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open() as lines:
        assert {row["prediction"] for row in csv.DictReader(lines)} <= {"good", "bad"}


def test_the_name_of_a_file_is_that_of_the_task_as_far_as_names_go(given, tmp_path):
    config = given(table("x", "y", "x"), name="my-new.data.csv")
    assert config.task.name == "csv_my_new_data"
    (tmp_path / "données à moi.csv").write_text(table("x", "y", "x"))
    other = replace(config.task, name="csv", train_file=str(tmp_path / "données à moi.csv"))
    assert settled_task(other).name == "csv_donn_es_moi"
    assert given(table("x", "y", "x"), name=f"{'a' * 90}.csv").task.name == f"csv_{'a' * 40}"


def test_a_long_cell(given):
    assert loaded(given(table("x", "y", text="word " * 40_000 + "{}")))[1].max_tokens == 128
