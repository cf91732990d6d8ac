"""Gated feed-forwards: exact, two tensors kept, found by their parts and proven."""

from functools import partial

import pytest
import torch
from torch import nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

from tests.saved import SavedBytes
from tests.wtacrs import zoo
from tests.wtacrs.tiny import assert_same_step, step, tiny_llama, tiny_t5
from wtacrs import apply_
from wtacrs.layers.gated import GatedForward, gate_, restore_gates_


def in_a_block(module):
    return nn.ModuleDict({"blocks": nn.ModuleList([module])})


def t5_gated():
    config = T5Config(d_model=8, d_ff=24, feed_forward_proj="gated-gelu", dropout_rate=0.1)
    return T5DenseGatedActDense(config)


class Swapped(nn.Module):
    """The second layer is the gate; ``form`` says what is done with the two."""

    def __init__(self, form=lambda u, v: u * torch.sigmoid(v)):
        super().__init__()
        self.up, self.gate = nn.Linear(8, 24), nn.Linear(8, 24)
        self.down, self.act, self.form = nn.Linear(24, 8), nn.Sigmoid(), form

    def forward(self, x):
        return self.down(self.form(self.up(x), self.gate(x)))


class Fused(nn.Module):
    """One layer gives both; ``form`` says what is done with the halves."""

    def __init__(self, form=lambda v, u: torch.sigmoid(v) * u):
        super().__init__()
        self.both, self.down = nn.Linear(8, 48), nn.Linear(24, 8)
        self.act, self.drop, self.form = nn.Sigmoid(), nn.Dropout(0.1), form

    def forward(self, x):
        return self.down(self.drop(self.form(*self.both(x).chunk(2, -1))))


class Draws(nn.Sigmoid):
    """Rarely other than a sigmoid, so that gradients seldom tell."""

    def forward(self, x):
        return torch.nn.functional.dropout(super().forward(x), 1e-4, self.training)


def fused_other_way():
    return Fused(lambda u, v: u * torch.sigmoid(v))


@pytest.mark.parametrize("make", [t5_gated, Swapped, Fused, fused_other_way])
def test_found_and_exact(make):
    torch.manual_seed(0)
    model = in_a_block(module := make())
    x = torch.randn(4, 5, 8, requires_grad=True)

    def gradients():
        torch.manual_seed(1)
        out = module(x)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])]

    expected = gradients()
    assert gate_(model) == ["blocks.0"]
    for mine, plain in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(mine, plain)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(x), module.forward(x))
    restore_gates_(model)
    assert "forward" not in module.__dict__


FORMS = [
    lambda u, v: u + torch.sigmoid(v),
    lambda u, v: u * torch.tanh(v),  # another function than its activation
    lambda u, v: (u * torch.sigmoid(v)).flip(-1),
    lambda u, v: u * torch.sigmoid(v).detach(),
]


def bilinear():
    """Its activation gives back its input, a view of what one layer gives."""
    fused = Fused()
    fused.act, fused.form = nn.Identity(), lambda v, u: fused.act(v) * u
    return fused


def in_place():
    """Its activation overwrites its input."""
    swapped = Swapped()
    swapped.act, swapped.form = nn.SiLU(inplace=True), lambda u, v: u * swapped.act(v)
    return swapped


others = [partial(make, form) for make in (Swapped, Fused) for form in FORMS]


@pytest.mark.parametrize("make", [*others, bilinear, in_place])
def test_what_does_something_else_is_left(make):
    model = in_a_block(make())
    assert gate_(model) == []


@pytest.mark.parametrize("make", [Swapped, Fused])
def test_an_act_that_draws_is_left(make):
    """Computed again, it would draw another mask."""
    module = make()
    module.act, module.form = Draws(), lambda *two: module.act(two[-1]) * two[0]
    assert gate_(in_a_block(module)) == []
    module.act = nn.Sigmoid()
    assert gate_(in_a_block(module)) == ["blocks.0"]


def gate_second(u, v):
    return u * nn.functional.silu(v)


@pytest.mark.parametrize("make", [Swapped, Fused])
def test_two_tensors_are_kept(make):
    model = in_a_block(module := make(gate_second))
    module.act, module.drop = nn.SiLU(), nn.Dropout(0.0)
    for parameter in module.down.parameters():
        parameter.requires_grad_(False)  # so that it keeps nothing of its own
    x = torch.randn(16, 8)

    def saved():
        with SavedBytes(module) as counted:
            module(x)
        return counted.bytes

    plain = saved()
    gate_(model)
    assert plain - saved() == 16 * 24 * 4  # act(v)


@pytest.mark.parametrize("name", ["phi3", "glm", "glm4", "modernbert"])
def test_those_of_one_layer_in_models(name):
    """Exact, by all presets: see the zoo."""
    assert len(apply_(zoo.make(name), "lean").swapped["GatedForward"]) == 2
    assert len(apply_(zoo.make(name), "leanest").swapped["chunked feed-forward"]) == 2


@pytest.mark.parametrize("make", [tiny_llama, lambda: tiny_t5(feed_forward_proj="gated-gelu")])
def test_lean_takes_them_and_leanest_goes_in_parts(make):
    expected = step(make())
    model = make()
    handle = apply_(model, "lean", budget=1.0)
    assert len(handle.swapped["GatedForward"]) in (2, 4)
    assert_same_step(step(model), expected, 1e-4, 1e-5)
    handle.undo()
    assert not any(isinstance(m.__dict__.get("forward"), GatedForward) for m in model.modules())
    assert "GatedForward" not in apply_(model, "leanest").swapped
