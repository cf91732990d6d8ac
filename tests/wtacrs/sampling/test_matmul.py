"""The estimate of a product: unbiased as statistics, exact where it has to be."""

import pytest
import torch

from wtacrs import estimate_matmul

N = 40
CASES = ["flat", "heavy tail", "zeros", "stale weights"]
DTYPES = [torch.float32, torch.bfloat16]

pytestmark = pytest.mark.filterwarnings("ignore:torch.searchsorted")  # vmap's own layout


def problem(case, dtype=torch.float32):
    """a (n, 4), b (n, 3) and the weights, None for the default ||a_n|| * ||b_n||."""
    generator = torch.Generator().manual_seed(6)
    a, b = (torch.randn(N, width, generator=generator) for width in (4, 3))
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)  # flat weights
    skew = torch.exp(2 * torch.randn(N, generator=generator))
    if case == "heavy tail":
        a = a * skew[:, None]
    if case == "zeros":
        a[::2] = 0
    return a.to(dtype), b.to(dtype), skew.sqrt() if case == "stale weights" else None


def draws(a, b, m=20_000, **options):
    """(m, i, o): m independent estimates at once."""
    one = lambda _: estimate_matmul(a, b, **options)  # noqa: E731
    return torch.func.vmap(one, randomness="different")(torch.arange(m))


def rounding(a, b):
    """Bound of the rounding error of a^T b, one rounding of the rows and one of the result."""
    return torch.finfo(a.dtype).eps * (a.double().abs().T @ b.double().abs())


@pytest.mark.parametrize("budget", [1 / N, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_unbiased(unbiased, case, dtype, budget, generator, assert_unbiased):
    a, b, weights = problem(case, dtype)
    options = {"estimator": unbiased, "budget": budget, "weights": weights, "generator": generator}
    estimates = draws(a, b, **options)
    assert estimates.dtype == dtype
    assert_unbiased(estimates, a.double().T @ b.double(), rounding(a, b))


@pytest.mark.parametrize("case", CASES)
def test_deterministic_is_biased(case, generator, assert_unbiased):
    """The negative control: the statistics above can fail."""
    a, b, weights = problem(case)
    estimates = draws(a, b, 10, estimator="deterministic", weights=weights, generator=generator)
    with pytest.raises(AssertionError):
        assert_unbiased(estimates, a.double().T @ b.double(), rounding(a, b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("case", "budget"), [("heavy tail", 1.0), ("zeros", 0.5), ("zeros", 0.8)])
def test_exact_where_k_rows_are_all_that_count(estimator, case, budget, dtype, generator):
    """k = n, k = the number of rows with a positive weight, and more."""
    a, b, _ = problem(case, dtype)
    product = estimate_matmul(a, b, estimator=estimator, budget=budget, generator=generator)
    torch.testing.assert_close(product, a.T @ b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("factor", [0, 1])
def test_non_finite_input_shows(estimator, value, row, factor, generator):
    factors = problem("zeros")[:2]
    factors[factor][row, 0] = value
    product = estimate_matmul(*factors, estimator=estimator, budget=0.1, generator=generator)
    assert product.isnan().any()


def test_the_default_weights_are_the_best(unbiased, generator):
    """Norm products beat weights that know nothing; uniform does not look at them."""
    a, b, _ = problem("heavy tail")
    best, flat = (
        draws(a, b, 2000, estimator=unbiased, weights=w, generator=generator).var(0).sum()
        for w in (None, torch.ones(N))
    )
    assert best < 0.5 * flat or unbiased == "uniform"


def test_the_global_generator_is_not_read(unbiased):
    before = torch.get_rng_state()
    estimate_matmul(*problem("flat")[:2], estimator=unbiased)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("a", "b", "options", "words"),
    [
        ((4, 2), (4, 3), {"estimator": "best"}, ["'best'", "unknown", "choose one of"]),
        ((4, 2), (4, 3), {"budget": 0.0}, ["budget=0.0", "(0, 1]", "for instance 0.3"]),
        ((4, 2), (4, 3), {"budget": 1.5}, ["budget=1.5", "(0, 1]", "for instance 0.3"]),
        ((4, 2), (5, 3), {}, ["(4, 2)", "(5, 3)", "same n >= 1"]),
        ((0, 2), (0, 3), {}, ["(0, 2)", "same n >= 1"]),
        ((4,), (4, 3), {}, ["(4,)", "give a (n, i) and b (n, o)"]),
        ((4, 2), (4, 3), {"weights": torch.ones(3)}, ["(3,)", "one weight for each of the 4"]),
        ((4, 2), (4, 3), {"weights": -torch.ones(4)}, ["-1.0", "finite and >= 0"]),
    ],
)
def test_bad_input_is_named(a, b, options, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        estimate_matmul(torch.ones(a), torch.ones(b), **options)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_norms_whose_squares_leave_float32(size):
    """A norm of 1e-25 is not zero: half of the rows are, and the budget keeps the others."""
    a, b = torch.randn(40, 4) * size, torch.randn(40, 3) / size
    a[1::2] = 0
    generator = torch.Generator().manual_seed(0)
    found = estimate_matmul(a, b, budget=0.5, generator=generator)  # the rows that are not zero
    torch.testing.assert_close(found, a.T @ b)


def test_a_scale_that_overflows_float16(generator):
    a, b = torch.full((400, 4), 2**-12).half(), torch.full((400, 3), 2000.0).half()
    found = estimate_matmul(a, b, estimator="uniform", budget=0.01, generator=generator)
    torch.testing.assert_close(
        found.float(), torch.full((4, 3), 400 * 2000 * 2**-12), rtol=1e-3, atol=0
    )
