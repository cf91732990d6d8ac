"""Feed-forward sublayers in parts against the plain ones: the same step, fewer bytes."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.wtacrs.tiny import EXACT, assert_same_step, step, tiny_bert, tiny_llama, tiny_t5
from wtacrs import SamplingConfig, sample_linears_
from wtacrs.layers import feed_forward, save_less_
from wtacrs.layers.chunks import chunk_feed_forward_


def gated_t5(dropout=0.1):
    return tiny_t5(dropout, feed_forward_proj="gated-gelu")


KINDS = {"bert": tiny_bert, "t5": tiny_t5, "gated": gated_t5, "llama": tiny_llama}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())


@pytest.fixture(params=[1 << 23, 1000, 1], ids=["one part", "few parts", "20 parts"])
def _parts(request, monkeypatch):
    monkeypatch.setattr(feed_forward, "PART_BYTES", request.param)


@pytest.fixture
def _few_parts(monkeypatch):
    monkeypatch.setattr(feed_forward, "PART_BYTES", 900)


class Plain(nn.Module):
    """d -> 2 d -> d, with a functional dropout between."""

    def __init__(self, p=0.0):
        super().__init__()
        self.up, self.down, self.p = nn.Linear(6, 12), nn.Linear(12, 6), p

    def forward(self, x):
        h = F.dropout(torch.tanh(self.up(x)), self.p, self.training)
        return self.down(h)


def block_of(module):
    """A chunked copy of ``module``, and itself."""
    torch.manual_seed(0)
    blocks = nn.ModuleList([copy.deepcopy(module)])
    assert chunk_feed_forward_(blocks) == ["0"]
    return blocks[0], module


def run(module, x, dy, seed=5):
    """Output and gradients, and what the generator is left at."""
    module.zero_grad()
    torch.manual_seed(seed)
    x = x.detach().requires_grad_()
    y = module(x)
    state = torch.get_rng_state()
    y.backward(dy)
    assert torch.equal(torch.get_rng_state(), state)  # as the backward pass moves none
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.usefixtures("_parts")
@kinds
def test_without_dropout_the_step_is_the_plain_one(make):
    model = make(dropout=0.0)
    expected = step(model)
    sample_linears_(model, SamplingConfig(budget=1.0))
    save_less_(model, EXACT)
    assert len(chunk_feed_forward_(model)) == 2 * (1 + model.config.is_encoder_decoder)
    for _ in range(2):
        assert_same_step(step(model), expected, 1e-4, 1e-5)


@kinds
def test_with_dropout_in_one_part_too(make):
    model = make()
    expected = step(model)
    sample_linears_(model, SamplingConfig(budget=1.0))
    save_less_(model, EXACT)
    chunk_feed_forward_(model)
    assert_same_step(step(model), expected, 1e-4, 1e-5)


@pytest.mark.parametrize("less", [False, True], ids=["drawn again", "bits"])
@pytest.mark.usefixtures("_few_parts")
def test_dropout_in_parts(less):
    """The second pass has the mask of the first: the gradient is the slope of the function."""
    layers = {"up": nn.Linear(6, 12), "drop": nn.Dropout(0.5), "down": nn.Linear(12, 6)}
    blocks = nn.ModuleList([nn.Sequential(OrderedDict(layers))])
    if less:
        save_less_(blocks, EXACT)
    assert chunk_feed_forward_(blocks) == ["0"]
    blocks.double()
    x, direction, dy = (torch.randn(4, 10, 6, dtype=torch.float64) for _ in range(3))
    assert blocks[0].forward.count(x) == 4

    def value(x):
        torch.manual_seed(5)
        return blocks[0](x)

    x.requires_grad_()
    value(x).backward(dy)
    slope = (value(x + direction).detach() - value(x - direction).detach()) / 2
    torch.testing.assert_close((x.grad * direction).sum(), (slope * dy).sum())


@pytest.mark.usefixtures("_few_parts")
def test_functional_dropout_is_replayed():
    """From the generator's state, part by part."""
    mine, _ = block_of(Plain(p=0.5))
    x, dy = torch.randn(4, 10, 6), torch.randn(4, 10, 6)
    count = mine.forward.count(x)
    assert count == 2

    def in_parts(x):
        return torch.cat([type(mine).forward(mine, part) for part in x.chunk(count)])

    found = run(mine, x, dy)
    torch.manual_seed(5)
    x = x.requires_grad_()
    expected = torch.autograd.grad(in_parts(x), [x, *mine.parameters()], dy)
    for one, other in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(one, other)


SHAPES = [(30, 6), (3, 10, 6), (2, 3, 5, 6), (1, 30, 6), (6,), (0, 10, 6)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("_parts")
def test_shapes(shape):
    mine, plain = block_of(Plain())
    x, dy = torch.randn(shape), torch.randn(shape)
    for one, other in zip(run(mine, x, dy), run(plain, x, dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_parts")
def test_an_input_that_does_not_lie_in_order():
    """As of a model whose tokens come first: parts of its gradient must be views of it."""
    mine, plain = block_of(Plain())
    for layout in (
        lambda x: x.transpose(0, 1),
        lambda x: x[..., ::2],
        lambda x: x[:1].expand(4, -1, -1),
    ):
        shape = (10, 3, 12) if layout(torch.empty(10, 3, 12)).shape[-1] == 6 else (10, 3, 6)
        x = layout(torch.randn(shape))
        dy = torch.randn(x.shape)
        for one, other in zip(run(mine, x, dy), run(plain, x, dy), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_few_parts")
def test_a_hook_of_a_parameter_runs_once():
    """On the whole gradient, as in the plain module: here it scales it."""
    mine, plain = block_of(Plain())
    calls = []
    for module in (mine, plain):
        module.up.weight.register_hook(lambda g: calls.append(0) or 2 * g)
    x, dy = torch.randn(4, 10, 6), torch.randn(4, 10, 6)
    for one, other in zip(run(mine, x, dy), run(plain, x, dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2


@pytest.mark.usefixtures("_few_parts")
@pytest.mark.parametrize("frozen", ["input", "up", "all parameters"])
def test_what_needs_no_gradient(frozen):
    mine, plain = block_of(Plain())
    x = torch.randn(4, 10, 6, requires_grad=frozen != "input")
    for module in (mine, plain):
        if frozen != "input":
            (module.up if frozen == "up" else module).requires_grad_(False)
        x.grad = None
        module(x).square().sum().backward()
        module.found = [x.grad, *(p.grad for p in module.parameters())]
    for one, other in zip(mine.found, plain.found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_few_parts")
def test_eval_mode_and_no_grad_are_the_plain_module():
    mine, plain = block_of(Plain(p=0.5))
    x = torch.randn(4, 10, 6)
    with torch.no_grad():
        torch.manual_seed(0)
        expected = plain(x)
        torch.manual_seed(0)
        assert torch.equal(mine(x), expected)
    torch.testing.assert_close(mine.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    ("mib", "parts"), [(0, 1), (0.9, 1), (2.5, 2), (7, 4), (39, 4), (64.5, 8), (9999, 20)]
)
def test_the_number_of_parts(mib, parts):
    """By the bytes of the widest intermediate: one while small, no more than twenty."""
    mine, _ = block_of(Plain())
    rows = round(mib * 2**20 / (12 * 4))
    assert mine.forward.count(torch.empty(1).expand(rows, 6)) == parts
