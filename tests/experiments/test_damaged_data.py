"""Damaged files of data: read as they are, or one line says what is wrong."""

import pytest

from tests.experiments.damage import FILES, assert_one_line
from wtacrs_experiments.run.models import load_tokenizer
from wtacrs_experiments.run.own_task import settle
from wtacrs_experiments.run.tasks import load_task


@pytest.mark.parametrize("at", range(41))
def test_damaged_data(at, make_config, tmp_path):
    name, content = FILES[at]
    (tmp_path / "CoLA").mkdir()
    path = tmp_path / "CoLA" / name
    path.write_bytes(content)
    path.with_name("dev.tsv").write_text("x\t1\tx\tsome words\n")
    chosen = {
        "tsv": ("task=cola", f"task.data_dir={tmp_path}", "model=minilm"),
        "csv": ("task=csv", f"task.train_file={path}", "model=minilm"),
    }.get(path.suffix[1:], ("task=sft", f"task.train_file={path}", "model=llama_tiny"))

    def load():
        config = settle(make_config(*chosen, "task.max_length=32"))
        load_task(config.task, load_tokenizer(config.model))

    assert_one_line(load)
