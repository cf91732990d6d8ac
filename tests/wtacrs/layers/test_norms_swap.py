"""What a norm keeps, what a linear after it keeps, and which norms are refused."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

from tests.saved import SavedBytes
from wtacrs import SamplingConfig, restore_linears_, sample_linears_
from wtacrs.layers import save_less_
from wtacrs.layers.norms import LosslessLayerNorm

I = 12  # noqa: E741


@pytest.mark.parametrize("make", [nn.LayerNorm, T5LayerNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_saved_bytes(make, dtype, frozen):
    """The output, not a copy of it, and one number a row; of a frozen norm too, for dX."""
    norm = make(I).to(dtype).requires_grad_(not frozen)
    save_less_(nn.ModuleList([norm]))
    with SavedBytes(norm) as saved:
        y = norm(torch.randn(2, 5, I).to(dtype).requires_grad_(frozen))
        y.square()
    rows = torch.float32.itemsize if make is T5LayerNorm else dtype.itemsize
    assert saved.bytes == 2 * 5 * I * dtype.itemsize + 2 * 5 * rows


def test_an_output_changed_in_place_is_an_error():
    """The plain norm does not mind; here the backward pass would start from other numbers."""
    model = nn.Sequential(nn.LayerNorm(I), nn.ReLU(inplace=True))
    save_less_(model, ["norm"])
    y = model(torch.randn(3, I))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def norm_and_linears(**config):
    """A block: a norm that keeps its output, and q, k and v that read it."""
    torch.manual_seed(3)
    parts = {"norm": nn.LayerNorm(I), "q": nn.Linear(I, 5), "k": nn.Linear(I, 5)}
    block = nn.ModuleDict(parts | {"v": nn.Linear(I, 5)})
    sampler = sample_linears_(block, SamplingConfig(include=["*"], **config))
    save_less_(block)
    return block, sampler


def test_a_linear_after_a_norm_keeps_nothing():
    """It reads the storage that the norm keeps, and picks late; a copy of it is picked early."""
    block, sampler = norm_and_linears(budget=0.5)
    x = torch.randn(2, 10, I, requires_grad=True)
    with SavedBytes(block) as saved:
        y = block["norm"](x)
        of_norm = saved.bytes
        outputs = [block[name](y) for name in "qkv"]
    assert saved.bytes == of_norm
    assert len(outputs) == 3
    assert sampler.late == set("qkv")
    assert sampler.rows_seen == 0
    with SavedBytes(block) as saved:
        block["q"](y + 0)  # the same numbers, but nobody keeps them
    assert saved.bytes == 10 * (I * 4 + 8 + 4)
    assert sampler.late == set("kv")


def test_a_norm_without_grad_keeps_no_output():
    block, sampler = norm_and_linears(budget=0.5)
    block["norm"].requires_grad_(False)
    block["q"](block["norm"](torch.randn(2, 10, I)))
    assert sampler.late == set()
    assert sampler.rows_kept == 10


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_linears_after_a_norm_are_exact_where_k_rows_count(autocast, estimator):
    """Half of the rows have a gradient, the budget is half; no mask says which."""
    block, _ = norm_and_linears(estimator=estimator, budget=0.5)
    x, counts = torch.randn(2, 10, I), (torch.arange(10) % 2)[:, None]
    gradients = []
    for one in (copy.deepcopy(block), block):
        if one is not block:
            restore_linears_(one)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = one["norm"](x)
            outputs = [one[name](y) for name in "qkv"]
        sum((out.float().square() * counts).sum() for out in outputs).backward()
        gradients.append({name: p.grad for name, p in one.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


@pytest.mark.parametrize(
    ("weight", "bias", "turned"), [(0.0, 1.0, 0), (1e-4, 0.5, 0), (1e-2, 50.0, 0), (0.1, 50.0, 1)]
)
def test_norms_whose_output_hides_their_input_stay_plain(weight, bias, turned):
    """One feature is enough; refused where |bias| is beyond 1000 |weight|."""
    norms = nn.ModuleList([nn.LayerNorm(I), nn.LayerNorm(I)])
    norms[0].weight.data[5], norms[0].bias.data[5] = weight, bias
    assert ("0" in save_less_(norms)) == turned
    assert type(norms[0]) is (LosslessLayerNorm if turned else nn.LayerNorm)
    assert type(norms[1]) is LosslessLayerNorm


def test_other_norms_stay_plain():
    stay = [nn.LayerNorm((2, I)), nn.LayerNorm(I, elementwise_affine=False), nn.BatchNorm1d(I)]
    model = nn.ModuleList([*stay, T5LayerNorm(I)])
    model[3].weight.data[0] = 0.0
    model.append(nn.LayerNorm(I))
    assert [*save_less_(model)] == ["4"]


def test_autocast_with_a_bias_that_bfloat16_drowns():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64))
    plain[1].weight.data.fill_(0.01)
    plain[1].bias.data.fill_(5.0)
    turned = copy.deepcopy(plain)
    assert [*save_less_(turned)] == ["1"]  # in float32 it is as good as any
    x = torch.randn(32, 64)
    for model in (plain, turned):
        with torch.autocast("cpu", torch.bfloat16):
            model(x).square().sum().backward()
    torch.testing.assert_close(turned[1].weight.grad, plain[1].weight.grad)
