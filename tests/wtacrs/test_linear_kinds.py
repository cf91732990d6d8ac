"""Which layers are taken as linear ones, and what is said of the others."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from wtacrs import SampledLinear, SamplingConfig, restore_linears_, sample_linears_


class SameLinear(nn.Linear):
    """A user's own layer that computes what nn.Linear does."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


class PatchedLinear(nn.Linear):
    """One that does not."""

    def forward(self, x):
        return super().forward(x) * 2


def test_skipped_layers_and_their_reasons():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            attention = nn.MultiheadAttention(4, 1)
            frozen = nn.Linear(4, 4).requires_grad_(False)
            others = [nn.Linear(4, 4), PatchedLinear(4, 4), frozen, attention, SameLinear(4, 4)]
            self.words = nn.Embedding(5, 4)
            self.layers = nn.ModuleList(others)
            self.head = nn.Linear(4, 2)

    model = Mixed()
    sampler = sample_linears_(model, SamplingConfig(exclude=["*.9"]))
    assert sampler.names == ["layers.0", "layers.4"]
    skipped = sampler.skipped
    assert "PatchedLinear" in skipped["layers.1"]
    assert "frozen" in skipped["layers.2"]
    assert "NonDynamicallyQuantizableLinear" in skipped["layers.3.out_proj"]
    assert "blocks" in skipped["head"]
    assert skipped["words.weight"] == "of Embedding, which is no linear layer"
    assert "MultiheadAttention" in skipped["layers.3.in_proj_weight"]
    assert len(skipped) == 6
    assert type(model.layers[1]) is PatchedLinear
    assert type(model.layers[3].out_proj) is not SampledLinear
    x = torch.randn(3, 4)
    assert torch.equal(
        model.layers[4].eval()(x), x @ model.layers[4].weight.T + model.layers[4].bias
    )
    restore_linears_(model)
    assert type(model.layers[4]) is SameLinear


def test_a_layer_that_gives_more_than_one_tensor_is_left():
    """As the router of Llama 4 does, which is an nn.Linear."""

    class Router(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y.sigmoid(), y

    model = nn.ModuleList([nn.Linear(4, 4), Router(4, 5)])
    sampler = sample_linears_(model)
    assert sampler.names == ["0"]
    assert sampler.skipped == {"1": "Router computes in its own way"}


def test_a_head_that_is_the_embedding_is_taken_by_its_name_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.lm_head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.lm_head.weight = self.words.weight
            self.layers = nn.ModuleList([nn.Linear(4, 4)])

    sampler = sample_linears_(Tied(), SamplingConfig(include=["*"]))
    assert sampler.names == ["layers.0"]
    assert sampler.skipped["lm_head"] == "tied to the embedding; include it by its name"
    assert sample_linears_(Tied(), SamplingConfig(include=["lm_head"])).names == ["lm_head"]


def test_a_layer_whose_weight_is_transposed():
    """Conv1D of GPT-2: outputs, gradients and sizes; what it was when it is restored."""
    torch.manual_seed(1)
    layer = Conv1D(5, 4)
    nn.init.normal_(layer.bias)
    holder, x = nn.ModuleList([layer]), torch.randn(6, 4, requires_grad=True)
    before = set(vars(layer))

    def step():
        holder.zero_grad()
        y = layer(x)
        (dx,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
        y.square().sum().backward()
        return y.detach(), dx, layer.weight.grad.clone(), layer.bias.grad.clone()

    expected = step()
    sample_linears_(holder, SamplingConfig(budget=1.0))
    assert (layer.in_features, layer.out_features) == (4, 5)
    for found, plain in zip(step(), expected, strict=True):
        torch.testing.assert_close(found, plain)
    assert torch.equal(layer.eval()(x), expected[0])
    restore_linears_(holder)
    assert type(layer) is Conv1D
    assert set(vars(layer)) == before
