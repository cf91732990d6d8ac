"""The gate of experts: computed again where it can be, left to autograd where it learns or draws.

The oracle is transformers' own forward of the experts, or the gate's own graph.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import silu

from tests.wtacrs import zoo
from tests.wtacrs.experts import experts_of, sampled, step
from wtacrs.experts import GATE_STAYS
from wtacrs.layers import feed_forward
from wtacrs.layers.expert_gate import GateFunction
from wtacrs.passes import part_of


def learns(experts):
    experts.act_fn = nn.PReLU()


def normalises(experts):
    experts.has_post_expert_norm, experts.post_expert_norm = True, nn.RMSNorm(16)


def has_its_own(experts):
    """A gate with a parameter of the experts' module."""
    experts.alpha = nn.Parameter(torch.tensor(1.3))

    def gate(self, y):
        a, b = y.chunk(2, -1)
        return torch.sigmoid(a * self.alpha) * b

    plain = type(experts)
    own = {"_apply_gate": gate, "forward": plain.forward}
    experts.__class__ = type(plain.__name__, (plain,), own)


class SomeColumns(nn.Dropout):
    """Drops the same of each row, so that it does not matter in which order they come."""

    def forward(self, x):
        return x * super().forward(x.new_ones(x.shape[-1]))


def draws_by_a_function(experts):
    """As some columns do, in the gate itself and only while training."""

    def gate(self, y):
        a, b = y.chunk(2, -1)
        ones = torch.nn.functional.dropout(y.new_ones(b.shape[-1]), 0.3, self.training)
        return silu(a) * b * ones

    plain = type(experts)
    own = {"_apply_gate": gate, "forward": plain.forward}
    experts.__class__ = type(plain.__name__, (plain,), own)


def draws(experts):
    experts.act_fn = nn.Sequential(nn.SiLU(), SomeColumns(0.3))


STAY = learns, has_its_own, draws, draws_by_a_function


@pytest.mark.parametrize("change", [*STAY, normalises])
@pytest.mark.parametrize("preset", ["linear", "leanest"])
def test_what_cannot_be_computed_again_is_exact(change, preset):
    model, given = zoo.make("mixtral"), zoo.batch("mixtral")
    for experts in experts_of(model):
        change(experts)
    plain = copy.deepcopy(model)
    names = sampled(model, preset, include=["*.experts.*"]).sampler.experts
    found, expected = [], []
    for one, gradients in ((model, found), (plain, expected)):
        torch.manual_seed(0)
        gradients.append(step(one, given)[1])
    assert found[0].keys() == expected[0].keys()
    for name, gradient in expected[0].items():
        off = (found[0][name] - gradient).norm() / gradient.norm()
        assert (off > 0.01) if name in names else (off < 1e-5), name
    # Of the second product a gradient needs the value.
    assert all(part_of(block, False, 0.0, {}).in_vain == [] for block in model.model.layers)


@pytest.mark.parametrize("change", [None, *STAY])
def test_the_report_tells_of_a_gate_that_stays(change):
    """Of a model in evaluation, too, whose state and generator stay."""
    model = zoo.make("mixtral")
    names = [name for name, module in model.named_modules() if module in experts_of(model)]
    for experts in experts_of(model) if change is not None else ():
        change(experts)
    model.eval()
    generator = torch.get_rng_state()
    left = sampled(model, include=["*.experts.*"]).report().left
    assert left.get(f"MixtralExperts: {GATE_STAYS}", []) == (names if change else [])
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module.training for module in model.modules())


def gate(y):
    a, b = y.chunk(2, -1)
    return silu(a) * b


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weighs", [True, False])
def test_a_gate_by_itself(dtype, weighs, monkeypatch):
    """Some rows at a time, and bit for bit, with the router's weights in float32."""
    monkeypatch.setattr(feed_forward, "PART_BYTES", 64)
    y = torch.randn(7, 8).to(dtype).requires_grad_()
    share = torch.rand(7, requires_grad=True)
    dh = torch.randn(7, 4).to(dtype)
    plain = (gate(y) * share[:, None] if weighs else gate(y)).to(dtype)
    ours = GateFunction.apply(y, share if weighs else None, gate)
    assert torch.equal(ours, plain)
    inputs = [y, share] if weighs else [y]
    found, expected = (torch.autograd.grad(h, inputs, dh) for h in (ours, plain))
    assert torch.equal(found[0], expected[0])
    if weighs:
        atol = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(found[1], expected[1], rtol=0, atol=atol)


def test_the_router_s_weights_may_be_negative():
    """The sizes of their rows decide: with all signs turned the same rows are picked."""
    model = zoo.make("mixtral")
    handle = sampled(model, include=["*.experts.*"])
    state, experts = copy.deepcopy(handle.state_dict()), experts_of(model)[0]
    x = torch.randn(60, 16)
    index, weights = torch.rand(60, 4).topk(2).indices, torch.randn(60, 2)
    gradients = []
    for sign in (1, -1):
        handle.load_state_dict(copy.deepcopy(state))
        output = experts(x, index, sign * weights)
        gradients.append(torch.autograd.grad(output.sum(), [*experts.parameters()]))
    for one, other in zip(*gradients, strict=True):
        assert one.norm() > 0
        torch.testing.assert_close(other, -one)
