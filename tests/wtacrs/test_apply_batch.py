"""What a handle reads from a batch, and what it tells: automatic facts, the report."""

import copy

import pytest
import torch

from tests.wtacrs.tiny import MASK, assert_same_step, batch_of, models, step, tiny_bert, tiny_llama
from wtacrs import PRESETS, apply_
from wtacrs.facts import mask_of

BUDGET = MASK.sum().item() / MASK.numel()


@models
def test_the_mask_of_a_call_is_that_of_start_batch(make):
    """Told or read, positionally or by name, the same rows are drawn."""
    results = []
    for told in (True, False):
        model = make()
        handle = apply_(model, "linear", budget=0.4)
        batch = batch_of(model)
        for _ in range(2):
            if told:
                handle.start_batch(mask=mask_of(model, batch))
            results.append(step(model, batch))
    for mine, expected in zip(results[2:], results[:2], strict=True):
        assert_same_step(mine, expected, 0)
    plain = make()
    apply_(plain, "linear", budget=0.4)
    without = step(plain, {k: v for k, v in batch_of(plain).items() if k != "attention_mask"})
    assert not torch.equal(without[0], results[0][0])


def test_a_positional_mask():
    results = []
    for positional in (True, False):
        model = tiny_bert()
        apply_(model, "linear", budget=0.4)
        torch.manual_seed(5)
        batch = batch_of(model)
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        out = model(ids, mask, labels=labels) if positional else model(**batch)
        out.loss.backward()
        results.append(model.bert.encoder.layer[0].output.dense.weight.grad)
    assert torch.equal(*results)


def test_with_the_mask_a_budget_of_the_valid_rows_is_exact():
    expected = step(tiny_bert())
    model = tiny_bert()
    apply_(model, "linear", budget=BUDGET)
    for _ in range(2):
        assert_same_step(step(model), expected, 1e-4, 1e-5)


def test_what_was_told_before_takes_precedence():
    model = tiny_bert()
    handle = apply_(model, "linear", budget=0.4)
    handle.start_batch(mask=MASK.flip(0))  # which hides rows that have a gradient
    step(model)
    with pytest.raises(ValueError, match="mask"):
        handle.state_dict()


@pytest.mark.parametrize("name", ["plain", "linear", "leanest"])
@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
@models
def test_sample_ids_are_taken_out(make, name, mode):
    """No model knows them: in eval mode and without a sampler too."""
    model = make().train(mode != "eval")
    apply_(model, name)
    given = {}
    model.register_forward_pre_hook(lambda _, args, kwargs: given.update(kwargs), with_kwargs=True)
    with torch.set_grad_enabled(mode != "no_grad"):
        assert model(**batch_of(model), sample_ids=torch.arange(4)).loss.isfinite()
    assert given.keys() == batch_of(model).keys()


def test_sample_ids_reach_the_table():
    model = tiny_bert()
    handle = apply_(model, "linear", num_samples=9, max_tokens=10)
    batch = batch_of(model) | {"sample_ids": torch.tensor([8, 1, 2, 3])}
    given = dict(batch)
    model(**given).loss.backward()
    assert given.keys() == batch.keys()  # those of the caller stay
    table = handle.state_dict()["sampler"]["grad_norms"]["table"]
    seen = (table >= 0).any(-1).any(0)
    assert seen.nonzero().flatten().tolist() == [1, 2, 3, 8]
    with pytest.raises(ValueError, match="sample"):
        model(**batch | {"sample_ids": torch.tensor([9, 1, 2, 3])})


def test_the_table_in_text():
    """What was swapped, what was left and why, and how much of the gradient is estimated."""
    model = tiny_bert()
    report = apply_(model, "leanest", exclude=["*.value"]).report()
    assert report.plain is report.now is report.better is None
    lines = str(report).splitlines()
    text = "\n".join(lines)
    for words in (
        "attention: recompute         BertForSequenceClassification (1)",
        "bert.encoder.layer.*.attention.self.query (2)",
        "chunked feed-forward         bert.encoder.layer.*.output.dense (2)",
        "recomputed: block            bert.encoder.layer.* (2)",
        "left: excluded               bert.encoder.layer.*.attention.self.value (2)",
        "classifier (1)",
    ):
        assert words in text
    weights = 2 * (3 * 16 * 16 + 2 * 16 * 24)
    share = weights / sum(p.numel() for p in model.parameters())
    assert report.sampled_share == share
    assert f"{share:.1%} of the parameters" in lines[-1]


def test_a_step_on_fake_tensors():
    """It says what a step takes, and touches neither the model, nor a gradient, nor a generator."""
    model = tiny_bert()
    handle = apply_(model, "leanest", budget=0.1)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    swapped = [*map(type, model.modules())]
    report = handle.report(batch_of(model))
    assert report.now.saved_bytes < report.plain.saved_bytes
    lines = [line for line in str(report).splitlines() if "bytes" in line]
    assert [line.split()[0] for line in lines] == ["saved", "peak"]
    assert torch.equal(torch.get_rng_state(), state)
    assert [*map(type, model.modules())] == swapped
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in model.parameters())
    step(model)


def test_a_report_of_a_batch_with_sample_ids():
    model = tiny_bert()
    handle = apply_(model, "leanest", budget=0.1, num_samples=9, max_tokens=64)
    batch = batch_of(model)
    ids = torch.arange(len(batch["input_ids"]))
    report = handle.report(batch | {"sample_ids": ids})
    assert report == handle.report(batch)
    model(**batch | {"sample_ids": ids}).loss.backward()


def test_a_preset_that_raises_the_peak_is_warned_of(monkeypatch):
    """And told is the preset with the smallest, of those that are for this model."""
    chosen = {name: PRESETS[name] for name in ("plain", "leanest", "checkpoint_offload")}
    monkeypatch.setattr("wtacrs.apply.PRESETS", chosen)
    model = tiny_llama()
    report = apply_(model, "plain").report(batch_of(model))
    assert report.now == report.plain
    hint = f"{report.better!r} would" if report.better else "no preset would"
    assert f"the peak of such a step is not lower; {hint} lower it" in str(report)
    assert report.better in (None, "leanest")
