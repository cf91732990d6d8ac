"""One sampled layer against the plain one: exact where it must be, and its bytes to the byte."""

import copy
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from tests.saved import SavedBytes
from wtacrs.measure.step import StorageTracker
from wtacrs.sampling.draws import Kept
from wtacrs.sampling.early import SampledLinearFunction, SampledRows

SHAPES = [(4,), (6, 4), (2, 3, 4), (2, 1, 3, 4)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
biases = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
PRECISIONS = [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
precisions = pytest.mark.parametrize(
    ("dtype", "autocast"), PRECISIONS, ids=["float32", "bfloat16", "autocast"]
)


def pair(make_layer, bias=True, dtype=torch.float32, **config):
    """A plain layer and a sampled one that starts from the same values."""
    plain = nn.Linear(4, 3, bias=bias, dtype=dtype)
    layer, sampler = make_layer(copy.deepcopy(plain), **config)
    return plain, layer, sampler


def bf16_autocast(enabled=True):
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


@shapes
@biases
def test_gradcheck_with_every_row_kept(shape, bias):
    """The Function on its own: rows in another order, scales 1."""
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = [torch.randn(3, 4).double().requires_grad_()]
    parameters += [torch.randn(3).double().requires_grad_()] if bias else []
    order = torch.randperm(x[..., 0].numel())

    def function(x, weight, bias=None):
        rows = x.detach().reshape(-1, 4)[order]
        ones = torch.ones(len(order), dtype=torch.float64)
        kept = Kept(order, ones, None, None)
        sampled = SampledRows(rows, kept, lambda norms: None)
        return SampledLinearFunction.apply(x, weight, bias, sampled)

    assert gradcheck(function, (x, *parameters))


@shapes
@biases
def test_budget_one_is_the_plain_layer(estimator, shape, bias, make_layer):
    plain, layer, _ = pair(make_layer, bias, estimator=estimator, budget=1.0)
    for module in (plain, layer):
        module(torch.ones(shape).cumsum(-1)).square().sum().backward()
    for p, q in zip(plain.parameters(), layer.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@shapes
@precisions
@biases
def test_only_the_weight_gradient_is_estimated(shape, dtype, autocast, bias, make_layer):
    """Training: output, dX and bias gradient bit for bit, and nothing of that is sampled."""
    plain, layer, sampler = pair(make_layer, bias, dtype)
    results = []
    for module in (plain, layer):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
        with bf16_autocast(autocast):
            y = module(x.requires_grad_())
        y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype))
        results.append([y, x.grad, *([module.bias.grad] if bias else [])])
        assert module.weight.grad.dtype == dtype
    for expected, result in zip(*results, strict=True):
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)
    assert (sampler.rows_kept < sampler.rows_seen) == (len(shape) > 1)


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference", "frozen"])
@precisions
def test_without_training_it_is_the_plain_layer(mode, dtype, autocast, make_layer):
    """Bit for bit, and no number is drawn."""
    plain, layer, sampler = pair(make_layer, dtype=dtype)
    layer.train(mode != "eval")
    layer.weight.requires_grad_(mode != "frozen")
    x = torch.randn(3, 5, 4, dtype=dtype)
    contexts = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
    with contexts.get(mode, torch.enable_grad)(), bf16_autocast(autocast):
        assert torch.equal(layer(x), plain(x))
    assert sampler.rows_seen == sampler.rows_kept == 0
    assert not sampler.state_dict()["generators"]["states"]


def test_no_rows_at_all(make_layer):
    plain, layer, _ = pair(make_layer)
    for module in (plain, layer):
        module(torch.zeros(0, 5, 4)).sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad)


@precisions
def test_exact_where_k_rows_are_all_that_count(estimator, dtype, autocast, make_layer):
    """The weight gradient of the sampled path, in every precision: half of the rows are masked."""
    plain, layer, sampler = pair(make_layer, dtype=dtype, estimator=estimator, budget=0.5)
    x = torch.randn(2, 10, 4, dtype=dtype)
    mask = (torch.arange(10) % 2).expand(2, 10)
    sampler.start_batch(mask=mask)
    for module in (plain, layer):
        with bf16_autocast(autocast):
            y = module(x)
        y.backward(torch.ones_like(y) * mask[..., None])
    assert sampler.rows_kept == 10
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


def test_a_weight_tied_to_a_plain_layer_under_autocast(make_layer):
    """Autocast's cache must not hand the plain layer a cast of the weight that has no gradient."""
    gradients = []
    for sampled in (False, True):
        linear = nn.Linear(4, 3)
        nn.init.ones_(linear.weight)
        layer = make_layer(linear, budget=0.5, floor=0.0)[0] if sampled else linear
        other = nn.Linear(4, 3)
        other.weight = layer.weight
        x = torch.eye(4).repeat(2, 1)[:, :4] * (torch.arange(8) < 4)[:, None]  # 4 rows count
        with bf16_autocast():
            y = layer(x) + other(x)
        y.sum().backward()
        gradients.append(layer.weight.grad)
    assert torch.equal(*gradients)


