"""The sampled products of attention: forward exact, gradients unbiased, bytes at the budget."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.saved import SavedBytes
from tests.wtacrs.tiny import (
    assert_same_step,
    batch_of,
    fake_batch_of,
    models,
    step,
    tiny_bert,
)
from wtacrs import SamplingConfig, restore_linears_, sample_linears_
from wtacrs.attention.interface import RecomputedAttention, set_attention
from wtacrs.attention.sampled import SampledAttention

B, H, T, S, D = 2, 2, 6, 5, 4


def inputs():
    """q, k, v and a position bias (1, h, t, s); rows and columns of uneven size."""
    sizes = torch.linspace(0.3, 2, T)[:, None]
    tensors = [torch.randn(B, H, T, D) * sizes, torch.randn(B, H, S, D) * sizes[:S]]
    tensors += [torch.randn(B, H, S, D) * sizes[:S], torch.randn(1, H, T, S)]
    return [x.requires_grad_() for x in tensors]


def gradients(tensors, p, sampler=None):
    """Of q, k, v, bias; the dropout is the same at each call."""
    q, k, v, bias = tensors
    torch.manual_seed(5)
    if sampler is None:
        out = RecomputedAttention.apply(q, k, v, 0.6, p, None, False, bias)
    else:
        out = SampledAttention.apply(q, k, v, 0.6, p, sampler, bias)
    dout = torch.sin(torch.arange(out.numel())).view_as(out)
    return torch.autograd.grad(out, tensors, dout)


def assert_all_unbiased(make_layer, assert_unbiased, estimator, p, draws):
    _, sampler = make_layer(estimator=estimator, budget=0.4, floor=0.1)
    tensors = inputs()
    drawn = zip(*(gradients(tensors, p, sampler) for _ in range(draws)), strict=True)
    for estimates, exact in zip(drawn, gradients(tensors, p), strict=True):
        assert_unbiased(torch.stack(estimates), exact, 1e-5)
        assert torch.stack(estimates).std(0).max() > 1e-3  # it was sampled


def test_unbiased(unbiased, make_layer, assert_unbiased):
    """Four gradients at |z| < 4.5: a false alarm in 3 of 100,000 seeds for each estimator. The
    products are the subject; for the estimators, which have tests of their own, a few draws do."""
    draws = 2000 if unbiased == "wtacrs" else 300
    assert_all_unbiased(make_layer, assert_unbiased, unbiased, 0.3, draws)


def test_unbiased_without_dropout(make_layer, assert_unbiased):
    assert_all_unbiased(make_layer, assert_unbiased, "wtacrs", 0.0, 300)


def test_deterministic_is_biased(make_layer, assert_unbiased):
    _, sampler = make_layer(estimator="deterministic", budget=0.4)
    tensors = inputs()
    estimates = torch.stack([gradients(tensors, 0.0, sampler)[2] for _ in range(5)])
    with pytest.raises(AssertionError):
        assert_unbiased(estimates, gradients(tensors, 0.0)[2], 1e-5)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("config", [{"budget": 1.0}, {"estimator": "full"}], ids=str)
def test_exact_where_all_is_kept(config, p, make_layer):
    _, sampler = make_layer(**config)
    tensors = inputs()
    estimates, exact = gradients(tensors, p, sampler), gradients(tensors, p)
    for estimate, expected in zip(estimates, exact, strict=True):
        torch.testing.assert_close(estimate, expected)
    assert not sampler.state_dict()["generators"]["states"]  # nothing was drawn


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_saved_bytes(p, make_layer):
    """P, its dropout in bits, a share a query; of q (b t, h d), k (b s, h d), v (b h d, s) k rows,
    with an index (8) and a scale (4) for each."""
    _, sampler = make_layer(budget=0.5)
    q, k, v, bias = inputs()
    with SavedBytes(nn.Identity()) as saved:
        SampledAttention.apply(q, k, v, 0.6, p, sampler, bias)
    elements, itemsize = B * H * T * S, 4
    kept = [(B * T // 2, H * D), (B * S // 2, H * D), (B * H * D // 2, S)]
    rows = sum(n * (length * itemsize + 8 + 4) for n, length in kept)
    bits = -(-elements // 8) if p else 0
    assert saved.bytes == elements * itemsize + bits + B * T * itemsize + rows


@models
def test_forward_is_eager(make):
    """With the linears sampled: the loss bit for bit, the same dropout, gradients that are finite
    and of q and k are estimates."""
    model = make()
    loss, expected, state = step(model)
    sample_linears_(model, SamplingConfig(budget=0.5))
    set_attention(model, "sampled")
    sampled_loss, estimates, sampled_state = step(model)
    assert torch.equal(sampled_loss, loss)
    assert torch.equal(sampled_state, state)
    assert estimates.keys() == expected.keys()
    assert all(gradient.isfinite().all() for gradient in estimates.values())


@models
def test_a_model_at_budget_one(make):
    model = make()
    expected = step(model)
    sample_linears_(model, SamplingConfig(budget=1.0))
    set_attention(model, "sampled")
    assert_same_step(step(model), expected, 1e-5)


def test_draws_come_from_the_sampler():
    """Its generator, so a copy in the same state makes the same step; not the global one."""
    model = tiny_bert(dropout=0.0)
    sample_linears_(model, SamplingConfig(budget=0.3))
    set_attention(model, "sampled")
    copied = copy.deepcopy(model)
    first = step(model, seed=1)[1]
    for name, gradient in step(copied, seed=2)[1].items():
        assert torch.equal(gradient, first[name])
    again = step(model, seed=1)[1]
    assert not torch.equal(
        again["bert.embeddings.word_embeddings.weight"],
        first["bert.embeddings.word_embeddings.weight"],
    )


@models
def test_without_sampled_linears(make):
    """An error that says what to do; in eval mode without grad nothing is drawn, so none."""
    model = make()
    sample_linears_(model)
    restore_linears_(model)
    set_attention(model, "sampled")
    with pytest.raises(ValueError, match="has no sampled one; call sample_linears_ first"):
        step(model)
    model.eval()
    with torch.no_grad():
        logits = model(**batch_of(model)).logits
        set_attention(model, "eager")
        assert torch.equal(model(**batch_of(model)).logits, logits)


@models
def test_on_fake_tensors(make):
    with FakeTensorMode() as mode:
        model = make()
        sample_linears_(model, SamplingConfig(budget=0.5))
        set_attention(model, "sampled")
        step(model, fake_batch_of(model, mode))
