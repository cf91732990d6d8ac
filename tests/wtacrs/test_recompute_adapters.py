"""Adapters in what is computed again: the frozen base's last product is not, DoRA's has to be."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from tests.saved import SavedBytes
from tests.wtacrs.test_recompute_end import flops_of, flops_of_backward
from tests.wtacrs.tiny import assert_same_step, models, sampled, step, tiny_llama
from wtacrs import apply_
from wtacrs.layers.products import in_vain, is_adapter
from wtacrs.recompute import recompute_

ATTENTION = ["q", "k", "v", "query", "key", "value", "q_proj", "k_proj", "v_proj"]
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dropout": {"lora_dropout": 0.2},
    "dora with dropout": {"use_dora": True, "lora_dropout": 0.2},
}


def adapted(model, targets="all-linear", **kind):
    """``model`` with LoRA of rank 2 on all linear layers, or on q, k and v; B is not zero."""
    config = {"r": 2, "init_lora_weights": False}
    torch.manual_seed(1)
    return inject_adapter_in_model(
        LoraConfig(target_modules=targets, **config | kind), model, adapter_name="default"
    ).train()


@pytest.fixture(params=["all-linear", ATTENTION], ids=["all", "qkv"])
def targets(request):
    return request.param


chunked_or_not = pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@chunked_or_not
def test_each_kind_takes_the_plain_step(kind, chunked):
    check_step(tiny_llama, chunked, "all-linear", **kind)


@chunked_or_not
@models
def test_the_step_is_the_plain_one(make, chunked, targets):
    check_step(make, chunked, targets)


def check_step(make, chunked, targets, **kind):
    expected = step(adapted(make(), targets, **kind))
    model = sampled(adapted(make(), targets, **kind), "block", chunked=chunked)
    for _ in range(2):
        assert_same_step(step(model), expected, 1e-4, 1e-5)
    for module in model.modules():
        assert type(module.__dict__.get("forward")).__name__ not in ("FrozenForward", "function")
    with set_checkpoint_early_stop(False):
        assert_same_step(step(model), expected, 1e-4, 1e-5)


def last_products(model, targets):
    """Of two blocks by the closed form: 2 n d_in d_out of the base, and of B where there is one."""
    rows = 40 + 28 if model.config.model_type == "t5" else 40  # in the encoder and the decoder
    return 2 * 2 * rows * 16 * (24 + (2 if targets == "all-linear" else 0))


@chunked_or_not
@models
def test_the_last_product_of_the_base_is_not_computed_again(make, chunked, targets):
    plain = flops_of_backward(sampled(adapted(make(), targets), "none"))
    names = recompute_(adapted(make(), targets), "block")
    again = flops_of(names, adapted(make(), targets))
    found = flops_of_backward(sampled(adapted(make(), targets), "block", chunked=chunked))
    assert found - plain == again - last_products(make(), targets)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_an_adapter_keeps_no_more_of_a_block(kind):
    """Its input and the rotations, as without adapters; all of DoRA is computed again."""
    model = sampled(adapted(tiny_llama(), **kind), "block")
    hidden = torch.randn(4, 10, 16, requires_grad=True)
    rotations = model.model.rotary_emb(hidden, torch.arange(10)[None])
    with SavedBytes(model) as saved:
        out = hidden
        for block in model.model.layers:
            out = block(out, position_embeddings=rotations)
    assert saved.bytes == 2 * hidden.nbytes + sum(one.nbytes for one in rotations)


def names_in_vain(model):
    layer = next(module for module in model.modules() if is_adapter(module))
    names = {part: name for name, part in layer.named_modules()}
    return {names[part] for part in in_vain(layer, {})}


def test_whose_values_are_in_vain():
    """What is merely added up; with DoRA the values of both enter the magnitude's gradient, the
    base's where it is not computed a second time behind the dropout."""
    both = {"base_layer", "lora_B.default"}
    assert names_in_vain(sampled(adapted(tiny_llama()))) == both
    assert names_in_vain(sampled(adapted(tiny_llama(), lora_dropout=0.2))) == both
    assert names_in_vain(sampled(adapted(tiny_llama(), use_dora=True))) == set()
    dora = sampled(adapted(tiny_llama(), use_dora=True, lora_dropout=0.2))
    assert names_in_vain(dora) == {"base_layer"}


class Quantised(nn.Linear):
    """A frozen linear layer that computes in its own way."""


def test_a_quantised_base_is_computed_as_it_computes():
    model = adapted(tiny_llama(), ["q_proj"])
    for module in model.modules():
        if is_adapter(module):
            module.base_layer.__class__ = Quantised
    expected = step(model)
    assert names_in_vain(model) == set()
    sampled(model, "block")
    assert names_in_vain(model) == {"lora_B.default"}
    assert_same_step(step(model), expected, 1e-4, 1e-5)


def test_a_frozen_layer_that_computes_in_its_own_way_does_so_in_both_passes():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).requires_grad_(False)
    block[0].requires_grad_(True)
    block[2].forward = lambda x: 2 * nn.functional.linear(x, block[2].weight, block[2].bias)
    model = nn.ModuleDict({"blocks": nn.ModuleList([block])})
    model.forward = block.__call__
    x = torch.randn(3, 4)
    expected = block(x)
    assert in_vain(block[2], {}) == []
    recompute_(model, "block")
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("preset", ["linear", "leanest"])
def test_dora_is_unbiased(preset, assert_unbiased):
    """For the norm of the weight it sends an identity matrix through A and B, of which rows are
    drawn, too. No gradient passes there."""
    model = adapted(tiny_llama(0.0), "all-linear", use_dora=True)
    expected = step(model)[1]
    apply_(model, preset, budget=0.4)
    names = [name for name in expected if "lora_A" in name]
    exact = torch.cat([expected[name].flatten() / expected[name].norm() for name in names])

    def estimate():
        found = step(model)[1]
        return torch.cat([found[name].flatten() / expected[name].norm() for name in names])

    assert_unbiased(torch.stack([estimate() for _ in range(40)]), exact, 1e-6)
    found = step(model)[1]
    for name in expected.keys() - {name for name in expected if "lora_" in name}:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
