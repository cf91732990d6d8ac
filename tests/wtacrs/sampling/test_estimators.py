"""The rules that pick rows and scales, each against the mathematics of the paper."""

from fractions import Fraction

import pytest
import torch

from wtacrs import ESTIMATORS, Selection, select
from wtacrs.sampling.estimators import count_winners
from wtacrs.sampling.select import draw, rows_kept

NOT_PROPORTIONAL = {"uniform", "deterministic"}  # the others draw row n with probability ~ p_n
proportional = pytest.mark.parametrize("name", sorted(ESTIMATORS.keys() - NOT_PROPORTIONAL))


def skewed_weights(n=40):
    return torch.exp(torch.randn(n, generator=torch.Generator().manual_seed(4)))


def scale_per_row(estimator, weights, k, generator, draws=20_000):
    """(draws, n): the scale that each row gets in each draw, 0 where it is not kept."""

    def one(_):
        indices, scales = select(estimator, weights, k, generator=generator)
        return torch.zeros_like(weights).index_add(0, indices, scales)

    return torch.func.vmap(one, randomness="different")(torch.arange(draws))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_selection_has_k_indices_and_scales(estimator, dtype, generator):
    indices, scales = select(estimator, skewed_weights().to(dtype), 12, generator=generator)
    assert (indices.shape, indices.dtype) == ((12,), torch.int64)
    assert scales.shape == (12,)
    assert scales.dtype == torch.promote_types(dtype, torch.float32)
    assert indices.min() >= 0
    assert indices.max() < 40


@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # vmap's own layout, no call of ours
@pytest.mark.parametrize("weights", [skewed_weights(), torch.zeros(40)], ids=["skewed", "zero"])
@pytest.mark.parametrize("k", [1, 12, 39])
def test_expected_scale_of_every_row_is_one(unbiased, weights, k, generator, assert_unbiased):
    """The definition of an unbiased estimate for any A and B. All-zero weights: rows alike."""
    scales = scale_per_row(unbiased, weights, k, generator)
    assert_unbiased(scales, torch.ones(40), rounding=1e-6)


def test_deterministic_fails_the_same_test(generator, assert_unbiased):
    """The test can fail."""
    scales = scale_per_row("deterministic", skewed_weights(), 12, generator, draws=10)
    with pytest.raises(AssertionError):
        assert_unbiased(scales, torch.ones(40), rounding=1e-6)


@pytest.mark.parametrize("exponents", [(-1, 0), (-8, 0), (-30, 0)])
@proportional
def test_the_sum_of_weights_is_estimated_exactly(name, exponents, generator):
    """sum_j scale_j p_j = 1 in every single draw, also for p that span 30 decades."""
    weights = 10 ** torch.empty(40).uniform_(*exponents)
    for _ in range(20):
        indices, scales = select(name, weights, 12, generator=generator)
        total = (scales.double() * weights[indices].double()).sum() / weights.double().sum()
        assert abs(total - 1) < 1e-5


@pytest.mark.parametrize("k", [1, 12, 20])
def test_rows_of_weight_zero_are_never_kept(estimator, k, generator):
    weights = skewed_weights()
    weights[::2] = 0
    for _ in range(50):
        indices, scales = select(estimator, weights, k, generator=generator)
        assert (weights[indices[scales > 0]] > 0).all()
        assert (scales > 0).all()


@pytest.mark.parametrize("k", [20, 25, 40])
def test_all_rows_of_positive_weight_fit(estimator, k, generator):
    """Each once, scale 1; the spare slots get the scale 0 and no 0/0 anywhere."""
    weights = skewed_weights()
    weights[::2] = 0
    indices, scales = select(estimator, weights, k, generator=generator)
    counted = torch.zeros(40).index_add(0, indices, scales)
    assert torch.equal(counted, torch.ones(40) if k == 40 else (weights > 0).float())
    assert len(indices) == len(scales) == k


@pytest.mark.parametrize("k", [3, 10, 33])
def test_rows_alike_fit_in_float64_too(estimator, k, generator):
    """Ties: sums of float64 numbers are rounded, and must not decide that there is a tail."""
    weights = torch.cat([torch.full((k,), 0.1), torch.zeros(5)]).double()
    indices, scales = select(estimator, weights, k, generator=generator)
    assert sorted(indices.tolist()) == [*range(k)]
    torch.testing.assert_close(scales, torch.ones(k).double())


def test_no_valid_row_gives_scale_zero(estimator, generator):
    """All rows masked: zero, not NaN."""
    indices, scales = draw(estimator, torch.zeros(40), 12, generator)
    assert torch.equal(scales, torch.zeros(12))
    assert len(indices) == 12


def test_full_keeps_every_row(generator):
    indices, scales = select("full", skewed_weights(), 7, generator=generator)
    assert torch.equal(indices, torch.arange(40))
    assert torch.equal(scales, torch.ones(40))


