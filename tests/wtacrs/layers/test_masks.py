"""Dropout and ReLU against the plain ones: bit for bit, at one bit an element."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from transformers.models.t5.modeling_t5 import T5DenseActDense

from tests.saved import SavedBytes
from tests.wtacrs.tiny import tiny_t5
from wtacrs.layers import bits, save_less_
from wtacrs.layers.masks import (
    DoneDropout,
    LosslessDropout,
    LosslessReLU,
    LosslessReLUDropout,
    ReLUFunction,
)

SPECIAL = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45, 3e38]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def same(a, b):
    """Bit for bit, NaN and the sign of zero included."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.itemsize]
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(integer), b.contiguous().view(integer)
    )


def run(module, x, dy=None):
    """(output, gradient of x, state of the global generator afterwards) from a fixed seed."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(5)
    y = module(x)
    state = torch.get_rng_state()
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype) if dy is None else dy)
    return y.detach(), x.grad, state


def assert_same_run(module, plain, x):
    (y, dx, state), (plain_y, plain_dx, plain_state) = run(module, x), run(plain, x)
    assert torch.equal(state, plain_state)
    assert same(y, plain_y)
    assert same(dx, plain_dx)


@pytest.mark.parametrize("shape", [(1,), (40,), (3, 7), (2, 3, 100)], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_dropout_is_the_plain_one(p, shape):
    assert_same_run(LosslessDropout(p), nn.Dropout(p), torch.randn(shape))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_of_a_transposed_input(p):
    x = torch.randn(30, 20).T
    assert_same_run(LosslessDropout(p), nn.Dropout(p), x)


def test_dropout_in_bf16():
    """The same elements; 1 / (1 - p) is rounded to bf16 in the plain layer, here the product is."""
    x = torch.randn(20, 30).bfloat16()
    for mine, plain in zip(run(LosslessDropout(0.1), x), run(nn.Dropout(0.1), x), strict=True):
        assert torch.equal(mine == 0, plain == 0)
        torch.testing.assert_close(mine, plain, rtol=2**-7, atol=0)


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference", "frozen"])
@pytest.mark.parametrize("kind", ["dropout", "relu"])
@dtypes
def test_what_saves_nothing_is_the_plain_layer(kind, mode, dtype):
    """An input without a gradient too: what follows trains, and the draws have to be the same."""
    module, plain = {
        "dropout": (LosslessDropout(0.5), nn.Dropout(0.5)),
        "relu": (LosslessReLU(), nn.ReLU()),
    }[kind]
    x = torch.randn(50, dtype=dtype).requires_grad_(mode != "frozen")
    contexts = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
    results = []
    for layer in (module.train(mode != "eval"), plain.train(mode != "eval")):
        torch.manual_seed(5)
        with SavedBytes(layer) as saved, contexts.get(mode, torch.enable_grad)():
            results += [layer(x).detach(), torch.get_rng_state()]
        assert saved.bytes == 0 or mode == "eval"
    assert same(results[0], results[2])
    assert torch.equal(results[1], results[3])


@pytest.mark.parametrize("n", [64, 61, 1])
@pytest.mark.parametrize("make", [lambda: LosslessDropout(0.1), LosslessReLU])
def test_saved_bytes(make, n):
    module = make()
    x = torch.randn(n, requires_grad=True)
    with SavedBytes(module) as saved:
        module(x)
    assert saved.bytes == -(-n // 8)


@pytest.mark.parametrize("n", [0, 1, 16, 17, 45])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_in_parts(n, p, monkeypatch):
    """Masks unpacked 16 elements at a time: each element meets its own bit."""
    monkeypatch.setattr(bits, "CHUNK", 16)
    for shape in ((n,), (n, 3)):
        x = torch.randn(shape)
        assert_same_run(LosslessDropout(p), nn.Dropout(p), x)
        plain = nn.Sequential(nn.ReLU(), nn.Dropout(p))
        (_, dx, _), (_, plain_dx, _) = run(feed_forward(True, p).act, x), run(plain, x)
        assert torch.equal(dx, plain_dx)


@dtypes
def test_relu_is_the_plain_one(dtype):
    """Every special value meets every special gradient."""
    values = torch.tensor(SPECIAL).to(dtype)
    x, dy = torch.cartesian_prod(values, values).T
    y, dx, _ = run(LosslessReLU(), x, dy)
    plain_y, plain_dx, _ = run(nn.ReLU(), x, dy)
    assert same(y, plain_y)
    assert same(dx, plain_dx)
    assert_same_run(LosslessReLU(), nn.ReLU(), torch.randn(7, 9).to(dtype))


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradcheck(p):
    """The draw is part of the function: each call starts from the same generator state."""

    def dropped(x):
        torch.manual_seed(5)
        return LosslessDropout(p)(x)

    def rectified(x):
        torch.manual_seed(5)
        return ReLUFunction.apply(x, p, None)

    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(dropped, (x,))
    assert gradcheck(rectified, (x,))


def feed_forward(turn, p, dtype=torch.float32):
    torch.manual_seed(3)
    module = T5DenseActDense(tiny_t5(p).config).to(dtype)
    if turn:
        save_less_(module)
    return module.train()


@pytest.mark.parametrize("p", [0.0, 0.1, 1.0])
def test_relu_and_dropout_in_t5(p):
    """Both as one: values, all gradients and draws of the plain module."""
    module, plain = feed_forward(True, p), feed_forward(False, p)
    assert (type(module.act), type(module.dropout)) == (LosslessReLUDropout, DoneDropout)
    assert_same_run(module, plain, torch.randn(3, 5, 16))
    for mine, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert same(mine.grad, other.grad)
    assert_same_run(module.eval(), plain.eval(), torch.randn(3, 5, 16))
    with torch.no_grad():
        assert same(module.train()(torch.ones(1, 16)), plain.eval()(torch.ones(1, 16))) == (p == 0)


def test_relu_and_dropout_of_special_values():
    """Each as value and as gradient. Only where neither passes can they differ: inf times 0 for a
    dropped element, 0 for a dead one, and one bit does not tell them apart."""
    module, plain = feed_forward(True, 0.5), nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    x, dy = torch.cartesian_prod(*[torch.tensor(SPECIAL)] * 2).repeat(4, 1).T
    ones = torch.ones_like(dy)
    passes = run(plain, x, ones)[1] != 0
    for gradient, told in ((ones, passes | True), (dy, passes | dy.isfinite())):
        y, dx, state = run(module.act, x, gradient)
        plain_y, plain_dx, plain_state = run(plain, x, gradient)
        assert torch.equal(state, plain_state)
        assert same(y, plain_y)
        torch.testing.assert_close(dx[told], plain_dx[told], rtol=0, atol=0, equal_nan=True)


def test_relu_and_dropout_in_bf16():
    module, plain = (feed_forward(turn, 0.1, torch.bfloat16) for turn in (True, False))
    x = torch.randn(3, 5, 16).bfloat16()
    for mine, other in zip(run(module, x)[:2], run(plain, x)[:2], strict=True):
        torch.testing.assert_close(mine, other, rtol=0.02, atol=0.02 * other.abs().max().item())


def test_saved_bytes_of_relu_and_dropout():
    """n / 8 for both, where the plain pair keeps its output and its mask in float32."""
    for turn, expected in ((True, 15 * 24 // 8), (False, 2 * 4 * 15 * 24)):
        module = feed_forward(turn, 0.1)
        h = torch.randn(15, 24, requires_grad=True)
        with SavedBytes(module) as saved:
            module.dropout(module.act(h))
        assert saved.bytes == expected
