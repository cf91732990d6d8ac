"""T5's own format of GLUE: texts, words, scores as numbers; and that a tiny T5 learns real rows."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from tests.experiments.run.test_text2text import PIECES, WORDPIECE, t5_tokenizer, task, tiny_t5
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.run.runner import run
from wtacrs_experiments.run.tasks import load_task
from wtacrs_experiments.run.text2text import TextToText

REAL = Path(os.environ.get("GLUE_DIR") or "/nonexistent")  # the tests themselves must not see it
TEXT_TASKS = ("cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli")  # with classes


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_words_are_those_of_the_task(name):
    """Positive for 1, and the label itself where that is a word; the text is T5's own."""
    words, labels = task(name).text_to_text.words, task(name).labels
    positive = ("acceptable", "positive", "equivalent", "duplicate", "entailment")
    if "entailment" in labels:
        assert labels == words
    else:
        assert words[1] in positive
    text = TextToText(task(name), WORDPIECE)
    assert [WORDPIECE.decode(ids).replace(" ", "") for ids in text.targets] == list(words)
    assert text.input.startswith(f"{name} ")


def test_sentences_become_one_text(tiny_glue):
    overrides = dict(text.split("=") for text in tiny_glue("mnli"))
    config = replace(task("mnli"), data_dir=overrides["task.data_dir"], text=(8, 0))
    row = load_task(config, WORDPIECE, TextToText(config, WORDPIECE).input).train[0]
    assert WORDPIECE.decode(row["input_ids"], skip_special_tokens=True) == (
        "mnli hypothesis : word 0 premise : word 0"
    )


@pytest.mark.parametrize(
    ("score", "word"), [(0.0, "0.0"), (0.09, "0.0"), (0.11, "0.2"), (3.75, "3.8"), (5.0, "5.0")]
)
def test_score_is_a_number_rounded_to_a_fifth(score, word):
    text = TextToText(task("stsb"), WORDPIECE)
    assert len(text.words) == 26
    assert text.words[text.answer(score)] == word
    assert text.numbers[text.answer(score)] == float(word)


def test_task_without_words():
    with pytest.raises(
        UserError, match=r"task=digits has no words .* task.text_to_text in .* model="
    ):
        TextToText(task("digits"), WORDPIECE)


def test_words_of_the_same_tokens():
    rte = task("rte")
    unknown = replace(rte, text_to_text=replace(rte.text_to_text, words=("É", "Ü")))
    with pytest.raises(UserError, match="'É' and 'Ü' are the same tokens"):
        TextToText(unknown, t5_tokenizer())


def test_prediction_is_the_likelihood_of_the_whole_answer():
    """Of each word by itself, from its logits; words may begin alike."""
    text, model = TextToText(task("mnli"), t5_tokenizer(PIECES[:5])), tiny_t5().eval()
    assert text.targets[0][0] == text.targets[1][0]
    batch = {"input_ids": torch.tensor([[4, 5, 1], [4, 0, 0]])}
    batch["attention_mask"] = torch.tensor([[1, 1, 1], [1, 0, 0]])
    found = text.predict(model, batch)
    for answer, target in enumerate(text.targets):
        labels = torch.tensor([target, target])
        logits = model(**batch, labels=labels).logits.log_softmax(2)
        expected = sum(logits[:, at, token] for at, token in enumerate(target))
        assert torch.allclose(found[:, answer], expected, atol=1e-5)
    scores = TextToText(task("stsb"), t5_tokenizer())
    likeliest = scores.predict(model, batch)
    assert likeliest.shape == (2, 1)
    scores.numbers = None
    best = scores.predict(model, batch).argmax(1).tolist()
    assert likeliest[:, 0].tolist() == pytest.approx([float(scores.words[i]) for i in best])


def word_tokenizer(texts):
    """Word by word, of the words in ``texts``; with an end token, as T5's."""
    split = pre_tokenizers.Whitespace()
    words = dict.fromkeys(word for text in texts for word, _ in split.pre_tokenize_str(text))
    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture
def rows_of(tmp_path):
    """Factory: the overrides for 64 real rows of a task: to train, 20 times an epoch, and test."""

    def make(name):
        config = task(name)
        header, lines = [], (REAL / config.folder / "train.tsv").read_text().splitlines()
        if config.header:
            header, lines = lines[:1], lines[1:]
        kept = random.Random(0).sample(lines, 64)
        folder = tmp_path / "glue" / config.folder
        folder.mkdir(parents=True)
        for file, times in ((config.files["train"], 20), (config.files["validation"], 1)):
            (folder / file).write_text("\n".join([*header, *kept * times]) + "\n")
        words = [f"{i / 5:.1f}" for i in range(26)] if name == "stsb" else config.text_to_text.words
        tokenizer = word_tokenizer([*kept, *words, config.text_to_text.input])
        tokenizer.save_pretrained(tmp_path / "t5")
        size = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
        torch.manual_seed(0)
        architecture = T5Config(
            vocab_size=len(tokenizer), dropout_rate=0.0, decoder_start_token_id=0, **size
        )
        T5ForConditionalGeneration(architecture).save_pretrained(tmp_path / "t5")
        model = ("model=t5_small", f"model.path={tmp_path / 't5'}")
        return (*model, f"task={name}", f"task.data_dir={tmp_path / 'glue'}")

    return make


@pytest.mark.skipif(not REAL.is_dir(), reason="needs GLUE_DIR")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric", "least"),
    [
        ("cola", "accuracy", 0.95),
        ("mrpc", "accuracy", 0.95),
        ("rte", "accuracy", 0.95),
        ("sst2", "accuracy", 0.95),
        ("stsb", "pearson", 0.9),
    ],
)
def test_tiny_t5_overfits_real_rows(name, metric, least, rows_of, make_config):
    steps = ("training.max_steps=160", "training.learning_rate=2e-3", "training.batch_size=16")
    plain = (
        "estimator=full",
        "task.max_length=48",
        "task.max_train_rows=1280",
        "measure.memory=false",
    )
    record = run(make_config(*rows_of(name), *steps, *plain))
    assert record.metrics["per_epoch"][-1][metric] >= least
