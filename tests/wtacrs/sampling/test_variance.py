"""The closed forms against Monte-Carlo, and the paper's Theorem 2."""

import pytest
import torch

from wtacrs.sampling.estimators import ESTIMATORS
from wtacrs.sampling.select import draw, normalise
from wtacrs.sampling.variance import (
    expected_squared_error,
    optimal_winners,
    outer_gram,
    theorem2_holds,
    winner_mass,
)

N = 30
SHAPES = {
    "flat": torch.ones(N),
    "heavy": torch.logspace(-2, 1, N),
    "zeros": torch.cat([torch.zeros(N // 2), torch.linspace(1, 5, N - N // 2)]),
}


def problem(shape: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = SHAPES[shape][torch.randperm(N, generator=generator)]
    a = torch.randn(N, 4, generator=generator) * size[:, None]
    b = torch.randn(N, 3, generator=generator)
    noise = 0.5 + torch.rand(N, generator=generator)  # weights that are not the optimum
    return a, b, a.norm(dim=1) * b.norm(dim=1) * noise


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 4, 10])
@pytest.mark.parametrize("estimator", ["uniform", "crs", "wtacrs", "wtacrs_exact", "pps"])
def test_closed_form_is_the_mean_squared_error(estimator, shape, k):
    """|z| < 4.5 in each of 45 cases: a false alarm in fewer than 1 of 3,000 runs of the file. The
    form of pps is an approximation, and may be off by 10 % beside."""
    a, b, weights = problem(shape)
    gram, p = outer_gram(a, b), normalise(weights)
    generator = torch.Generator().manual_seed(2)
    misses = torch.full((800, N), -1.0, dtype=gram.dtype)
    for row in misses:
        indices, scales = draw(estimator, p, k, generator)
        row.index_add_(0, indices, scales.double())
    errors = ((misses @ gram) * misses).sum(1)
    expected = expected_squared_error(estimator, gram, weights, k)
    off = 0.1 * expected if estimator == "pps" else 0.0
    assert abs(errors.mean() - expected) < 4.5 * errors.std() / len(errors) ** 0.5 + off


def test_deterministic_is_its_squared_bias():
    a, b, weights = problem("heavy")
    indices, _ = draw("deterministic", normalise(weights), 5, torch.Generator())
    bias = a[indices].T @ b[indices] - a.T @ b
    expected = expected_squared_error("deterministic", outer_gram(a, b), weights, 5)
    assert expected == pytest.approx(float(bias.square().sum()), rel=1e-4)


def test_exact_where_k_reaches_the_positive_rows():
    a, b, weights = problem("zeros")
    for estimator in ["full", *ESTIMATORS]:
        assert expected_squared_error(estimator, outer_gram(a, b), weights, N // 2) == 0


def test_optimal_winners_by_search():
    _, _, weights = problem("heavy")
    mass = winner_mass(weights)
    for k in (2, 5, 12):
        quotients = [(1 - (mass[c - 1] if c else 0)) / (k - c) for c in range(k)]
        assert optimal_winners(weights, k) == min(range(k), key=quotients.__getitem__)
        squares = [(k - c) * quotient**2 for c, quotient in enumerate(quotients)]
        assert optimal_winners(weights, k, power=2) == min(range(k), key=squares.__getitem__)


@pytest.mark.parametrize(("shape", "holds"), [("heavy", True), ("flat", False)])
def test_theorem2_predicts_who_varies_less(shape, holds):
    """With weights at the optimum, as the theorem assumes."""
    a, b, _ = problem(shape)
    weights = torch.ones(N) if shape == "flat" else a.norm(dim=1) * b.norm(dim=1)
    k, gram = 12, outer_gram(a, b)
    assert theorem2_holds(weights, k) is holds
    crs, wtacrs = (expected_squared_error(e, gram, weights, k) for e in ("crs", "wtacrs"))
    assert wtacrs < 0.5 * crs if holds else wtacrs == pytest.approx(crs)


def test_pps_draws_within_the_error_of_wtacrs():
    """The same winners and the same tail, drawn without replacement."""
    a, b, weights = problem("heavy")
    gram = outer_gram(a, b)
    pps, wtacrs = (expected_squared_error(e, gram, weights, 8) for e in ("pps", "wtacrs"))
    assert pps < wtacrs


def test_pps_of_equal_rows_is_simple_random_sampling():
    """Of k of n rows without replacement: n^2 (1 - k/n) S^2 / k, S^2 the variance with n - 1."""
    a, b, _ = problem("flat")
    outer = torch.einsum("ni,no->nio", a, b).flatten(1).double()
    spread = (outer - outer.mean(0)).square().sum() / (N - 1)
    expected = N**2 * (1 - 10 / N) * spread / 10
    found = expected_squared_error("pps", outer_gram(a, b), torch.ones(N), 10)
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_unknown_estimator_lists_the_known():
    with pytest.raises(ValueError, match=r"'mine'.*deterministic, wtacrs, wtacrs_exact or pps"):
        expected_squared_error("mine", torch.eye(4), torch.ones(4), 2)
