"""Norms that keep their output against plain ones: output bit for bit, gradients to rounding."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from tests.saved import SavedBytes
from wtacrs.layers import save_less_

I = 12  # noqa: E741
KINDS = {
    "layer": lambda: nn.LayerNorm(I),
    "layer, no bias": lambda: nn.LayerNorm(I, bias=False),
    "rms": lambda: T5LayerNorm(I),
}
kinds = pytest.mark.parametrize("kind", KINDS)
shapes = pytest.mark.parametrize("shape", [(I,), (6, I), (2, 5, I), (2, 1, 3, I)], ids=str)


def make(kind, dtype=torch.float32):
    """A plain norm and a lossless one of the same parameters, weights of both signs."""
    pair = KINDS[kind]().to(dtype), KINDS[kind]().to(dtype)
    for norm in pair:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-1.5, 2, I))
            if getattr(norm, "bias", None) is not None:
                norm.bias.copy_(torch.linspace(1, -2, I))
    assert save_less_(nn.ModuleList(pair[1:]))
    return pair


def run(norm, x, autocast=False):
    """(output, gradients of x, weight and bias)."""
    norm.zero_grad()
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = norm(x)
    y.backward(torch.sin(torch.arange(y.numel())).view_as(y).to(y.dtype))
    return y, [x.grad, *(p.grad for p in norm.parameters())]


def assert_same_run(norm, plain, x, tolerance, autocast=False):
    """``tolerance`` is relative to the largest entry of each gradient."""
    (y, gradients), (plain_y, plain_gradients) = run(norm, x, autocast), run(plain, x, autocast)
    assert y.dtype == plain_y.dtype
    assert torch.equal(y, plain_y)
    for gradient, expected in zip(gradients, plain_gradients, strict=True):
        assert gradient.dtype == expected.dtype
        atol = tolerance * expected.abs().max().item()
        torch.testing.assert_close(gradient, expected, rtol=0, atol=atol)


@kinds
@shapes
def test_gradcheck(kind, shape):
    _, norm = make(kind, torch.float64)
    if kind == "rms":  # which takes the deviation in float32, so no difference quotient is exact
        plain, norm = make(kind, torch.float64)
        assert_same_run(norm, plain, torch.randn(shape).double(), 1e-6)
        return
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = dict(norm.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(norm, dict(zip(parameters, values, strict=True)), x)

    assert gradcheck(function, (x, *parameters.values()))


@kinds
@shapes
def test_in_float32(kind, shape):
    plain, norm = make(kind)
    assert_same_run(norm, plain, 3 * torch.randn(shape) + 1, 1e-5)


@kinds
@pytest.mark.parametrize(
    ("weight", "x"),
    [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)],
    ids=["bf16", "bf16 on float32 weights"],
)
def test_in_bf16(kind, weight, x):
    """The output is rounded to 8 bits, and it is what the gradients start from."""
    plain, norm = make(kind, weight)
    assert_same_run(norm, plain, torch.randn(2, 5, I).to(x), 0.03)


@pytest.mark.parametrize("norm_class", [LlamaRMSNorm, Olmo2RMSNorm])
@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("x", [torch.float32, torch.bfloat16], ids=str)
def test_norms_that_cast_in_another_order(norm_class, weight, x):
    """Llama's rounds before it scales, Olmo's after; their output is theirs, bit for bit."""
    plain, norm = (norm_class(I).to(weight) for _ in range(2))
    for module in (plain, norm):
        module.weight.data.copy_(torch.linspace(0.5, 2, I))
    save_less_(nn.ModuleList([norm, nn.LayerNorm(I)]))
    assert_same_run(norm, plain, torch.randn(2, 5, I).to(x), 0.03)


@pytest.mark.parametrize("ratio", [1, 10, 100, 900])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bias_that_is_large_beside_the_weight(ratio, dtype):
    """What is left of Xhat below the bias is too little sooner in bf16; then the norm stays plain.
    The error is that of all entries together, relative."""
    plain, norm = (nn.LayerNorm(I).to(dtype) for _ in range(2))
    for module in (plain, norm):
        nn.init.constant_(module.weight, 0.1)
        nn.init.constant_(module.bias, 0.1 * ratio)
    save_less_(nn.ModuleList([norm, T5LayerNorm(I)]))
    x = torch.randn(50, I).to(dtype)
    for gradient, expected in zip(run(norm, x)[1], run(plain, x)[1], strict=True):
        error = (gradient - expected).float().norm() / expected.float().norm()
        assert error < (1e-3 if dtype == torch.float32 else 0.05)


@kinds
def test_under_autocast(kind):
    plain, norm = make(kind)
    assert_same_run(norm, plain, torch.randn(2, 5, I), 1e-5, autocast=True)
    assert_same_run(norm, plain, torch.randn(2, 5, I).bfloat16(), 0.03, autocast=True)


@kinds
def test_views(kind):
    plain, norm = make(kind)
    assert_same_run(norm, plain, torch.randn(I, 5, 2).permute(2, 1, 0), 1e-5)
    assert_same_run(norm, plain, torch.randn(1, 5, I).expand(3, 5, I), 1e-5)


@kinds
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_rows_of_any_size(kind, scale):
    """Down to where eps rules."""
    plain, norm = make(kind)
    assert_same_run(norm, plain, scale * torch.randn(4, I), 1e-5)


@kinds
@pytest.mark.parametrize("frozen", ["weight", "all parameters", "input"])
def test_frozen(kind, frozen):
    plain, norm = make(kind)
    gradients = []
    for module in (plain, norm):
        module.weight.requires_grad_(frozen == "input")
        if getattr(module, "bias", None) is not None:
            module.bias.requires_grad_(frozen != "all parameters")
        x = torch.randn(3, I, generator=torch.Generator().manual_seed(1))
        x.requires_grad_(frozen != "input")
        module(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in module.parameters())])
    for gradient, expected in zip(*reversed(gradients), strict=True):
        assert (gradient is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@kinds
def test_a_weight_that_became_zero(kind):
    """Its own gradient is 0, for nothing is left of what it scaled; all others are right but one:
    dX of that feature, which needs Xhat. There, G = 0 and the two means are what they were."""
    plain, norm = make(kind)
    for module in (plain, norm):
        module.weight.data[3] = 0
    x = torch.randn(4, I)
    (y, gradients), (plain_y, plain_gradients) = run(norm, x), run(plain, x)
    assert torch.equal(y, plain_y)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1][3] == 0
    others = torch.arange(I) != 3
    for gradient, expected in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(gradient[..., others], expected[..., others])


@kinds
def test_without_training_it_is_the_plain_norm(kind):
    plain, norm = make(kind)
    x = torch.randn(4, I)
    with torch.no_grad():
        assert torch.equal(norm(x), plain(x))
    norm.requires_grad_(False)
    with SavedBytes(nn.Identity()) as saved:
        y = norm(x)
    assert torch.equal(y, plain(x))
    assert saved.bytes == 0
