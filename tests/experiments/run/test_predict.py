"""The answers of a trained model to a file: those of transformers' own pipeline, and odd files."""

import csv
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.experiments.run.decoders import ROWS, save_llama, write_jsonl
from wtacrs_experiments.config import RunConfig, as_record, compose
from wtacrs_experiments.config.places import RUN_FILE
from wtacrs_experiments.records.record import record_path
from wtacrs_experiments.run.predict import main
from wtacrs_experiments.run.runner import run, settle
from wtacrs_experiments.run.saving import model_folder

QUICK = ("training.max_steps=2", "training.batch_size=4", "training.learning_rate=0.05")
QUICK += ("measure.memory=false", "task.max_train_rows=16")


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """The folder of a language model that was tuned on Python's documentation."""
    at = tmp_path_factory.mktemp("speaker")
    data = write_jsonl(at / "my.jsonl", ROWS)
    given = ("task=sft", f"task.train_file={data}", f"model.path={save_llama(at / 'tiny')}")
    slow = ("training.learning_rate=1e-3", f"results_dir={at / 'runs'}")  # or it says one thing
    config = settle(compose(RunConfig, [*given, *QUICK[:2], *QUICK[3:], *slow]))
    run(config)
    shutil.rmtree(at / "tiny")  # a model that is whole needs nothing else
    data.unlink()
    return model_folder(record_path(as_record(config)))


@pytest.fixture
def judge(saved_model, make_config, tiny_glue):
    """Factory: the record and the folder of a classifier, or of a regression."""

    def make(task, *overrides):
        given = (f"model.path={saved_model}", *tiny_glue(task), *QUICK, "training.save_model=true")
        config = make_config("model=minilm", "model.source=folder", *given, *overrides)
        run(config)
        path = record_path(as_record(settle(config)))
        return path, model_folder(path)

    return make


def rows_of(path):
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


SENTENCES = [
    ("It rains, it pours.", "It is wet."),
    ('She said "no".', "She agreed,\nat last."),
    ("", "x"),
]


def write_csv(path, separator=","):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([("id", "premise", "hypothesis")])
        writer.writerows((i, *pair) for i, pair in enumerate(SENTENCES))
    return path


