"""The gradient of SampledLinear as statistics over training steps, and non-finite numbers in it."""

import pytest
import torch
from torch import nn

STEPS = 200
B, T = 4, 10


def sizes(*shape, seed):
    """Positive sizes that span about two decades."""
    return torch.exp(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def errors_over_steps(layer, sampler, x, dys, mask=None):
    """dW - dW_exact (m, o, i) of m steps with the gradients ``dys`` (m, b, t, o).

    The input is the same tensor at each step, as in a training loop over a cached batch: unless
    each forward pass draws anew, the error does not average out.
    """
    estimates = []
    for dy in dys:
        if mask is not None:
            sampler.start_batch(mask=mask)
        layer.weight.grad = None
        layer(x).backward(dy)
        estimates.append(layer.weight.grad)
    return torch.stack(estimates) - torch.einsum("mbto,bti->moi", dys, x)


def test_new_gradients_of_uncorrelated_size(unbiased, make_layer, assert_unbiased):
    """The norms of earlier steps, which make the weights, say nothing about this one."""
    layer, sampler = make_layer(estimator=unbiased)
    dys = torch.randn(STEPS, B, T, 3) * sizes(STEPS, B, T, 1, seed=7)
    x = torch.randn(B, T, 4) * sizes(B, T, 1, seed=8)
    assert_unbiased(errors_over_steps(layer, sampler, x, dys), torch.zeros(3, 4), 1e-6)


def test_half_of_the_rows_masked(unbiased, make_layer, assert_unbiased):
    layer, sampler = make_layer(estimator=unbiased, grad_norms="none")
    mask = (torch.arange(B * T) % 2).reshape(B, T)
    dys = (torch.randn(B, T, 3) * mask[..., None]).expand(STEPS, B, T, 3)
    errors = errors_over_steps(layer, sampler, torch.randn(B, T, 4), dys, mask)
    assert_unbiased(errors, torch.zeros(3, 4), 1e-6)
    assert errors.abs().max() > 1e-3  # k = 12 of 20 rows: it was sampled


def test_stale_gradient_norms(unbiased, make_layer, assert_unbiased, monkeypatch):
    """Every fourth row counts as without gradient, and has one. The floor keeps it possible;
    0.2 instead of 0.01, so that such rows come often enough for the statistics."""
    layer, sampler = make_layer(estimator=unbiased, floor=0.2)
    stale = sizes(B * T, seed=10) * (torch.arange(B * T) % 4 > 0)
    monkeypatch.setattr(sampler.grad_norms, "estimate", lambda *_: stale.view(1, B, T))
    monkeypatch.setattr(sampler.grad_norms, "place", lambda _: 0)
    dys = torch.randn(B, T, 3).expand(STEPS, B, T, 3)
    errors = errors_over_steps(layer, sampler, torch.randn(B, T, 4), dys)
    assert_unbiased(errors, torch.zeros(3, 4), 1e-6)


def test_deterministic_is_biased(make_layer, assert_unbiased):
    layer, sampler = make_layer(estimator="deterministic", grad_norms="none")
    dys = torch.randn(B, T, 3).expand(10, B, T, 3)
    errors = errors_over_steps(layer, sampler, torch.randn(B, T, 4), dys)
    with pytest.raises(AssertionError):
        assert_unbiased(errors, torch.zeros(3, 4), 1e-6)


def test_gradient_norms_lower_the_error(make_layer):
    """Why they are kept: dY whose size depends on the token position, sources none and position."""
    x = torch.randn(B, T, 4)
    dys = (torch.randn(B, T, 3) * sizes(1, T, 1, seed=11).square()).expand(40, B, T, 3)
    error = {}
    for source in ("none", "position"):
        layer, sampler = make_layer(grad_norms=source)
        error[source] = errors_over_steps(layer, sampler, x, dys)[1:].square().mean()
    assert error["position"] < 0.3 * error["none"]


@pytest.mark.parametrize("masked", [False, True], ids=["valid", "masked"])
@pytest.mark.parametrize("place", ["x", "dy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_numbers_reach_the_weight_gradient(estimator, value, place, masked, make_layer):
    """In whichever row: kept, not kept, or masked."""
    layer, sampler = make_layer(estimator=estimator, budget=0.2)
    mask = (torch.arange(10) < 8).reshape(2, 5).int()
    for row in (8, 9) if masked else range(8):
        x, dy = torch.randn(2, 5, 4), torch.randn(2, 5, 3) * mask[..., None]
        (x if place == "x" else dy).view(10, -1)[row, 1] = value
        sampler.start_batch(mask=mask)
        layer.zero_grad()
        layer(x).backward(dy)
        assert layer.weight.grad.isnan().any()


@pytest.mark.parametrize("table", [False, True], ids=["position", "sample"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_non_finite_step_does_not_poison_the_next(value, table, make_layer):
    """A skipped step, as GradScaler has them; 3e38 overflows only in the norm."""
    shape = {"num_samples": 2, "max_tokens": 5} if table else {}
    layer, sampler = make_layer(estimator="crs", **shape)
    ids = torch.arange(2) if table else None
    for bad in (False, True, False, False):
        dy = torch.ones(2, 5, 3)
        dy[1, 2] = value if bad else 1
        sampler.start_batch(sample_ids=ids)
        layer.zero_grad()
        layer(torch.randn(2, 5, 4)).backward(dy)
        assert layer.weight.grad.isfinite().all() == (not bad)
    state = sampler.state_dict()["grad_norms"]
    assert all(state[part].isfinite().all() for part in ("sums", "counts"))


def test_all_rows_masked_gives_zero(estimator, make_layer):
    layer, sampler = make_layer(estimator=estimator)
    sampler.start_batch(mask=torch.zeros(2, 5))
    layer(torch.randn(2, 5, 4)).backward(torch.zeros(2, 5, 3))
    assert torch.equal(layer.weight.grad, torch.zeros(3, 4))


def test_a_dead_batch_trains_on(estimator, make_layer):
    """All inputs zero: the gradient is zero, not 0/0."""
    layer, _ = make_layer(nn.Linear(4, 3), estimator=estimator)
    layer(torch.zeros(2, 5, 4)).backward(torch.ones(2, 5, 3))
    assert torch.equal(layer.weight.grad, torch.zeros(3, 4))
