"""Recomputed parts with sampled linears inside: rows are picked late, with what is known then."""

import pytest
import torch
from torch import nn

from tests.wtacrs.tiny import MASK, assert_same_step, batch_of, step, tiny_bert, tiny_t5
from wtacrs import SamplingConfig, sample_linears_
from wtacrs.attention.interface import set_attention
from wtacrs.layers import save_less_
from wtacrs.recompute import recompute_, restore_forward_

parts = pytest.mark.parametrize("what", ["attention", "block"])
DRAWS = 250


@pytest.fixture
def make(make_encoder):
    """The encoder; its blocks, which mix q, k and v, count as attention by name."""

    def build(blocks=2):
        torch.manual_seed(3)
        model = make_encoder(blocks)
        for block in model.layers:
            block.__class__ = type("TokenAttention", (type(block),), {})
        return model

    return build


@parts
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_exact_where_k_rows_are_all_that_count(estimator, what, autocast, make, exact_step):
    """Half of the rows have a gradient, the budget is half. Twice: nothing is left of a step."""
    model = make()
    context = torch.autocast("cpu", torch.bfloat16, enabled=autocast)

    def call(x):
        with context:
            return model(x)

    expected = exact_step(model, None, call)
    sampler = sample_linears_(model, SamplingConfig(estimator=estimator, budget=0.5))
    assert recompute_(model, what) == ["layers.0", "layers.1"]
    for _ in range(2):
        for name, gradient in exact_step(model, sampler, call).items():
            torch.testing.assert_close(gradient, expected[name])
    assert sampler.late == {*sampler.names}
    assert sampler.rows_seen == sampler.rows_kept == 0  # of layers that pick early


@parts
def test_nothing_is_reported(what, make):
    """Exact norms need no history: no table is made or written, sample ids or not."""
    model = make()
    sampler = sample_linears_(model, SamplingConfig(budget=0.5), num_samples=5, max_tokens=10)
    recompute_(model, what)
    sampler.start_batch(sample_ids=torch.tensor([3, 1]), mask=torch.ones(2, 10))
    model(torch.randn(2, 10, 4)).square().sum().backward()
    sampler.start_batch()
    state = sampler.state_dict()["grad_norms"]
    assert sampler.grad_norms.host_bytes == 0
    assert not state["names"]


@parts
def test_unbiased(unbiased, what, make, assert_unbiased):
    """Each forward pass draws anew in its second pass; |z| < 4.5, see the conftest."""
    model = make(blocks=1)
    x, dy = torch.randn(2, 10, 4), torch.randn(2, 10, 2)
    model(x).backward(dy)
    exact = [p.grad for p in model.layers.parameters()]
    sample_linears_(model, SamplingConfig(estimator=unbiased, budget=0.3, grad_norms="none"))
    recompute_(model, what)
    estimates = []
    for _ in range(DRAWS):
        model.zero_grad()
        model(x).backward(dy)
        estimates.append(torch.cat([p.grad.flatten() for p in model.layers.parameters()]))
    assert_unbiased(
        torch.stack(estimates), torch.cat([gradient.flatten() for gradient in exact]), 1e-5
    )
    assert torch.stack(estimates).std(0).max() > 1e-3


@parts
@pytest.mark.parametrize("make_model", [tiny_bert, tiny_t5], ids=["bert", "t5"])
def test_all_at_once_at_budget_one(make_model, what):
    """Norms, dropouts, attention, linears and recomputation: what is called exact is exact."""
    model = make_model()
    expected = step(model)
    sample_linears_(model, SamplingConfig(budget=1.0))
    save_less_(model)
    set_attention(model, "recompute")
    recompute_(model, what)
    assert_same_step(step(model), expected, 1e-5)


@parts
@pytest.mark.parametrize("make_model", [tiny_bert, tiny_t5], ids=["bert", "t5"])
@pytest.mark.parametrize("attention", ["recompute", "sampled"])
def test_all_at_once_sampled(make_model, what, attention):
    """The loss and the dropout are those of the model that recomputes nothing."""
    model = make_model()
    sampler = sample_linears_(model, SamplingConfig(budget=0.5))
    save_less_(model)
    set_attention(model, attention)
    sampler.start_batch()
    expected = step(model)
    recompute_(model, what)
    sampler.start_batch()
    loss, gradients, state = step(model)
    assert torch.equal(loss, expected[0])
    assert torch.equal(state, expected[2])
    assert gradients.keys() == expected[1].keys()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    restore_forward_(model)
    assert not any("Recomputed" in type(m).__name__ for m in model.modules())


@parts
def test_a_mask_in_a_real_model(what):
    """BERT's padded rows get no gradient: with a budget that covers the others, all gradients are
    exact, early with the mask and late without it."""
    model = tiny_bert(dropout=0.0)
    expected = step(model)[1]
    budget = MASK.sum().item() / MASK.numel()
    sampler = sample_linears_(model, SamplingConfig(budget=budget))
    save_less_(model)
    recompute_(model, what)
    for _ in range(2):
        sampler.start_batch(mask=MASK)
        loss, gradients, _ = step(model, batch_of(model))
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)
    assert loss.isfinite()
    assert (sampler.rows_kept < sampler.rows_seen) == (what == "attention")


def test_a_frozen_block(make):
    """It samples nothing, and passes the gradient on."""
    model = make()
    model.layers[1].requires_grad_(False)
    x = torch.randn(2, 10, 4)
    model(x).sum().backward()
    expected = model.layers[0].q.bias.grad.clone()
    sample_linears_(model, SamplingConfig(budget=0.5))
    recompute_(model, "block")
    model.zero_grad()
    model(x).sum().backward()
    torch.testing.assert_close(model.layers[0].q.bias.grad, expected)
    assert type(model.layers[1].q) is nn.Linear
    assert model.layers[1].q.weight.grad is None
