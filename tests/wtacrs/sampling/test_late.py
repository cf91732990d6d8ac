"""Layers that pick rows in the backward pass: unbiased, exact where they must be, the bytes."""

import copy

import pytest
import torch
from torch import nn

from tests.saved import SavedBytes
from wtacrs.measure.step import StorageTracker
from wtacrs.sampling.variance import expected_squared_error, outer_gram

PRECISIONS = [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
precisions = pytest.mark.parametrize(
    ("dtype", "autocast"), PRECISIONS, ids=["float32", "bfloat16", "autocast"]
)
DRAWS = 300


@pytest.fixture
def make_late(make_layer):
    """A plain layer, and a late one from the same values with its sampler."""

    def make(linear=None, **config):
        plain = linear or nn.Linear(6, 5)
        layer, sampler = make_layer(copy.deepcopy(plain), **config)
        return plain, layer, sampler

    return make


def run(layer, sampler, x, dy, autocast=False):
    """One step, in which ``x`` is there in the backward pass; ``sampler`` None: plain."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if sampler is None:
            y = layer(x)
        else:
            with sampler.recomputed():
                y = layer(x)
    y.backward(dy.to(y.dtype))
    return y


def estimates_of(layer, sampler, x, dy, autocast=False, draws=DRAWS):
    found = []
    for _ in range(draws):
        layer.weight.grad = None
        run(layer, sampler, x, dy, autocast)
        found.append(layer.weight.grad.double())
    return torch.stack(found)


def rows(seed, *shape, dtype=torch.float32):
    """Rows whose sizes span about two decades."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(torch.randn(*shape[:-1], 1, generator=generator))
    return (torch.randn(shape, generator=generator) * sizes).to(dtype)


@precisions
def test_unbiased(unbiased, dtype, autocast, make_late, assert_unbiased):
    config = {"estimator": unbiased, "budget": 0.3, "center": "none"}
    plain, layer, sampler = make_late(nn.Linear(6, 5, dtype=dtype), **config)
    x, dy = rows(1, 4, 10, 6, dtype=dtype), rows(2, 4, 10, 5, dtype=dtype)
    run(plain, None, x, dy, autocast)
    exact = plain.weight.grad.double()
    low = autocast or dtype == torch.bfloat16
    estimates = estimates_of(layer, sampler, x, dy, autocast)
    assert_unbiased(estimates, exact, 4e-3 * exact.abs() if low else 1e-5)
    assert estimates.std(0).max() > 1e-2
    assert sampler.late == {"fc"}


@pytest.mark.parametrize("kind", ["classes", "lowrank"])
@pytest.mark.parametrize("shape", [(4, 10, 24), (40, 24), (2, 2, 10, 24)], ids=str)
def test_centred_is_unbiased(kind, shape, make_late, assert_unbiased):
    """Of rows around a common mean; a quarter of them has no gradient, and is in no class."""
    plain, layer, sampler = make_late(nn.Linear(24, 5), estimator="pps", budget=0.4, center=kind)
    x = rows(1, *shape) + torch.linspace(-2, 2, 24)
    dy = rows(2, 40, 5) * (torch.arange(40) % 4 > 0)[:, None]
    dy = dy.view(*shape[:-1], 5)
    run(plain, None, x, dy)
    estimates = estimates_of(layer, sampler, x, dy, draws=2 * DRAWS)
    assert_unbiased(estimates, plain.weight.grad, 1e-4)
    assert estimates.std(0).max() > 1e-2


def test_the_variance_is_that_of_the_exact_weights(unbiased, make_late):
    """The closed form, with w_n = ||X_n|| ||dY_n||; a sixth for 600 draws, and Hajek's error."""
    _, layer, sampler = make_late(estimator=unbiased, budget=0.3, center="none")
    x, dy = rows(3, 60, 6), rows(4, 60, 5)
    weights = x.norm(dim=1) * dy.norm(dim=1)
    errors = estimates_of(layer, sampler, x, dy, draws=600) - (dy.T @ x).double()
    expected = expected_squared_error(unbiased, outer_gram(x, dy), weights, 18)
    if unbiased == "uniform":  # which does not weigh
        expected = expected_squared_error(unbiased, outer_gram(x, dy), torch.ones(60), 18)
    found = errors.square().sum((1, 2)).mean()
    assert abs(float(found) / expected - 1) < 1 / 4


@precisions
def test_exact_where_k_rows_have_a_gradient(estimator, dtype, autocast, make_late):
    """And nobody said which."""
    linear = nn.Linear(6, 5, dtype=dtype)
    plain, layer, sampler = make_late(linear, estimator=estimator, budget=0.5)
    x = rows(1, 2, 10, 6, dtype=dtype).requires_grad_()
    dy = rows(2, 2, 10, 5, dtype=dtype) * (torch.arange(10) % 2)[:, None]
    for module, of in ((plain, None), (layer, sampler)):
        x.grad = None
        y = run(module, of, x, dy, autocast)
        module.results = [y, x.grad, module.bias.grad, module.weight.grad]
    for mine, expected in zip(layer.results[:3], plain.results[:3], strict=True):
        assert torch.equal(mine, expected)  # which no budget estimates
    assert layer.weight.grad.dtype == dtype
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("shape", [(6,), (6, 6), (2, 3, 6), (2, 1, 3, 6), (0, 5, 6)], ids=str)
@precisions
def test_budget_one_is_the_plain_layer(shape, dtype, autocast, estimator, make_late):
    linear = nn.Linear(6, 5, dtype=dtype)
    plain, layer, sampler = make_late(linear, estimator=estimator, budget=1.0)
    x, dy = torch.randn(shape, dtype=dtype), torch.randn(*shape[:-1], 5, dtype=dtype)
    run(plain, None, x, dy, autocast)
    run(layer, sampler, x, dy, autocast)
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


def test_gradients_accumulate(make_late, assert_unbiased):
    """Two batches of one step, both forward passes before the first backward pass."""
    plain, layer, sampler = make_late(budget=0.3)
    inputs, dys = (rows(1, 20, 6), rows(2, 20, 6)), (rows(3, 20, 5), rows(4, 20, 5))
    for x, dy in zip(inputs, dys, strict=True):
        run(plain, None, x, dy)
    estimates = []
    for _ in range(DRAWS):
        layer.weight.grad = None
        with sampler.recomputed():
            outputs = [layer(x) for x in inputs]
        for y, dy in zip(outputs, dys, strict=True):
            y.backward(dy)
        estimates.append(layer.weight.grad)
    assert_unbiased(torch.stack(estimates), plain.weight.grad, 1e-5)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_a_weight_tied_to_a_plain_layer(autocast, make_late):
    """Autocast's cache must not hand the plain layer a cast of the weight without a gradient."""
    plain, layer, sampler = make_late(budget=0.5)
    x = torch.randn(10, 6)
    dy = torch.randn(10, 5) * (torch.arange(10) < 5)[:, None]
    for module, of in ((plain, None), (layer, sampler)):
        other = nn.Linear(6, 5)
        other.weight = module.weight
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if of is None:
                y = module(x) + other(x)
            else:
                with of.recomputed():
                    y = module(x)
                y = y + other(x)
        y.backward(dy.to(y.dtype))
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("place", ["x", "dy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("center", ["none", "classes"])
def test_non_finite_numbers_reach_the_weight_gradient(estimator, value, place, center, make_late):
    """In whichever row, one without a gradient included."""
    center = "none" if estimator == "deterministic" else center
    _, layer, sampler = make_late(estimator=estimator, budget=0.4, center=center)
    for row in range(20):
        x, dy = torch.randn(2, 10, 6), torch.randn(2, 10, 5)
        dy[0, 9] = 0.0
        (x if place == "x" else dy).view(20, -1)[row, 1] = value
        layer.zero_grad()
        run(layer, sampler, x, dy)
        assert not layer.weight.grad.isfinite().all()


def test_no_gradient_at_all(estimator, make_late):
    """Of zeros, the gradient is zero, not 0/0."""
    _, layer, sampler = make_late(estimator=estimator, budget=0.3)
    for x, dy in (
        (torch.randn(20, 6), torch.zeros(20, 5)),
        (torch.zeros(20, 6), torch.ones(20, 5)),
    ):
        layer.zero_grad()
        run(layer, sampler, x, dy)
        assert torch.equal(layer.weight.grad, torch.zeros(5, 6))


def test_nothing_is_reported(make_layer):
    """No table, no history, and no row is counted as early; a step early, and both end."""
    layer, sampler = make_layer(nn.Linear(6, 5), budget=0.5, num_samples=4, max_tokens=10)
    sampler.start_batch(sample_ids=torch.arange(2))
    run(layer, sampler, rows(1, 2, 10, 6), rows(2, 2, 10, 5))
    sampler.settle()
    assert sampler.grad_norms.host_bytes == 0
    assert sampler.rows_seen == sampler.rows_kept == 0
    assert not sampler.state_dict()["grad_norms"]["names"]
    sampler.start_batch(sample_ids=torch.arange(2))
    layer(rows(1, 2, 10, 6)).backward(rows(2, 2, 10, 5))
    sampler.settle()
    assert sampler.late == set()
    assert sampler.rows_kept == 10
    assert sampler.grad_norms.host_bytes > 0


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_saved_bytes(estimator, autocast, make_late):
    """The input itself and the weight, no copy of either; without dX not even the weight."""
    _, layer, sampler = make_late(estimator=estimator, budget=0.5)
    for needs_dx in (True, False):
        x = torch.randn(2, 10, 6, requires_grad=needs_dx)
        cast = torch.autocast("cpu", enabled=autocast)
        with SavedBytes(nn.Identity()) as saved, cast, sampler.recomputed():
            layer(x)
        expected = [((2, 10, 6), torch.float32), ((5, 6), torch.float32)]
        assert saved.tensors == expected[: 1 + needs_dx]
        with StorageTracker([x, *layer.parameters()]) as tracker, cast, sampler.recomputed():
            before = tracker.current_bytes
            y = layer(x)
            assert tracker.current_bytes == before + y.nbytes


def test_a_resumed_run_is_the_same_run(make_late):
    _, layer, sampler = make_late(nn.Linear(24, 5), estimator="pps", budget=0.4)
    x, dy = rows(1, 40, 24), rows(2, 40, 5)
    estimates_of(layer, sampler, x, dy, draws=2)
    state = copy.deepcopy(sampler.state_dict())
    later = estimates_of(layer, sampler, x, dy, draws=3)
    sampler.load_state_dict(state)
    assert torch.equal(estimates_of(layer, sampler, x, dy, draws=3), later)
