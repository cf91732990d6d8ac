"""Adapters that come after ``apply_``: as if they had come before."""

import copy
import gc
import weakref

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from tests.wtacrs.tiny import batch_of, models, step, tiny_bert, tiny_llama
from wtacrs import SampledLinear, apply_

TARGETS = ["q_proj", "v_proj", "down_proj", "query", "dense", "q", "v", "wo"]
presets = pytest.mark.parametrize("preset", ["linear", "lean", "leanest"])


def adapt(model, **kind):
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False, **kind)
    return inject_adapter_in_model(config, model).train()


def sampled_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, SampledLinear)]


@pytest.mark.filterwarnings("error")  # say, that no sampled layer is trainable any more
@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
@presets
@models
def test_before_is_as_after(make, preset, kind):
    """Bit for bit over two steps, and in what is told of it."""
    after = adapt(make(), **kind)
    expected_handle = apply_(after, preset, budget=0.5)
    model = make()
    handle = apply_(model, preset, budget=0.5)
    adapt(model, **kind)
    for _ in range(2):
        found, expected = step(model), step(after)
        assert torch.equal(found[0], expected[0])
        assert found[1].keys() == expected[1].keys()
        for name, gradient in expected[1].items():
            assert torch.equal(found[1][name], gradient), name
    assert sampled_names(model) == sampled_names(after) == handle.sampler.names
    assert str(handle.report()) == str(expected_handle.report())
    assert handle.sampler.late == expected_handle.sampler.late
    handle.undo()
    assert not sampled_names(model)


def test_facts_of_the_first_batch_are_not_lost():
    """Told before the call, or read from it."""
    batch = batch_of(tiny_llama())
    for told in (True, False):
        model = tiny_llama()
        handle = apply_(model, "linear", num_samples=8, max_tokens=10)
        print(handle.report())  # looks for adapters, too, and finds none
        adapt(model)
        ids = torch.tensor([0, 5, 2, 3])
        if told:
            handle.start_batch(ids)
        model(**batch, **({} if told else {"sample_ids": ids})).loss.backward()
        facts = handle.sampler.passes._begun[-1][1].facts
        assert torch.equal(facts.sample_ids, ids)


def test_a_report_before_training_tells_of_the_adapters():
    model = tiny_bert()
    handle = apply_(model, "lean")
    adapt(model)
    report = handle.report(batch_of(model))
    assert all("lora_" in name for name in report.swapped["sampled linear layers"])
    assert report.sampled_share > 0.5
    assert report.now.saved_bytes < report.plain.saved_bytes


@pytest.mark.filterwarnings("ignore:none of the 14 sampled layers is trainable any more")
def test_without_adapters_all_stays_as_it_is():
    model = tiny_llama()
    handle = apply_(model, "lean")
    sampler = handle.sampler
    model.eval()(**batch_of(model))
    step(model.train())
    assert handle.sampler is sampler
    adapt(model)  # in the midst of training: their gradients are exact
    step(model)
    assert handle.sampler is sampler


def test_a_copy_has_its_own():
    model = tiny_llama()
    handle = apply_(model, "linear")
    other = adapt(copy.deepcopy(model))
    step(other)
    assert any("lora_" in name for name in sampled_names(other))
    assert not any("lora_" in name for name in sampled_names(model))
    assert handle.sampler.names == sampled_names(model)


def test_a_model_that_never_trained_is_freed():
    gc.disable()
    try:
        model = tiny_llama()
        apply_(model, "linear")
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None
    finally:
        gc.enable()
