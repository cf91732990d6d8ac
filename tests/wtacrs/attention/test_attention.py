"""Recomputed attention against transformers' eager attention: the same, at one bit an element."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck

from tests.saved import SavedBytes
from tests.wtacrs.tiny import (
    MODELS,
    assert_same_step,
    batch_of,
    fake_batch_of,
    models,
    step,
    tiny_bert,
    tiny_llama,
    tiny_t5,
)
from wtacrs.attention import recomputed as attention
from wtacrs.attention.interface import RecomputedAttention, _attend, set_attention

dropouts = pytest.mark.parametrize("dropout", [0.0, 0.1])


@models
@dropouts
def test_recompute_is_eager(make, dropout):
    """Loss bit for bit, so the same dropout; gradients of all parameters, T5's relative positions
    among them. Padding, a decoder, cross attention, grouped heads: as the models have them."""
    model = make(dropout)
    expected = step(model)
    set_attention(model, "recompute")
    assert_same_step(step(model), expected, 1e-5)
    set_attention(model, "eager")
    assert_same_step(step(model), expected, 0)


@models
def test_under_autocast(make):
    """Llama's dropout rounds its scale to bf16, here the product is rounded."""
    model = make()
    expected = step(model, autocast=True)
    set_attention(model, "recompute")
    assert_same_step(step(model, autocast=True), expected, 0.02, 1e-3 * (make is tiny_llama))


def inputs(b=3, h=2, t=5, s=7, d=4, dtype=torch.float32):
    """q, k, v and biases of each kind of broadcast, all of which want gradients."""
    q = torch.randn(b, h, t, d, dtype=dtype)
    k, v = torch.randn(2, b, h, s, d, dtype=dtype)
    shapes = [(1, h, t, s), (b, 1, t, s), (b, 1, 1, s)]
    biases = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return [x.requires_grad_() for x in (q, k, v, *biases)]


def attend(q, k, v, *biases, p=0.3):
    torch.manual_seed(5)
    return RecomputedAttention.apply(q, k, v, 0.6, p, None, False, *biases)


def plain_attend(q, k, v, *biases, p=0.3):
    torch.manual_seed(5)
    scores = q @ k.transpose(-1, -2) * 0.6
    return nn.functional.dropout((scores + sum(biases)).softmax(-1), p) @ v


@dropouts
def test_gradcheck(dropout):
    """Of q, k, v and each bias; the draw is part of the function."""
    tensors = inputs(b=2, t=3, s=4, d=2, dtype=torch.float64)
    assert gradcheck(lambda *x: attend(*x, p=dropout), tensors)


@pytest.mark.parametrize("t", [4, 5])
@pytest.mark.parametrize("queries", [1, 2, 5, 10, 20, 90, 200])
def test_in_parts(queries, t, monkeypatch):
    """Some samples at a time, heads of one, queries of one. With t = 4 a sample's mask is whole
    bytes, with t = 5 it is not."""
    tensors = inputs(b=20, t=t)
    expected = plain_attend(*tensors)
    gradients = torch.autograd.grad(expected.square().sum(), tensors)
    monkeypatch.setattr(attention, "CHUNK_BYTES", queries * 4 * 7)
    out = attend(*tensors)
    torch.testing.assert_close(out, expected)
    for mine, plain in zip(
        torch.autograd.grad(out.square().sum(), tensors), gradients, strict=True
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)


@models
def test_models_in_parts(make, monkeypatch):
    model = make()
    set_attention(model, "recompute")
    expected = step(model)
    monkeypatch.setattr(attention, "CHUNK_BYTES", 1)
    assert_same_step(step(model), expected, 1e-5, loss_rtol=1e-6)


