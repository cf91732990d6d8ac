"""The cross-entropy that keeps the logits alone, against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from tests.saved import SavedBytes
from wtacrs.layers import loss
from wtacrs.layers.loss import CrossEntropyFunction

N, WIDTH, WORDS = 300, 8, 517


def inputs(dtype=torch.float32, n=N, words=WORDS, bias=True):
    """x, weight, bias or None, all of which want gradients, and labels, some of them ignored."""
    torch.manual_seed(1)
    x, weight = torch.randn(n, WIDTH, dtype=dtype), torch.randn(words, WIDTH, dtype=dtype)
    b = torch.randn(words, dtype=dtype).requires_grad_() if bias else None
    labels = torch.randint(words, (n,))
    labels[::7] = -100
    return x.requires_grad_(), weight.requires_grad_(), b, labels


def plain(logits, labels):
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def of_head(x, weight, bias, labels):
    logits = F.linear(x, weight, bias)
    return CrossEntropyFunction.apply(logits.detach(), labels, -100, x, weight, bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_of_a_head(dtype, rtol, bias):
    """Loss and gradients are torch's, of a vocabulary that is no multiple of a slice; the loss is
    scaled afterwards."""
    x, weight, b, labels = inputs(dtype, bias=bias)
    wanted = [one for one in (x, weight, b) if one is not None]
    expected = plain(F.linear(x, weight, b), labels)
    mine = of_head(x, weight, b, labels)
    torch.testing.assert_close(mine, expected, rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(mine / 7, wanted)
    for one, other in zip(gradients, torch.autograd.grad(expected / 7, wanted), strict=True):
        assert one.dtype == dtype
        assert (one - other).abs().max() <= rtol * other.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_logits(dtype):
    """Without the head the logits have the gradient: rounded once, as autograd does."""
    x, weight, b, labels = inputs(dtype)
    logits = F.linear(x, weight, b).detach().requires_grad_()
    (expected,) = torch.autograd.grad(plain(logits, labels), logits)
    mine = CrossEntropyFunction.apply(logits, labels, -100, None, None, None)
    (gradient,) = torch.autograd.grad(mine, logits)
    assert gradient.dtype == dtype
    rtol = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(gradient, expected, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("slices", [1, 3])
def test_gradcheck(slices, monkeypatch):
    monkeypatch.setattr(loss, "PARTS", slices)
    monkeypatch.setattr(loss, "LEAST", 1)
    x, weight, b, labels = inputs(torch.float64, n=9, words=7)
    assert gradcheck(lambda *three: of_head(*three, labels), (x, weight, b))
    logits = F.linear(x, weight, b).detach().requires_grad_()
    assert gradcheck(
        lambda one: CrossEntropyFunction.apply(one, labels, -100, None, None, None), logits
    )


@pytest.mark.parametrize("frozen", range(3))
def test_what_is_frozen_has_no_gradient(frozen):
    """A head under adapters is; and the others get what they got."""
    three = [*inputs()[:3]]
    labels = inputs()[3]
    expected = torch.autograd.grad(plain(F.linear(*three), labels), three)
    three[frozen].requires_grad_(False)
    of_head(*three, labels).backward()
    for i, (one, gradient) in enumerate(zip(three, expected, strict=True)):
        assert (one.grad is None) == (i == frozen)
        if i != frozen:
            torch.testing.assert_close(one.grad, gradient, rtol=1e-4, atol=1e-4)


def test_saved_bytes():
    """The logits, and of each row its label, whether it counts, and one number."""
    x, weight, b, labels = inputs()
    with SavedBytes(torch.nn.Identity()) as saved:
        logits = F.linear(x, weight, b).detach()
        CrossEntropyFunction.apply(logits, labels, -100, x, weight, b)
    assert saved.bytes == logits.nbytes + N * (8 + 1 + 4) + x.nbytes + weight.nbytes + b.nbytes


def test_no_label_counts():
    """The sum is 0, as torch's; the gradients are zeros."""
    x, weight, b, labels = inputs()
    total = of_head(x, weight, b, torch.full_like(labels, -100))
    total.backward()
    assert total == 0
    assert not any(one.grad.any() for one in (x, weight, b))


def test_what_is_not_finite_is_not_hidden():
    x, weight, b, labels = inputs()
    with torch.no_grad():
        x[1, 0] = float("nan")
    total = of_head(x, weight, b, labels)
    total.backward()
    assert total.isnan()
    assert weight.grad.isnan().any()