def test_scales_of_the_simple_estimators(generator):
    weights = skewed_weights()
    p = weights / weights.sum()
    assert torch.equal(select("uniform", weights, 16).scales, torch.full((16,), 40 / 16))
    indices, scales = select("crs", weights, 16, generator=generator)
    torch.testing.assert_close(scales, 1 / (16 * p[indices]))
    indices, scales = select("deterministic", weights, 16)
    assert set(indices.tolist()) == set(weights.topk(16).indices.tolist())
    assert torch.equal(scales, torch.ones(16))


def winners(p, k):
    """c by brute force in exact arithmetic: argmin over 0..k-1 of (1 - P_c) / (k - c)."""
    descending = sorted((Fraction(value) for value in p.tolist()), reverse=True)
    return min(range(k), key=lambda c: sum(descending[c:]) / (k - c))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (skewed_weights(), 9),
        (10.0 ** -torch.arange(31.0), 19),  # 1 - prefix gives about 8 in float32, 16 in float64
        (10 ** torch.empty(40).uniform_(-30, 0, generator=torch.Generator().manual_seed(5)), 19),
        (torch.cat([torch.ones(10), torch.full((30,), 1e-9)]), 10),
    ],
    ids=["skewed", "decades", "random decades", "negligible tail"],
)
def test_winners_are_decided_in_the_last_digit(weights, expected, generator):
    k = 20
    p = weights / weights.sum()
    c = winners(p, k)
    assert c == expected
    indices, scales = select("wtacrs", weights, k, generator=generator)
    drawn, won = slice(0, k - c), slice(k - c, k)  # the winners come last
    assert torch.equal(p[indices[won]], p.sort().values[len(p) - c :])
    assert torch.equal(scales[won], torch.ones(c))
    tail = p.double().sort().values[: len(p) - c].sum()
    expected = tail / ((k - c) * p[indices[drawn]].double())
    torch.testing.assert_close(scales[drawn].double(), expected)


def test_count_winners_takes_the_minimum():
    """Masses 1, .5, .2, .15 over 4, 3, 2, 1 slots: .25, .167, .1, .15, so two winners."""
    mass = torch.tensor([0.15, 0.2, 0.5, 1.0])  # the most winners first
    drawn, step = count_winners(mass)
    assert drawn == 4 - 2
    torch.testing.assert_close(float(step), 0.1)
    drawn, step = count_winners(mass, power=2)  # .0225, .02, .0833, .25
    assert drawn == 4 - 2
    torch.testing.assert_close(float(step), 0.1)


@pytest.mark.parametrize("skew", [1.0, 2.0, 3.0])
def test_theorem_2_winners_lower_the_variance(skew, generator):
    """Where P_c > c/k, the Monte-Carlo variance of wtacrs is below that of crs."""
    values = torch.randn(40)
    weights = torch.exp(skew * torch.randn(40))
    k, p = 12, weights / weights.sum()
    c = winners(p, k)
    assert p.sort(descending=True).values[:c].sum() > c / k
    variance = {
        name: (scale_per_row(name, weights, k, generator) @ (values * weights)).var()
        for name in ("crs", "wtacrs")
    }
    assert variance["wtacrs"] < 0.95 * variance["crs"]  # 0.95: four standard errors of a variance


def test_randomness_comes_from_the_generator_alone(unbiased):
    before = torch.get_rng_state()
    first, again, other = (
        select(unbiased, torch.ones(40), 12, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.indices, again.indices)
    assert not torch.equal(first.indices, other.indices)
    select(unbiased, torch.ones(40), 12)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_users_own_estimator_joins(monkeypatch):
    def first(p, k, _):
        return Selection(torch.arange(k), torch.full((k,), len(p) / k))

    monkeypatch.setitem(ESTIMATORS, "first", first)
    assert select("first", torch.ones(8), 2).scales.tolist() == [4, 4]


@pytest.mark.parametrize(("n", "budget", "k"), [(10, 0.3, 3), (10, 0.01, 1), (7, 1.0, 7)])
def test_rows_kept(n, budget, k):
    assert rows_kept(n, budget) == k


@pytest.mark.parametrize(
    ("estimator", "weights", "k", "words"),
    [
        ("best", torch.ones(4), 2, ["'best'", "unknown", "choose one of", "wtacrs"]),
        ("crs", torch.ones(4), 0, ["k=0", "1..4", "budget"]),
        ("full", torch.ones(4), 5, ["k=5", "1..4", "budget"]),
        ("crs", torch.ones(4, 1), 2, ["(4, 1)", "shape (n,)", "give"]),
        ("crs", torch.ones(4, dtype=torch.int64), 2, ["int64", "floating-point", "give"]),
        ("crs", torch.tensor([1.0, -2.0]), 1, ["-2.0", "finite and >= 0"]),
        ("crs", torch.tensor([1.0, float("nan")]), 1, ["nan", "finite and >= 0"]),
        ("crs", torch.tensor([1.0, float("inf")]), 1, ["inf", "finite and >= 0"]),
    ],
)
def test_bad_input_is_named(estimator, weights, k, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        select(estimator, weights, k)
    assert all(word in str(error.value) for word in words), str(error.value)
