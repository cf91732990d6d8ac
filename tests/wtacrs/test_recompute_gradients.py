"""Gradients on other ways than from the output to the input: of what hooks take from inside a
recomputed part, of gradients, and through transformers' checkpointing around it."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from transformers import MixtralConfig, MixtralForCausalLM

from tests.wtacrs.tiny import (
    assert_same_step,
    batch_of,
    build,
    models,
    step,
    tiny_bert,
    tiny_llama,
    tiny_t5,
)
from wtacrs.recompute import recompute_

parts = pytest.mark.parametrize("what", ["attention", "block"])


def tiny_mixtral():
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 50}
    experts = {"num_local_experts": 4, "router_aux_loss_coef": 1.0, "output_router_logits": True}
    config = MixtralConfig(**sizes, **experts, attn_implementation="eager")
    return build(MixtralForCausalLM, config)


@parts
def test_a_loss_on_the_router(what):
    """Most of the routers' gradient, and it comes from logits that a hook collects."""
    model = tiny_mixtral()
    batch = batch_of(tiny_llama())
    expected = step(model, batch)
    without = step(model, batch | {"output_router_logits": False})
    recompute_(model, what)
    assert_same_step(step(model, batch), expected, 1e-5)
    name = next(name for name in without[1] if "gate.weight" in name)
    assert not torch.allclose(without[1][name], expected[1][name], rtol=0.5)


@parts
@models
def test_a_loss_on_the_attention_maps(make, what):
    """Which must not have come out of the first pass as numbers."""

    def attention_step(model):
        torch.manual_seed(5)
        out = model(**batch_of(model), output_attentions=True)
        maps = out.decoder_attentions if "decoder_attentions" in out else out.attentions
        assert len(maps) == 2
        model.zero_grad()
        loss = sum((one * torch.linspace(-1, 1, one.shape[-1])).sum() for one in maps)
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return loss.detach(), gradients, torch.get_rng_state()

    model = make()
    expected = attention_step(model)
    recompute_(model, what)
    assert_same_step(attention_step(model), expected, 1e-5)


def test_a_loss_on_what_a_hook_takes(make_encoder):
    """Also where nothing of the model's own output needs a gradient."""
    model, x = make_encoder(blocks=2), torch.randn(2, 10, 4)

    def gradient_of_taken():
        taken = []
        handle = model.layers[0].q.register_forward_hook(lambda *args: taken.append(args[-1]))
        model(x)
        handle.remove()
        return torch.autograd.grad(taken[0].square().sum(), model.layers[0].q.weight)[0]

    expected = gradient_of_taken()
    recompute_(model, "block")
    assert torch.equal(gradient_of_taken(), expected)


def test_hessian(make_encoder):
    model, x = make_encoder(blocks=2), torch.randn(1, 3, 4)

    def hessian_by_x():
        return hessian(lambda x: model(x).tanh().square().sum(), x)

    expected = hessian_by_x()
    assert expected.abs().max() > 1e-3
    recompute_(model, "block")
    torch.testing.assert_close(hessian_by_x(), expected, rtol=1e-5, atol=1e-6)


def test_gradient_penalty(make_encoder):
    model, x = make_encoder(blocks=2), torch.randn(1, 3, 4, requires_grad=True)

    def gradients_of_the_gradient():
        (first,) = torch.autograd.grad(model(x).tanh().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [m.q.weight for m in model.layers])

    expected = gradients_of_the_gradient()
    assert all(one.abs().max() > 1e-3 for one in expected)
    recompute_(model, "block")
    for mine, plain in zip(gradients_of_the_gradient(), expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["nested", "reentrant"])
@pytest.mark.parametrize("first", ["recompute", "checkpointing"])
@pytest.mark.parametrize("make", [tiny_bert, tiny_t5, tiny_llama], ids=["bert", "t5", "llama"])
def test_attention_within_checkpointed_blocks(make, first, use_reentrant):
    """transformers checkpoints the blocks; dropout is replayed through both."""
    model = make()
    expected = step(model)
    if first == "recompute":
        recompute_(model, "attention")
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if first == "checkpointing":
        recompute_(model, "attention")
    model.enable_input_require_grads()  # which reentrant checkpoints need
    assert_same_step(step(model), expected, 1e-5)


class Toss(nn.Module):
    """Dropout on the device of one of its inputs."""

    def forward(self, x, *, other):
        return x, nn.functional.dropout(other[0] * 1.0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_dropout_is_replayed_on_every_device():
    """Not only on that of the first tensor: what is dropped has a gradient of zero."""
    model = nn.Sequential(nn.ModuleList([Toss()])).train()
    recompute_(model, "block")
    y = torch.ones(1000, device="cuda", requires_grad=True)
    _, out = model[0][0](torch.ones(2, requires_grad=True), other=(y,))
    torch.rand(7, device="cuda")
    out.sum().backward()
    assert torch.equal(y.grad, out.detach())