N, I, O, K = 20, 6, 5, 8  # noqa: E741
INDICES_AND_SCALES = K * (8 + 4)  # int64 and float32


@pytest.mark.parametrize(("autocast", "itemsize"), [(False, 4), (True, 2)])
def test_saved_bytes(estimator, autocast, itemsize, make_layer):
    """k rows in the compute dtype, their indices and scales, and nothing else."""
    layer, _ = make_layer(nn.Linear(I, O), estimator=estimator, budget=K / N)
    x = torch.randn(2, N // 2, I, requires_grad=True)
    with SavedBytes(layer) as saved, bf16_autocast(autocast):
        layer(x)
    dtype = torch.bfloat16 if autocast else torch.float32
    assert saved.bytes == K * I * itemsize + INDICES_AND_SCALES
    assert saved.tensors == [((K, I), dtype), ((K,), torch.int64), ((K,), torch.float32)]


def test_layers_on_one_input_save_one_set_of_rows(make_encoder, make_layer):
    """q, k, v: the bytes of one layer, the draw of one layer."""
    layers = nn.ModuleDict({name: nn.Linear(I, O) for name in "qkv"})
    sampler = make_layer(layers, budget=K / N)[1]
    x = torch.randn(N, I)
    with SavedBytes(layers) as saved:
        outputs = [layers[name](x) for name in "qkv"]
    assert saved.bytes == K * I * 4 + INDICES_AND_SCALES
    with SavedBytes(layers) as saved:
        layers["q"](x.clone())  # another tensor is another input
    assert saved.bytes == K * I * 4 + INDICES_AND_SCALES
    assert len(outputs) == 3
    assert sampler.rows_kept == 4 * K


def test_an_input_changed_in_place_is_another_input(make_layer):
    layers = nn.ModuleDict({name: nn.Linear(I, O) for name in "qk"})
    make_layer(layers, budget=K / N)
    x = torch.ones(N, I)
    with SavedBytes(layers) as saved:
        layers["q"](x)
        x.mul_(2)
        y = layers["k"](x)
    assert saved.bytes == 2 * (K * I * 4 + INDICES_AND_SCALES)
    y.sum().backward()
    assert layers["k"].weight.grad.isfinite().all()


def test_a_frozen_weight_saves_nothing(make_layer):
    layer, _ = make_layer(nn.Linear(I, O))
    layer.weight.requires_grad_(False)
    with SavedBytes(layer) as saved:
        layer(torch.randn(N, I, requires_grad=True))
    assert saved.bytes == 0


@pytest.mark.parametrize("requires_grad", [True, False])
def test_the_weight_is_saved_only_for_dx(requires_grad, make_layer):
    """Counted with parameters: the weight is there for dX, referenced, or not at all."""
    layer, _ = make_layer(nn.Linear(I, O), budget=K / N)
    with SavedBytes(nn.Identity()) as saved:
        layer(torch.randn(N, I, requires_grad=requires_grad))
    assert (((O, I), torch.float32) in saved.tensors) == requires_grad
    assert saved.bytes == K * I * 4 + INDICES_AND_SCALES + requires_grad * O * I * 4


def test_nothing_outlives_the_forward_pass_unseen(estimator, make_layer):
    """What is alive then is the output and what SavedBytes counts; the input is gone."""
    layer, sampler = make_layer(nn.Linear(I, O), estimator=estimator, budget=K / N, center="none")
    parameters = sum(p.nbytes for p in layer.parameters())
    known = 2 * 4  # two numbers say that the rows are alike; they end with the forward pass
    with StorageTracker(layer.parameters()) as tracker:
        x = torch.ones(2, N // 2, I)
        gone = weakref.ref(x)
        y = layer(x)
        del x
    assert gone() is None
    assert tracker.current_bytes == parameters + N * O * 4 + K * I * 4 + INDICES_AND_SCALES + known
    del y
    assert tracker.current_bytes == parameters + known
    assert sampler.rows_kept == K


@pytest.mark.parametrize("late", [False, True])
def test_the_output_may_be_changed_in_place(make_layer, late):
    """As DeBERTa does: with a bias, the output of ``F.linear`` is a view of its rows."""
    layer, sampler = make_layer(budget=0.5)
    x = torch.randn(2, 10, 4, requires_grad=True)
    with sampler.recomputed() if late else nullcontext():
        layer(x).transpose(1, 2).mul_(3).sum().backward()
    expected = 3 * layer.weight.detach().sum(0).expand(2, 10, 4)
    torch.testing.assert_close(x.grad, expected)
