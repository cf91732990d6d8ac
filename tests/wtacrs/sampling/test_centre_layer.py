"""Layers that sample centred rows: unbiased, at the bytes that they claim, resumed, configured."""

import copy

import pytest
import torch
from torch import nn

from tests.saved import SavedBytes
from wtacrs import ESTIMATORS, SamplingConfig, sample_linears_
from wtacrs.sampling.centre import CENTRES

kinds = pytest.mark.parametrize("kind", ["classes", "lowrank"])


def gradients_of(layer, sampler, x, dy, mask, steps):
    estimates = []
    for _ in range(steps):
        sampler.start_batch(mask=mask)
        layer.weight.grad = None
        layer(x).backward(dy)
        estimates.append(layer.weight.grad.float().flatten())
    return torch.stack(estimates)


@pytest.mark.parametrize("shape", [(4, 10, 24), (30, 8), (2, 3, 8, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("estimator", "kind", "draws"),
    [
        ("pps", "lowrank", 2000),
        ("pps", "classes", 300),
        ("wtacrs", "lowrank", 300),
        ("crs", "classes", 300),
    ],
)
def test_unbiased(estimator, kind, draws, shape, dtype, make_layer, assert_unbiased):
    """|z| < 4.5 in each of 24 cases: a false alarm in one of 6,000 runs of the file."""
    plain = nn.Linear(shape[-1], 5, dtype=dtype)
    layer, sampler = make_layer(copy.deepcopy(plain), estimator=estimator, budget=0.4, center=kind)
    generator = torch.Generator().manual_seed(5)
    x = (torch.randn(shape, generator=generator) + torch.randn(shape[-1])).to(dtype)
    dy = torch.randn(*shape[:-1], 5, generator=generator).to(dtype)
    mask = None
    if len(shape) == 3:
        mask = (torch.arange(10) < torch.tensor([10, 6, 3, 8])[:, None]).long()
        dy = dy * mask[..., None].to(dtype)
    plain(x).backward(dy)
    exact = plain.weight.grad.float().flatten()
    estimates = gradients_of(layer, sampler, x, dy, mask, draws)
    rounding = 1e-5 if dtype == torch.float32 else 4e-3 * exact.abs().max()
    assert_unbiased(estimates, exact, rounding)
    assert estimates.std(0).max() > 1e-3


@kinds
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_rows_on_a_mean_are_exact(kind, autocast, make_layer):
    """Classes hold them, and nothing is left to draw."""
    layer, sampler = make_layer(nn.Linear(32, 3), estimator="pps", budget=0.5, center=kind)
    means = torch.randn(3, 32)
    x = means[2].expand(2, 10, 32).clone()
    x[:, 0], x[:, -1] = means[0], means[1]
    dy = torch.randn(2, 10, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        layer(x).backward(dy.to(torch.bfloat16) if autocast else dy)
    exact = torch.einsum("bto,bti->oi", dy, x)
    tolerance = 0.02 * exact.abs().max() if autocast else 1e-4
    assert (layer.weight.grad - exact).abs().max() < tolerance
    assert sampler.rows_kept == 10


def test_centring_lowers_the_error(make_layer):
    """Rows around a common mean, the case that it is for."""
    x = torch.randn(4, 20, 32) + 3 * torch.randn(32)
    dy = torch.randn(4, 20, 3)
    error = {}
    for kind in CENTRES:
        layer, sampler = make_layer(nn.Linear(32, 3), estimator="pps", budget=0.3, center=kind)
        exact = torch.einsum("bto,bti->oi", dy, x).flatten()
        error[kind] = (gradients_of(layer, sampler, x, dy, None, 60) - exact).square().mean()
    assert error["classes"] < 0.2 * error["none"]
    assert error["lowrank"] < 0.2 * error["none"]


@pytest.mark.parametrize("kind", CENTRES)
def test_bytes_are_those_of_the_budget(kind, make_layer):
    """To less than a row, but for indices, scales and the classes, which all layers share."""
    n, i, k = 4 * 32, 64, 38
    layer, sampler = make_layer(nn.Linear(i, 8), estimator="pps", budget=0.3, center=kind)
    sampler.start_batch(mask=torch.ones(4, 32))
    with SavedBytes(layer) as saved:
        layer(torch.randn(4, 32, i))
    q = {"none": 0, "classes": 3, "lowrank": 4}[kind]
    drawn = k - q - (2 if kind == "lowrank" else 0)  # 128 coordinates are two rows of 64
    shared = n * 3 * 4 if q else 0
    assert saved.bytes == (drawn + q) * i * 4 + drawn * 12 + shared + (n * 4 if q == 4 else 0)
    assert sampler.rows_kept == k
    limit = k * i * 4 + k * 12
    assert limit - i * 4 - k * 12 < saved.bytes - shared <= limit


@pytest.mark.parametrize("kind", CENTRES)
def test_float16_sums_over_many_rows(kind, make_layer):
    """Sums of x and of dY over 4,096 rows are beyond float16; dW is not, and comes out."""
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(4, 1024, 64, generator=generator)
    x[..., 0] += 30
    dy = 20 + torch.randn(4, 1024, 3, generator=generator)
    dy *= torch.randn(4, 1024, 1, generator=generator).sign()
    layer, sampler = make_layer(nn.Linear(64, 3).half(), estimator="pps", budget=0.5, center=kind)
    for _ in range(3):
        layer.weight.grad = None
        layer(x.half()).backward(dy.half())
        sampler.settle()
    assert layer.weight.grad.isfinite().all()
    exact = torch.einsum("bto,bti->oi", dy, x)
    if kind != "none":  # which leaves the mean of 30 to the draw
        assert (layer.weight.grad.float() - exact).norm() < 0.5 * exact.norm()
    if kind == "lowrank":
        (v,) = sampler.centring.state_dict()["vectors"].values()
        assert v.isfinite().all()


def test_resuming_before_an_input_was_met(make_layer):
    """The first directions of a layer that joins later are those of the run that was not cut."""
    layers = nn.ModuleDict({name: nn.Linear(32, 3) for name in "ab"})
    sampler = make_layer(layers, estimator="pps", budget=0.5)[1]
    x = torch.randn(4, 10, 32)
    layers["a"](x).sum().backward()
    state = copy.deepcopy(sampler.state_dict())
    bases = []
    for _ in range(2):
        sampler.start_batch()
        bases.append(sampler.sample_rows("fc.b", x.clone()).rows)
        sampler.load_state_dict(state)
    assert torch.equal(*bases)


def test_a_state_of_another_rank_starts_anew(make_layer):
    _, one = make_layer(nn.Linear(32, 3), estimator="pps", budget=0.5)
    one.sample_rows("fc", torch.randn(4, 10, 32))
    _, two = make_layer(nn.Linear(32, 3), estimator="pps", budget=0.5, rank=2)
    two.load_state_dict(one.state_dict())
    assert two.sample_rows("fc", torch.randn(4, 10, 32)).kept.coordinates.shape == (40, 2)


def test_layers_of_one_input_share_the_split(make_encoder):
    model = make_encoder()
    sampler = sample_linears_(model, SamplingConfig("pps", budget=0.5))
    x = torch.randn(4, 10, 4)
    q, k = (sampler.sample_rows(f"layers.0.{name}", x) for name in "qk")
    assert q.kept.coordinates is k.kept.coordinates
    assert q.rows.data_ptr() == k.rows.data_ptr()


def test_too_few_rows_are_not_centred(make_layer):
    """Three means of a budget of four rows: they are better spent on rows."""
    sampler = make_layer(estimator="pps", budget=0.1)[1]
    kept = sampler.sample_rows("fc", torch.randn(4, 10, 4)).kept
    assert kept.classes is None
    assert len(kept.indices) == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"center": "mean"}, "'mean' is unknown; choose one of auto, none, classes, lowrank"),
        ({"rank": 0}, "rank=0 must be an integer of at least 1"),
        ({"rank": 1.5}, "rank=1.5 must be"),
        ({"estimator": "full", "center": "classes"}, "samples nothing"),
        ({"estimator": "deterministic", "center": "lowrank"}, "drops rows without a scale"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        SamplingConfig(**settings)


def test_an_estimator_of_ones_own_says_whether_it_can(monkeypatch):
    def mine(probabilities, k, generator):
        return ESTIMATORS["crs"](probabilities, k, generator)

    monkeypatch.setitem(ESTIMATORS, "mine", mine)
    assert SamplingConfig("mine", center="classes").centring == "classes"
    mine.unbiased = False
    with pytest.raises(ValueError, match="would be lost, not estimated"):
        SamplingConfig("mine", center="classes")


def test_the_default_is_lowrank_for_pps_alone():
    assert SamplingConfig("pps").centring == "lowrank"
    assert {SamplingConfig(name).centring for name in ("wtacrs", "crs", "full")} == {"none"}