@pytest.mark.parametrize("frozen", range(4))
def test_frozen_inputs(frozen):
    """Each that wants no gradient gets none; the others get what they got."""
    tensors = inputs()
    expected = torch.autograd.grad(plain_attend(*tensors).square().sum(), tensors)
    tensors[frozen].requires_grad_(False)
    attend(*tensors).square().sum().backward()
    for i, (tensor, gradient) in enumerate(zip(tensors, expected, strict=True)):
        assert (tensor.grad is None) == (i == frozen)
        if i != frozen:
            torch.testing.assert_close(tensor.grad, gradient)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_saved_bytes(p):
    """q, k, v, a bit an element of (b, h, t, s), and biases, which others keep anyway."""
    q, k, v, bias, *_ = inputs()
    with SavedBytes(nn.Identity()) as saved:
        attend(q, k, v, p=p)
    bits = -(-3 * 2 * 5 * 7 // 8) if p else 0
    assert saved.bytes == q.nbytes + k.nbytes + v.nbytes + bits
    with SavedBytes(nn.Identity()) as saved:
        attend(q, k, v, bias, p=p)
    assert saved.bytes == q.nbytes + k.nbytes + v.nbytes + bits + bias.nbytes


def test_saved_bytes_of_a_model():
    """Of P, the mask and Pd, in float32 each, 12 bytes an element, one bit is left in each layer.
    The padding mask (4, 1, 10, 10) is kept, once for all layers."""
    saved = {}
    for name in ("eager", "recompute"):
        model = tiny_bert()
        set_attention(model, name)
        with SavedBytes(model) as counted:
            model(**batch_of(model))
        saved[name] = counted.bytes
    elements = 4 * 2 * 10 * 10
    assert saved["eager"] - saved["recompute"] == 2 * (12 * elements - elements // 8) - 4 * 100 * 4


@models
@pytest.mark.parametrize("mode", ["no_grad", "eval"])
def test_without_training_it_is_eager(make, mode):
    model = make().train(mode != "eval")
    results = []
    for name in ("eager", "recompute"):
        set_attention(model, name)
        torch.manual_seed(5)
        with torch.set_grad_enabled(mode != "no_grad"):
            results.append(model(**batch_of(model)).logits)
    assert torch.equal(*results)


def test_sdpa():
    model = tiny_t5(dropout=0.0)
    expected = step(model)[0]
    set_attention(model, "sdpa")
    torch.testing.assert_close(step(model)[0], expected)


@models
def test_default_changes_nothing(make):
    model = make()
    set_attention(model, "default")
    assert model.config._attn_implementation == "eager"


@models
@dropouts
def test_on_fake_tensors(make, dropout):
    """A plan of it; the same bytes as in earnest."""
    saved = []
    for mode in (nullcontext(), FakeTensorMode()):
        with mode:
            model = make(dropout)
            set_attention(model, "recompute")
            batch = batch_of(model)
            if isinstance(mode, FakeTensorMode):
                batch = fake_batch_of(model, mode)
            with SavedBytes(model) as counted:
                loss = model(**batch).loss
            loss.backward()
        saved.append(counted.bytes)
    assert saved[0] == saved[1]


def test_unknown_name():
    with pytest.raises(ValueError, match="'flash' is unknown; choose default, eager, sdpa, rec"):
        set_attention(tiny_bert(), "flash")


@pytest.mark.parametrize("name", ["sdpa", "recompute"])
def test_not_a_transformers_model(name):
    with pytest.raises(ValueError, match=f"attention={name} needs.*set_attn_impl.*Linear has none"):
        set_attention(nn.Linear(2, 2), name)


def test_a_model_that_attends_in_its_own_way():
    model = nn.Identity()
    model.config = SimpleNamespace(_attn_implementation="eager")
    model.set_attn_implementation = lambda name: None
    with pytest.raises(ValueError, match="stays with 'eager'; it does not use the AttentionInter"):
        set_attention(model, "recompute")


@pytest.mark.parametrize("argument", ["softcap", "s_aux"])
def test_what_is_not_supported_is_refused(argument):
    module = nn.Identity()
    module.config = SimpleNamespace(_attn_implementation="wtacrs_recompute")
    q, k, v, *_ = inputs()
    with pytest.raises(ValueError, match=rf"Identity attends with \['{argument}'\]"):
        _attend(module, q, k, v, None, **{argument: 50.0})
    out, weights = _attend(module, q, k, v, None, **{argument: None})
    assert (out.shape, weights) == ((3, 5, 2, 4), None)
    expected = (q @ k.transpose(-1, -2) * 4**-0.5).softmax(-1) @ v  # the scaling left out: d^-1/2
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_every_model_attends_in_its_own_copy():
    """Choosing for one model leaves another of the same class alone."""
    first, second = (MODELS["bert"]() for _ in range(2))
    set_attention(first, "recompute")
    assert second.config._attn_implementation == "eager"
