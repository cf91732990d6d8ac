"""What a norm computes is found by trying it; then its gradients are the plain ones."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextRMSNorm,
    Qwen3NextRMSNormGated,
)

from wtacrs.layers import restore_layers_, save_less_
from wtacrs.layers.norm_kinds import NormKind, norm_kind

I = 12  # noqa: E741
KINDS = {
    "Llama": (lambda: LlamaRMSNorm(I, eps=1e-5), NormKind(1e-5, 0, False)),
    "Olmo2": (lambda: Olmo2RMSNorm(I, eps=1e-6), NormKind(1e-6, 0, False)),
    "Gemma": (lambda: GemmaRMSNorm(I, eps=1e-6), NormKind(1e-6, 1, False)),
    "Gemma3": (lambda: Gemma3RMSNorm(I, eps=1e-6), NormKind(1e-6, 1, False)),
    "Qwen3Next": (lambda: Qwen3NextRMSNorm(I, eps=1e-6), NormKind(1e-6, 1, False)),
    "torch": (lambda: nn.RMSNorm(I, eps=1e-5), NormKind(1e-5, 0, False)),
    "torch, eps of the dtype": (lambda: nn.RMSNorm(I), NormKind(None, 0, False)),
    "Cohere": (lambda: CohereLayerNorm(I, eps=1e-5), NormKind(1e-5, 0, True)),
}
kinds = pytest.mark.parametrize(("make", "kind"), KINDS.values(), ids=KINDS.keys())


def norm_of(make):
    torch.manual_seed(1)
    norm = make()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(I) + 0.2)
    return norm


def step(norm, x):
    """Output, gradients of the input and of the weight."""
    x = x.clone().requires_grad_()
    norm.zero_grad()
    y = norm(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype))
    return y.detach(), x.grad, norm.weight.grad.clone()


@kinds
def test_the_kind_is_found(make, kind):
    assert norm_kind(norm_of(make)) == kind


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_plain_ones(make, kind, dtype):
    norm, x = norm_of(make).to(dtype), torch.randn(3, 5, I, dtype=dtype)
    expected = step(norm, x)
    assert save_less_(nn.ModuleList([norm])) == {"0": "LosslessNorm"}
    found = step(norm, x)
    assert torch.equal(found[0], expected[0])
    rtol = 1e-5 if dtype == torch.float32 else 0.03
    for mine, plain in zip(found[1:], expected[1:], strict=True):
        assert (mine - plain).abs().max() <= rtol * plain.abs().max()


@kinds
def test_copies_and_undo(make, kind):
    norm, x = norm_of(make), torch.randn(3, I)
    expected, plain_class = step(norm, x), type(norm)
    holder = nn.ModuleList([norm])
    save_less_(holder)
    for copied in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert torch.equal(step(copied, x)[0], expected[0])
    restore_layers_(holder)
    assert type(norm) is plain_class
    assert "kind" not in vars(norm)
    assert all(map(torch.equal, step(norm, x), expected))


@kinds
def test_on_the_meta_device_and_in_a_plan(make, kind):
    """Where there are no values it is tried with others."""
    with torch.device("meta"):
        norm = make()
    assert norm_kind(norm) == kind
    with FakeTensorMode():
        assert norm_kind(make()) == kind


class SquareNorm(nn.Module):
    """A norm in name only."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(I)), 1e-6

    def forward(self, x):
        return self.weight * x.square()


class Failing(SquareNorm):
    def forward(self, x):
        raise KeyError("no")


class PerHeadNorm(SquareNorm):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, I))


REASONS = {
    "SquareNorm: computes something else": SquareNorm,
    "PerHeadNorm: not one weight over the last dimension": PerHeadNorm,
    "Qwen3NextRMSNormGated: takes more than one input": lambda: Qwen3NextRMSNormGated(I),
    "OlmoLayerNorm: has no weight": lambda: OlmoLayerNorm(I),
    "LayerNorm: has no weight": lambda: nn.LayerNorm(I, elementwise_affine=False),
    "LayerNorm: not one weight over the last dimension": lambda: nn.LayerNorm([2, I]),
    "GroupNorm: not one weight over the last dimension": lambda: nn.GroupNorm(2, I),
}


@pytest.mark.parametrize(("reason", "make"), REASONS.items(), ids=REASONS.keys())
def test_what_is_another_norm_stays_and_is_told(reason, make):
    other, left = make(), {}
    holder = nn.ModuleList([norm_of(KINDS["Llama"][0]), other])
    before = type(other)
    assert [*save_less_(holder, left=left)] == ["0"]
    assert left == {reason: ["1"]}
    assert type(other) is before


def test_one_that_fails_when_it_is_tried():
    Failing.__name__ = "FailingNorm"
    assert norm_kind(Failing()) == "FailingNorm: KeyError when it was tried"


def test_one_whose_weight_is_zero():
    """1 + w for Gemma: a weight of 0 is well, one of -1 is not."""
    for make, value, taken in (
        (KINDS["Llama"][0], 0.0, False),
        (KINDS["Gemma"][0], 0.0, True),
        (KINDS["Gemma"][0], -1.0, False),
    ):
        norm, left = norm_of(make), {}
        with torch.no_grad():
            norm.weight[3] = value
        holder = nn.ModuleList([norm, nn.LayerNorm(I)])
        assert ("0" in save_less_(holder, left=left)) == taken
        assert any("a weight is zero" in reason for reason in left) != taken
