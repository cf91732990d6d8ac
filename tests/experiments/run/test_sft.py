"""task=sft: rows of a user's own, and any causal model in a folder."""

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

from tests.experiments.run.decoders import save_llama, write_jsonl
from wtacrs_experiments.config import PlanConfig, RunConfig, compose
from wtacrs_experiments.config.own_model import settled
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.plan.grid import settings
from wtacrs_experiments.run import metrics, protocol, sft
from wtacrs_experiments.run.documentation import documentation
from wtacrs_experiments.run.files import read_rows, read_splits
from wtacrs_experiments.run.models import load_model
from wtacrs_experiments.run.own_task import settled_task
from wtacrs_experiments.run.runner import run

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "vocab_size": 400}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def tokenizer(folder):
    return PreTrainedTokenizerFast.from_pretrained(folder, pad_token="</s>")


@pytest.fixture
def of(folder, tmp_path):
    """The config of a short run."""

    def make(*overrides, task="docstrings"):
        given = [f"task={task}", f"model.path={folder}", f"results_dir={tmp_path / 'runs'}"]
        given += ["training.max_steps=4", "training.batch_size=4", "task.max_length=48"]
        given += ["task.max_train_rows=40", "training.device=cpu", "measure.warmup_steps=1"]
        return compose(RunConfig, [*given, *overrides])

    return make


def test_rows_of_pythons_library():
    rows = documentation()
    assert len(rows) > 300
    assert rows == sorted(rows)
    assert "inspect.getfile(object)\n" in dict(rows)  # torch replaces it, where it is imported
    assert "whitespace" in dict(rows)["textwrap.dedent(text)\n"]
    assert not [told for told, _ in rows if " at 0x" in told]  # else they differ by process


METHODS = ["estimator=full", "memory=leanest", "memory=lean tuning=lora tuning.rank=8"]


@pytest.mark.parametrize("method", METHODS)
def test_a_run(method, of):
    """From a folder alone, which has no YAML file: named after it, scored by perplexity."""
    record = run(of(*method.split(), "training.learning_rate=1e-2"))
    assert record.status == "completed"
    assert record.config["model"]["name"] == "tiny_llama"
    assert record.config["model"]["head"] == "language_model"
    assert len(record.config["task"]["data_sha256"]) == 16
    assert record.metrics["main"] == "perplexity"
    last = record.metrics["per_epoch"][-1]
    assert last["perplexity"] == pytest.approx(np.exp(last["loss"]), rel=0.05)
    assert 0 <= last["token_accuracy"] <= 1
    assert record.metrics["held_out"]["score"] > 1
    assert record.memory["peak_bytes"] > 0
    assert (record.sampling["layers"] > 0) == ("full" not in method)


def test_the_best_epoch_has_the_lowest_perplexity():
    scores = [
        {"epoch": i, "perplexity": p, protocol.PICKING: p, protocol.REPORTING: 10 * p}
        for i, p in enumerate([9.0, 4.0, 5.0], start=1)
    ]
    found = protocol.summary(scores, "perplexity")
    assert (found["best"], found["best_epoch"], found["last"]) == (4.0, 2, 5.0)
    assert found["held_out"] == {"score": 40.0, "picked_epoch": 2}


def encoded(rows, tokenizer, length):
    return sft.encode([sft.Pair(*row) for row in rows], tokenizer, length)


def test_labels(tokenizer):
    """Nothing of the prompt, all of the completion and the end; cut at the length."""
    rows = encoded([("ab", "cd"), ("", "text"), ("a" * 50, "cd")], tokenizer, 8)
    told = len(tokenizer("ab", add_special_tokens=False).input_ids) + 1
    answer = [*tokenizer("cd", add_special_tokens=False).input_ids, 1]
    assert rows[0]["labels"] == [-100] * told + answer
    assert rows[0]["input_ids"][0] == 0
    assert rows[1]["labels"][0] == -100  # the begin of the text
    assert rows[1]["labels"][-1] == 1
    assert len(rows) == 2  # a prompt that fills the length leaves nothing to learn


TEMPLATE = "{% for m in messages %}{{ m.role }}<s>{{ m.content }}</s>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}assistant<s>{% endif %}"
CHAT = [{"role": role, "content": role[::-1]} for role in ("user", "assistant")]


def test_a_chat_is_what_its_template_writes(tokenizer):
    """Nothing is added to it, and the answer alone is learnt."""
    tokenizer.chat_template = TEMPLATE
    (row,) = sft.encode(sft.pairs([("", {"messages": CHAT})], tokenizer), tokenizer, 99)
    whole = tokenizer.apply_chat_template(CHAT)["input_ids"]
    assert row["input_ids"] == whole
    learnt = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(learnt) == "tnatsissa</s>"
    assert row["labels"][-len(learnt) :] == learnt
    asked = sft.prompt_tokens("", {"messages": CHAT}, tokenizer)
    assert asked == whole[: -len(learnt)]


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, CHAT, "x:1: has messages, and the tokenizer has no chat template"),
        (TEMPLATE, "hello", "x:1: messages must be a list of"),
        (TEMPLATE, [], "x:1: messages must be a list of"),
        (TEMPLATE, [{"role": "user"}], "x:1: messages must be a list of"),
        (TEMPLATE, CHAT[:1], "the last of at least two messages must be the assistant's"),
        (TEMPLATE, CHAT[1:], "the last of at least two messages must be the assistant's"),
        ("{{ messages|length }}", CHAT, "no prompt can be told"),
        ("{{ raise_exception('roles') }}", CHAT, "the chat template refuses the messages"),
    ],
)
def test_odd_chats(template, messages, message, tokenizer):
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=message):
        sft.pairs([("x:1", {"messages": messages})], tokenizer)


