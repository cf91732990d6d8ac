"""GELU with a derivative of 8 bits: exact forward, unbiased backward, randomness with an owner."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.activations import GELUActivation

from tests.saved import SavedBytes
from wtacrs.layers import gelu, rounding_of, save_less_
from wtacrs.layers.gelu import HIGH, LEVEL, LOW, RoundedGELU

X = torch.linspace(-6, 6, 241)
DRAWS = 5000


def make(seed=0, plain=nn.GELU):
    model = nn.ModuleList([plain()])
    assert save_less_(model, gelu="rounded", seed=seed) == {"0": "RoundedGELU"}
    return model[0]


def derivative(x):
    """The plain layer's, in the dtype of ``x``."""
    x = x.detach().requires_grad_()
    F.gelu(x).sum().backward()
    return x.grad


def estimate(layer, x):
    """What the layer takes for the derivative, by drawing once for each element of ``x``."""
    x = x.detach().requires_grad_()
    layer(x).backward(torch.ones_like(x))
    return x.grad


@pytest.mark.parametrize("plain", [nn.GELU, GELUActivation])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_forward_is_the_plain_one(plain, dtype):
    layer, x = make(plain=plain), (3 * torch.randn(5, 7, 3)).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    assert torch.equal(y, plain()(x))
    assert torch.equal(layer(x.permute(2, 0, 1)), plain()(x.permute(2, 0, 1)))
    with torch.no_grad():
        assert torch.equal(layer(x), plain()(x))


def test_unbiased(assert_unbiased):
    """5000 draws at each of 241 points: the conftest's projection, and each point on its own.

    An estimate takes two levels, so a mean's deviation is known; 4.5 of it and 9 draws for the
    skew of rare ones are passed by chance at one of the points in less than 2 of 1000 seeds.
    """
    exact = derivative(X.double())
    estimates = estimate(make(), X.expand(DRAWS, -1)).double()
    assert_unbiased(estimates, exact, 1e-6)
    fraction = ((exact - LOW) / LEVEL).frac()
    allowed = LEVEL * (4.5 * (fraction * (1 - fraction) / DRAWS).sqrt() + 9 / DRAWS)
    assert ((estimates.mean(0) - exact).abs() <= allowed).all()
    assert estimates.std(0).max() == pytest.approx(LEVEL / 2, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_never_farther_than_a_level(dtype):
    """Nor wraps at the ends of the range, the extrema at +-sqrt(2); beside the dtype's rounding."""
    x = torch.cat([X, torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4]), X.sign() * 2**0.5]).to(dtype)
    error = estimate(make(), x.expand(500, -1)).float() - derivative(x.float())
    assert error.abs().max() <= LEVEL + 3 * torch.finfo(dtype).eps


def test_the_range_of_the_derivative():
    """Its extrema are at +-sqrt(2); the range holds them and is hardly wider."""
    low, high = derivative(torch.tensor([-(2**0.5), 2**0.5]).double()).tolist()
    everywhere = derivative(torch.linspace(-9, 9, 100001).double())
    assert (everywhere.min(), everywhere.max()) == (pytest.approx(low), pytest.approx(high))
    assert LOW <= low < LOW + LEVEL
    assert HIGH - LEVEL < high <= HIGH


def test_in_parts(monkeypatch):
    """The last part is shorter; every element gets its own derivative."""
    monkeypatch.setattr(gelu, "CHUNK", 7)
    x = torch.cat([X, X[:4]]).reshape(5, 49).T
    assert (estimate(make(), x) - derivative(x)).abs().max() <= LEVEL + 1e-6


@pytest.mark.parametrize("shape", [(0, 3), (), (1,)], ids=str)
def test_small_inputs(shape):
    x = torch.ones(shape)
    assert (estimate(make(), x) - derivative(x)).abs().le(LEVEL).all()


@pytest.mark.parametrize("shape", [(3, 5, 7), (1 << 10, 3)], ids=str)
def test_saved_bytes(shape):
    """One byte an element, and one number."""
    layer = make()
    x = torch.randn(shape, requires_grad=True)
    with SavedBytes(layer) as saved:
        layer(x)
    assert saved.tensors == [(shape, torch.uint8), ((), torch.float32)]
    assert saved.bytes == x.numel() + 4


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_shows(value):
    """The plain derivative there is NaN, which no level can say."""
    x = torch.ones(3 * gelu.CHUNK // 2).index_fill(0, torch.tensor([2]), value)
    assert derivative(x)[2].isnan()
    assert estimate(make(), x).isnan().all()


def test_the_default_dtype_makes_no_difference():
    x = torch.randn(300)
    expected = estimate(make(), x)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(estimate(make(), x), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_global_generator_is_nobodys():
    """It is not moved, and what it is does not matter; the seed of the rounding does."""
    x, estimates = torch.randn(500), []
    for global_seed, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        estimates.append(estimate(make(seed), x))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(estimates[0], estimates[1])
    assert not torch.equal(estimates[0], estimates[2])


def test_no_draw_without_a_gradient():
    layer = make()
    with torch.no_grad():
        layer(torch.randn(5, requires_grad=True))
    layer(torch.randn(5))
    assert not layer.rounding.state_dict()["states"]


def test_resuming_is_exact():
    x, layer = torch.randn(500), make()
    estimate(layer, x)
    state = layer.rounding.state_dict()
    expected = [estimate(layer, x) for _ in range(2)]
    assert not torch.equal(*expected)
    resumed = make(seed=9)
    resumed.rounding.load_state_dict(state)
    for one in expected:
        assert torch.equal(estimate(resumed, x), one)


def test_layers_share_one_owner():
    """So each draws other numbers than the one before it."""
    model = nn.Sequential(nn.GELU(), nn.Linear(2, 2), nn.GELU())
    assert rounding_of(model) is None
    save_less_(model, gelu="rounded")
    assert rounding_of(model) is model[0].rounding is model[2].rounding
    x = torch.randn(500)
    assert not torch.equal(estimate(model[0], x), estimate(model[2], x))


def test_approximations_stay_plain():
    model = nn.ModuleList([nn.GELU("tanh"), GELUActivation(use_gelu_python=True), nn.GELU()])
    assert [*save_less_(model, gelu="rounded")] == ["2"]
    assert not isinstance(model[0], RoundedGELU)


def test_on_fake_tensors():
    with FakeTensorMode():
        assert estimate(make(), torch.randn(3, 4)).shape == (3, 4)