@torch.no_grad()
def outputs(folder):
    """Row by row, so without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cut = {"truncation": True, "max_length": 16, "return_tensors": "pt"}
    return torch.cat([model(**tokenizer(*pair, **cut)).logits for pair in SENTENCES]), model


@pytest.mark.parametrize("tuning", ["tuning=full", "tuning=lora"])
def test_classes(tuning, judge, tmp_path, capsys):
    rank = ("tuning.rank=4",) if tuning == "tuning=lora" else ()
    record, folder = judge("mnli", tuning, *rank)
    file = write_csv(tmp_path / "new.csv", ";")
    assert main([str(record), str(file), "--batch-size", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"3 rows: {tmp_path / 'new.predicted.csv'}"
    found = rows_of(tmp_path / "new.predicted.csv")
    assert [(row["premise"], row["hypothesis"]) for row in found] == SENTENCES
    if tuning == "tuning=full":
        logits, model = outputs(folder)
        sure, best = logits.softmax(1).max(1)
        assert [row["prediction"] for row in found] == [model.config.id2label[int(i)] for i in best]
        told = torch.tensor([float(row["probability"]) for row in found])
        torch.testing.assert_close(told, sure, atol=2e-6, rtol=0)
    assert {row["prediction"] for row in found} <= {"entailment", "neutral", "contradiction"}


def test_scores(judge, tmp_path):
    _, folder = judge("stsb")
    rows = [{"sentence1": one, "sentence2": other} for one, other in SENTENCES]
    file = write_jsonl(tmp_path / "new.jsonl", rows)
    assert main([str(folder), str(file), "--output", str(tmp_path / "out.tsv")]) == 0
    lines = (tmp_path / "out.tsv").read_text().splitlines()
    assert lines[0] == "sentence1\tsentence2\tprediction"
    assert main([str(folder), str(file)]) == 0
    lines = (tmp_path / "new.predicted.jsonl").read_text().splitlines()
    found = torch.tensor([json.loads(line)["prediction"] for line in lines])
    torch.testing.assert_close(found, outputs(folder)[0][:, 0])


def test_completions_are_those_of_generate(speaker, tmp_path):
    rows = [{"prompt": "json.loads: "}, {"prompt": "a", "id": 7}, {"prompt": "random.choice: "}]
    file = write_jsonl(tmp_path / "new.jsonl", rows)
    assert main([str(speaker), str(file), "--new-tokens", "6", "--batch-size", "2"]) == 0
    lines = (tmp_path / "new.predicted.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [{k: v for k, v in row.items() if k != "prediction"} for row in found] == rows
    model = AutoModelForCausalLM.from_pretrained(speaker).eval()
    tokenizer = AutoTokenizer.from_pretrained(speaker)
    for row in found:
        ids = tokenizer(row["prompt"], return_tensors="pt").input_ids
        new = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert row["prediction"] == tokenizer.decode(new, skip_special_tokens=True)
    assert len({row["prediction"] for row in found}) == 3


def test_a_chat_goes_on_from_what_was_said(speaker, tmp_path, capsys):
    folder = shutil.copytree(speaker, tmp_path / "chats")
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    asked = [{"role": "user", "content": "random?"}]
    answered = [*asked, {"role": "assistant", "content": "yes"}]
    same = {"prompt": "user: random?\nassistant: "}
    rows = [{"messages": asked}, {"messages": answered}, same]
    file = write_jsonl(tmp_path / "new.jsonl", rows)
    assert main([str(folder), str(file), "--new-tokens", "4"]) == 0
    lines = (tmp_path / "new.predicted.jsonl").read_text(encoding="utf-8").splitlines()
    assert len({json.loads(line)["prediction"] for line in lines}) == 1
    write_jsonl(file, [{"messages": "hello"}])
    assert main([str(folder), str(file)]) == 1
    assert "new.jsonl:1: messages must be a list" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"prompt": "a"}, {"text": "b"}], (), "new.jsonl:2: has no column 'prompt', but text"),
        ([{"prompt": ""}], (), "new.jsonl:1: the prompt is empty"),
        ([{"prompt": 3}], (), "new.jsonl:1: prompt must be text"),
        ([{"messages": "hello"}], (), "has no chat template"),
        ([{"messages": [{"role": "user", "content": "x"}]}], (), "has no chat template"),
        ([{"prompt": "a", "prediction": "b"}], (), "prediction is there already"),
        ([{"prompt": "a"}], ("--new-tokens", "128"), "more than the 128 positions"),
        ([{"prompt": "a"}], ("--output", "x.xlsx"), "must end in .csv, .tsv or .jsonl"),
        ([], (), "has no rows"),
    ],
    ids=str,
)
def test_rows_and_outputs_that_are_odd(rows, more, message, speaker, tmp_path, capsys):
    file = write_jsonl(tmp_path / "new.jsonl", rows)
    assert main([str(speaker), str(file), *more]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not (tmp_path / "new.predicted.jsonl").exists()


def test_a_column_that_is_missing(judge, tmp_path, capsys):
    _, folder = judge("mnli")
    (tmp_path / "new.csv").write_text("premise,hypotesis\na,b\n")
    assert main([str(folder), str(tmp_path / "new.csv")]) == 1
    told = capsys.readouterr().err
    assert f"{tmp_path / 'new.csv'}:2: has no column 'hypothesis', but premise, hypotesis" in told


def test_files_and_folders_that_are_none(speaker, tmp_path, capsys):
    file = write_jsonl(tmp_path / "new.jsonl", [{"prompt": "a"}])
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = shutil.copytree(speaker, tmp_path / "damaged")
    (damaged / RUN_FILE).write_text("{")
    for model, given, message in (
        (empty, file, "holds no model of a run"),
        (damaged, file, "is damaged"),
        (speaker, tmp_path / "none.jsonl", "is not there"),
        (speaker, empty, "is a folder"),
    ):
        assert main([str(model), str(given)]) == 1
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert main([str(speaker), str(file), "--output", str(file)]) == 1
    assert "is the file itself" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(speaker), str(file), "--batch-size", "0"])
