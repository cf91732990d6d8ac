"""Centred rows: exact where they say so, unbiased in the rest, at the bytes that they claim."""

import copy

import pytest
import torch
from torch import nn

from wtacrs import SamplingConfig, sample_linears_
from wtacrs.memory import SavedBytes
from wtacrs.randomness import Randomness
from wtacrs.sampling.batch import Rows
from wtacrs.sampling.centre import CENTRES, Centring, features, row_classes

kinds = pytest.mark.parametrize("kind", ["classes", "lowrank"])


def centring(kind, rank=1):
    return Centring(kind, rank, Randomness(0, "directions"))


def split(kind, x, rank=1, steps=1, dtype=torch.float32, squares=None, name="fc"):
    """The split of the last of ``steps`` steps over the same rows."""
    centre, classes = centring(kind, rank), row_classes(Rows(len(x), 1), torch.ones(len(x)))
    squares = torch.ones(len(x), 1) if squares is None else squares
    for _ in range(steps):
        found = centre.split(name, x, classes, squares, dtype)
    return found


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[1, 1, 1, 1]], [[0, 2, 2, 1]]),
        ([[1, 1, 1, 0]], [[0, 2, 1, -1]]),  # padding has no class
        ([[0, 1, 1, 1]], [[-1, 0, 2, 1]]),  # on the left
        ([[1, 0, 0, 0]], [[0, -1, -1, -1]]),  # a single row is the first
        ([[0, 0, 0, 0]], [[-1, -1, -1, -1]]),
        ([[1, 1, 0, 0], [0, 0, 1, 1]], [[0, 1, -1, -1], [-1, -1, 0, 1]]),
    ],
)
def test_classes_of_rows(mask, expected):
    """0 first, 1 last, 2 the others of a sample's rows that count."""
    valid = torch.tensor(mask).float()
    classes = row_classes(Rows(*valid.shape, mask=valid), valid.reshape(-1))
    found = torch.where(classes.sum(1) > 0, classes.argmax(1), -1)
    assert found.tolist() == torch.tensor(expected).flatten().tolist()
    assert set(classes.unique().tolist()) <= {0.0, 1.0}


def test_one_class_where_nothing_is_known():
    assert torch.equal(row_classes(Rows(5, 1), torch.ones(5)), torch.ones(5, 1))


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_parts_add_up(kind, dtype):
    """To X, from what the backward pass gets, whatever F and G were rounded to."""
    x = torch.randn(40, 8) + 3 * torch.randn(8)
    found = split(kind, x, dtype=dtype)
    f = features(found.classes, found.coordinates, dtype)
    assert f.dtype == found.basis.dtype == dtype
    assert f.shape[1] == len(found.basis) == (1 if kind == "classes" else 2)
    torch.testing.assert_close(f.float() @ found.basis.float() + found.rest, x)


def test_the_means_are_those_of_the_weighted_rows():
    x, squares = torch.randn(40, 8), torch.rand(40, 1)
    expected = (squares * x).sum(0) / squares.sum()
    torch.testing.assert_close(split("classes", x, squares=squares).basis, expected[None])


@pytest.mark.parametrize("rank", [1, 2])
def test_directions_become_the_leading_ones(rank):
    """Of the rows less their mean, weighted: those of the decomposition after some steps."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([9.0, 5.0, 1.0, 1.0, 0.5, 0.5])
    x = torch.randn(60, 6, generator=generator) * scales + 20
    squares = torch.rand(60, 1, generator=generator)
    mean = (squares * x).sum(0) / squares.sum()
    leading = torch.linalg.svd(squares.sqrt() * (x - mean)).Vh[:rank]
    found = split("lowrank", x, rank, steps=30, squares=squares).basis[1:]
    torch.testing.assert_close(found.T @ found, leading.T @ leading, rtol=0, atol=1e-3)
    torch.testing.assert_close(found @ found.T, torch.eye(rank), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_step_without_or_with_bad_numbers_leaves_directions(rank, value):
    """No gradients at all, or an overflow: an orthonormal basis stays, the next step goes on."""
    centre, classes, x = centring("lowrank", rank), torch.ones(40, 1), torch.randn(40, 8)
    good, bad = torch.ones(40, 1), torch.full((40, 1), value)
    for squares in (good, bad, good):
        centre.split("fc", x, classes, squares, torch.float32)
    (v,) = centre.state_dict()["vectors"].values()
    torch.testing.assert_close(v.T @ v, torch.eye(rank), rtol=0, atol=1e-5)


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
    from wtacrs import ESTIMATORS

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