def test_sums_are_the_models_own_loss(folder, tokenizer, of):
    """Of each row; padding has no part in them."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = encoded([("ab", "cde"), ("", "some text")], tokenizer, 20)
    batch = sft.collator(tokenizer, of().task)([dict(row) for row in rows])
    with torch.no_grad():
        output = model(**batch)
    found = sft.sums(output.logits, batch["labels"])
    assert (found[:, 0].sum() / found[:, 1].sum()).item() == pytest.approx(output.loss.item())
    assert found[:, 1].tolist() == [(b["labels"][1:] != -100).sum() for b in map(as_array, rows)]
    scores = metrics.compute(["perplexity", "token_accuracy"], found.numpy(), np.zeros(2))
    assert scores["perplexity"] == pytest.approx(np.exp(output.loss.item()), rel=1e-5)


def as_array(row):
    return {key: np.array(value) for key, value in row.items()}


ROWS = [{"prompt": f"{i} is", "completion": f" number {i}"} for i in range(20)]


def test_files_of_ones_own(of, tmp_path):
    """Lines, or a folder of datasets with its splits; the same rows elsewhere are the same run."""
    lines = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    saved = tmp_path / "saved"
    DatasetDict(train=Dataset.from_list(ROWS), validation=Dataset.from_list(ROWS[:3])).save_to_disk(
        saved
    )
    one = of(f"task.train_file={lines}", task="sft")
    assert [len(rows) for rows in read_splits(one.task).values()] == [18, 2]
    assert settled_task(one.task).name == "sft_rows"
    both = of(f"task.train_file={saved}", task="sft")
    assert [len(rows) for rows in read_splits(both.task).values()] == [20, 3]
    record = run(one)
    (tmp_path / "elsewhere").mkdir()
    moved = write_jsonl(tmp_path / "elsewhere" / "rows.jsonl", ROWS)
    assert run(of(f"task.train_file={moved}", task="sft")).provenance == record.provenance
    other = write_jsonl(tmp_path / "rows.jsonl", ROWS[1:])
    task = of(f"task.train_file={other}", task="sft").task
    assert settled_task(task).data_sha256 != record.config["task"]["data_sha256"]


BAD = {
    '{"prompt": "a"}': r"rows.jsonl:1: 'text' must be text; a row has prompt and",
    '{"text": "b"}\n{oops': r"rows.jsonl:2 is no JSON",
    "[1]": r"rows.jsonl:1: a row is an object",
    '{"text": ""}': r"rows.jsonl:1: 'text' is empty",
    '{"prompt": 3, "completion": "b"}': r"rows.jsonl:1: 'prompt' must be text",
    "": r"rows.jsonl has no rows",
    '{"text": "b"}': r"rows.jsonl has one row",
    "[" * 100_000: r"rows.jsonl:1 is no JSON",
}


@pytest.mark.parametrize(("content", "message"), BAD.items(), ids=range(len(BAD)))
def test_odd_files(content, message, of, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    task = of(f"task.train_file={path}", task="sft").task

    def load():
        sft.pairs(read_rows(str(path)), None)
        read_splits(task)

    with pytest.raises(UserError, match=message):
        load()


def test_a_file_that_is_none(of, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe")
    for name, message in (
        ("rows.jsonl", "no text in UTF-8"),
        ("x", "not there"),
        ("", "no folder"),
    ):
        with pytest.raises(UserError, match=message):
            read_splits(of(f"task.train_file={tmp_path / name}", task="sft").task)


def test_prompts_that_leave_nothing_to_learn(tokenizer):
    with pytest.raises(UserError, match="max_length=4 cuts every completion off"):
        encoded([("a long prompt", "b")], tokenizer, 4)


def test_an_encoder_is_refused(tmp_path):
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "bert")
    config = compose(RunConfig, ["task=docstrings", f"model.path={tmp_path / 'bert'}"])
    with pytest.raises(UserError, match="a bert is no decoder"):
        load_model(settled(config.model, predicts_words=True), 0, False)


def test_a_plan_of_a_folder(folder, tmp_path):
    """Its own sizes and head, whatever the group's model is."""
    (config,) = settings([f"model.path={folder}", "memory=leanest"]).values()
    assert isinstance(config, PlanConfig)
    assert (config.model.name, config.model.head) == ("tiny_llama", "language_model")
    assert config.model.architecture is None
    assert config.model.source == "folder"
