"""Recomputed parts of real models against the plain ones: the same step, and less kept."""

import pytest
import torch
from torch import nn

from tests.wtacrs.tiny import (
    assert_same_step,
    batch_of,
    models,
    step,
    tiny_bert,
    tiny_llama,
    tiny_t5,
)
from wtacrs.attention.interface import set_attention
from wtacrs.layers import restore_layers_, save_less_
from wtacrs.measure.step import StorageTracker
from wtacrs.recompute import recompute_, restore_forward_

parts = pytest.mark.parametrize("what", ["attention", "block"])


def recomputed(make, what):
    model = make()
    recompute_(model, what)
    return model


@parts
@models
def test_the_step_is_the_plain_one(make, what):
    """Loss, dropout and generator bit for bit, gradients to 1e-6; twice, and after restoring."""
    model = make()
    types, expected = [type(m) for m in model.modules()], step(model)
    recompute_(model, what)
    for _ in range(2):
        assert_same_step(step(model), expected, 1e-6)
    restore_forward_(model)
    assert [type(m) for m in model.modules()] == types
    assert_same_step(step(model), expected, 0)


@parts
@models
def test_under_autocast(make, what):
    """The weights' casts included: autocast's cache leaks from no pass into the other."""
    model = make()
    expected = step(model, autocast=True)
    recompute_(model, what)
    assert_same_step(step(model, autocast=True), expected, 1e-2)


@parts
@models
def test_dropout_is_replayed(make, what):
    """The second pass must see what the first one saw: numbers drawn between them change nothing,
    and the backward pass moves no generator."""
    model = make()
    expected = step(model)[1]
    recompute_(model, what)
    model.zero_grad()
    torch.manual_seed(5)
    loss = model(**batch_of(model)).loss
    torch.rand(1000)
    state = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7)


@parts
@models
@pytest.mark.parametrize("first", ["recompute", "other"])
def test_composes_with_exact_layers_and_attention(make, what, first):
    """In either order."""
    model = make()
    types, expected = [type(m) for m in model.modules()], step(model)
    if first == "recompute":
        recompute_(model, what)
    save_less_(model)
    set_attention(model, "recompute")
    if first == "other":
        recompute_(model, what)
    assert_same_step(step(model), expected, 1e-5)
    restore_forward_(model)
    restore_layers_(model)
    assert [type(m) for m in model.modules()] == types


@parts
@models
def test_autograd_grad(make, what):
    """Of all parameters, of a few, and through ``inputs_embeds``; nothing lands in ``.grad``."""
    gradients = []
    for model in (make(), recomputed(make, what)):
        embed = model.get_input_embeddings()
        batch = batch_of(model)
        batch["inputs_embeds"] = embed(batch.pop("input_ids")).detach().requires_grad_()
        torch.manual_seed(5)
        loss = model(**batch).loss
        few = [p for n, p in model.named_parameters() if "0" in n and "k" in n]
        sources = [batch["inputs_embeds"], *few]
        gradients.append(torch.autograd.grad(loss, sources, retain_graph=True))
        loss.backward(inputs=few[:1])
        assert torch.equal(few[0].grad, gradients[-1][1])
        assert batch["inputs_embeds"].grad is None
    for plain, mine in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-7)


@parts
@models
def test_two_backward_passes_and_two_forward_passes(make, what):
    """A graph that is kept gives its gradients twice; two batches under way do not mix."""
    model = make(dropout=0.0)
    batch = batch_of(model)
    other = batch | {"input_ids": batch["input_ids"].flip(0)}
    expected = [step(model, one)[1] for one in (batch, batch, other)]
    recompute_(model, what)
    model.zero_grad()
    first, second = model(**batch).loss, model(**other).loss
    for loss, retain in ((first, True), (second, False), (first, False)):
        loss.backward(retain_graph=retain)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            total = sum(gradients[name] for gradients in expected)
            torch.testing.assert_close(parameter.grad, total, rtol=1e-4, atol=1e-6)


@parts
@models
def test_frozen_but_for_adapters(make, what):
    """Inputs of the first blocks without a gradient, one trainable weight in the last block."""
    gradients = []
    for model in (make(), recomputed(make, what)):
        model.requires_grad_(False)
        name = next(n for n, _ in model.named_parameters() if ".1." in n and "v" in n)
        model.get_parameter(name).requires_grad_()
        _, found, state = step(model)
        assert [*found] == [name]
        gradients.append([found[name], state])
    for plain, mine in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plain)
    model.requires_grad_(False)
    assert not model(**batch_of(model)).loss.requires_grad


class Shifted(nn.Module):
    """A block that takes a tensor inside a tuple."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x, shifts):
        return self.linear(x) + shifts[0]


def test_tensors_in_a_tuple():
    model = nn.Sequential(nn.ModuleList([Shifted()]))
    shift = torch.ones(2, requires_grad=True)
    recompute_(model, "block")
    model[0][0](torch.randn(3, 2), (shift * 2,)).sum().backward()
    assert torch.equal(shift.grad, torch.full((2,), 6.0))


@parts
@models
def test_without_training_it_is_the_plain_model(make, what):
    model = make().eval()
    expected = model(**batch_of(model)).logits
    recompute_(model, what)
    assert torch.equal(model(**batch_of(model)).logits, expected)
    with torch.no_grad():
        assert torch.equal(model(**batch_of(model)).logits, expected)


@parts
@pytest.mark.parametrize("make", [tiny_t5, tiny_llama], ids=["t5", "llama"])
def test_eval_mode_with_grad_is_the_plain_model(make, what):
    """Attributions, prefix tuning: the cache is filled and read, and keys get their gradients."""

    def gradient_through_the_cache(model):
        batch = batch_of(model) | {"use_cache": True}
        if model.config.is_encoder_decoder:
            start = {**batch, "labels": None, "decoder_input_ids": batch.pop("labels").clamp(min=0)}
            out = model(**start)
            later = model(**start | {"past_key_values": out.past_key_values}).logits
        else:
            out = model(batch["input_ids"][:, :6], use_cache=True)
            later = model(batch["input_ids"][:, 6:], past_key_values=out.past_key_values).logits
        assert out.past_key_values.get_seq_length() > 0
        model.zero_grad()
        later.square().sum().backward()
        return later.detach(), [p.grad for p in model.parameters() if p.grad is not None]

    model = make().eval()
    logits, gradients = gradient_through_the_cache(model)
    recompute_(model, what)
    again, same = gradient_through_the_cache(model)
    assert torch.equal(again, logits)
    for mine, plain in zip(same, gradients, strict=True):
        assert torch.equal(mine, plain)


@parts
def test_what_autocast_has_cast_is_not_kept(what):
    """Autocast's cache would hold a copy of each weight until the whole model returns."""
    model = tiny_bert(hidden_size=64, intermediate_size=256)
    recompute_(model, what)
    block = model.bert.encoder.layer[0]
    part = block.attention if what == "attention" else block
    hidden = torch.randn(1, 2, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), StorageTracker() as tracker:
        out = part(hidden)
        assert tracker.current_bytes < 64 * 64 * 2  # of the smallest weight in bfloat16
        assert torch.is_autocast_cache_enabled()  # for the rest of the model
    assert out is not None
