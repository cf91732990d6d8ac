"""The feed-forward with ReLU: its second pass has bits and norms, and no first product."""

import copy

import pytest
import torch
from torch import nn

from tests.saved import SavedBytes
from tests.wtacrs.tiny import tiny_t5
from wtacrs import SamplingConfig, restore_linears_, sample_linears_
from wtacrs.layers import feed_forward, restore_layers_, save_less_
from wtacrs.layers.chunks import chunk_feed_forward_, restore_feed_forward_
from wtacrs.layers.relu import ReLUFeedForward, ReLUFeedForwardFunction, fits

parts = pytest.mark.parametrize("size", [1 << 23, 1000], ids=["one part", "few parts"])


def sublayer(dropout=0.0, bias=False, **config):
    """A T5 sublayer d -> 24 -> d, sampled and chunked; and its plain copy."""
    layer = tiny_t5(dropout).encoder.block[0].layer[1]
    if bias:
        dense = layer.DenseReluDense
        for name in ("wi", "wo"):
            old = getattr(dense, name)
            setattr(dense, name, nn.Linear(old.in_features, old.out_features))
    plain = copy.deepcopy(layer)
    blocks = nn.ModuleList([layer])
    sampler = sample_linears_(blocks, SamplingConfig(**config))
    save_less_(blocks)
    assert chunk_feed_forward_(blocks) == ["0"]
    assert isinstance(layer.DenseReluDense.forward, ReLUFeedForward)
    return layer, plain, sampler


def gradients(layer, x, dy, autocast=False):
    layer.zero_grad()
    torch.manual_seed(5)
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    y.backward(dy.to(y.dtype))
    return {"y": y.detach(), "x": x.grad} | {n: p.grad for n, p in layer.named_parameters()}


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@parts
def test_budget_one_is_the_plain_sublayer(size, bias, autocast, monkeypatch):
    monkeypatch.setattr(feed_forward, "PART_BYTES", size)
    layer, plain, _ = sublayer(bias=bias, budget=1.0)
    x, dy = torch.randn(4, 10, 16), torch.randn(4, 10, 16)
    expected = gradients(plain, x, dy, autocast)
    for name, found in gradients(layer, x, dy, autocast).items():
        largest = float(expected[name].abs().max())
        error = float((found - expected[name]).abs().max())
        assert error <= (2e-2 if autocast else 1e-5) * largest, name


def test_dropout_is_not_drawn_again():
    layer, plain, _ = sublayer(dropout=0.3, budget=1.0)
    x, dy = torch.randn(4, 10, 16), torch.randn(4, 10, 16)
    expected = gradients(plain, x, dy)
    for name, found in gradients(layer, x, dy).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)


@parts
def test_exact_where_k_rows_have_a_gradient(size, estimator, monkeypatch):
    """In one part and in each of a few: no mask says which rows have one."""
    monkeypatch.setattr(feed_forward, "PART_BYTES", size)
    layer, plain, _ = sublayer(dropout=0.3, estimator=estimator, budget=0.5, center="none")
    if size == 1000:  # other parts draw another dropout
        layer.DenseReluDense.dropout.p = plain.DenseReluDense.dropout.p = plain.dropout.p = 0.0
        layer.dropout.p = 0.0
    x = torch.randn(4, 10, 16)
    dy = torch.randn(4, 10, 16) * (torch.arange(10) % 2)[:, None]
    expected = gradients(plain, x, dy)
    for name, found in gradients(layer, x, dy).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)


def test_rows_of_weight_zero_are_not_picked(estimator):
    """Half of the rows of X are zero, so those of H are: the norms that are kept say so."""
    layer, plain, _ = sublayer(estimator=estimator, budget=0.5, center="none")
    x = torch.randn(4, 10, 16) * (torch.arange(10) % 2)[:, None]
    dy = torch.randn(4, 10, 16)
    expected = gradients(plain, x, dy)
    for name, found in gradients(layer, x, dy).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)


@parts
def test_unbiased(size, unbiased, assert_unbiased, monkeypatch):
    monkeypatch.setattr(feed_forward, "PART_BYTES", size)
    layer, plain, sampler = sublayer(estimator=unbiased, budget=0.3)
    x, dy = torch.randn(4, 10, 16), torch.randn(4, 10, 16)
    names = [f"DenseReluDense.{name}.weight" for name in ("wi", "wo")]
    expected = gradients(plain, x, dy)
    estimates = []
    for _ in range(150):
        found = gradients(layer, x, dy)
        estimates.append(torch.cat([found[name].flatten() for name in names]))
        for name in ("y", "x", "layer_norm.weight"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    exact = torch.cat([expected[name].flatten() for name in names])
    assert_unbiased(torch.stack(estimates), exact, 1e-4)
    for half in torch.stack(estimates).std(0).chunk(2):
        assert half.max() > 1e-3
    assert sampler.late == {*sampler.names}


@pytest.mark.parametrize("place", ["x", "dy"])
def test_non_finite_numbers_reach_the_gradients(place, estimator):
    layer, _, _ = sublayer(estimator=estimator, budget=0.3, center="none")
    for row in range(0, 20, 3):
        x, dy = torch.randn(2, 10, 16), torch.randn(2, 10, 16)
        (x if place == "x" else dy).view(20, 16)[row, 1] = float("nan")
        found = gradients(layer, x, dy)
        for name in ("wi", "wo"):
            assert not found[f"DenseReluDense.{name}.weight"].isfinite().all()


def test_what_the_function_saves():
    """Its input, a bit an element of H and a norm a row; nothing as wide as H."""
    layer, _, _ = sublayer(budget=0.5)
    dense, n = layer.DenseReluDense, 40
    x = torch.randn(4, 10, 16, requires_grad=True)
    picks = [
        one.sampler.pick_of(one.name, torch.empty(1, n, one.in_features))
        for one in (dense.wi, dense.wo)
    ]
    kept = torch.zeros(n * 24 // 8, dtype=torch.uint8), torch.ones(n)
    with SavedBytes(layer) as saved:
        y = ReLUFeedForwardFunction.apply(
            x, dense.wi.weight, None, dense.wo.weight, None, 0.0, kept, tuple(picks)
        )
    assert saved.bytes == x.nbytes + sum(one.nbytes for one in kept)
    assert y.shape == x.shape
    assert y.untyped_storage().nbytes() == 4  # a product without a value


def test_what_fits():
    """wi, ReLU, dropout and wo, both products sampled and trained."""
    layer, plain, _ = sublayer()
    dense = layer.DenseReluDense
    assert fits(dense)
    assert not fits(layer)
    assert not fits(plain.DenseReluDense)
    dense.wo.weight.requires_grad_(False)
    assert not fits(dense)


def test_eval_mode_no_grad_and_the_way_back():
    layer, plain, _ = sublayer(dropout=0.3)
    x, dy = torch.randn(4, 10, 16), torch.randn(4, 10, 16)
    torch.testing.assert_close(layer.eval()(x), plain.eval()(x))
    with torch.no_grad():
        assert torch.equal(layer(x), plain(x))
    blocks = nn.ModuleList([layer])
    for restore in (restore_feed_forward_, restore_linears_, restore_layers_):
        restore(blocks)
    assert [*map(type, layer.modules())] == [*map(type, plain.modules())]
    assert not any("forward" in vars(module) for module in layer.modules())
    expected = gradients(plain.train(), x, dy)
    for name, found in gradients(layer.train(), x, dy).items():
        assert torch.equal(found, expected[name])
