"""From activations and gradient norms to probabilities, against values worked by hand."""

import pytest
import torch

from wtacrs.sampling.select import draw
from wtacrs.sampling.weights import even_floor, probabilities_of, row_norms, scaled_row_norms

ROWS = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0], [0.0, 2.0]])  # norms 5, 1, 0, 2
GRADIENT_NORMS = torch.tensor([1.0, 5.0, 7.0, 0.0])
MASK = torch.tensor([1, 1, 1, 0])


def row_probabilities(rows, gradient_norms, mask, floor):
    """As a layer puts them together."""
    valid = torch.ones(len(rows)) if mask is None else mask.float()
    weights = row_norms(rows) * (valid if gradient_norms is None else gradient_norms * valid)
    return probabilities_of(weights, even_floor(valid, floor), floor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_are_float32_or_better(dtype):
    """300 entries of 300: the sum of squares would overflow float16."""
    norms = row_norms(torch.full((2, 300), 300.0, dtype=dtype))
    assert norms.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(norms, torch.full_like(norms, 300 * 300**0.5), rtol=2e-2, atol=0)


@pytest.mark.parametrize(
    ("gradient_norms", "mask", "floor", "expected"),
    [
        (None, None, 0.0, [5 / 8, 1 / 8, 0, 2 / 8]),
        (GRADIENT_NORMS, None, 0.0, [0.5, 0.5, 0, 0]),
        (GRADIENT_NORMS, None, 0.2, [0.45, 0.45, 0.05, 0.05]),
        (None, MASK, 0.0, [5 / 6, 1 / 6, 0, 0]),
        (GRADIENT_NORMS, MASK, 0.3, [0.45, 0.45, 0.1, 0]),
        (GRADIENT_NORMS * 0, MASK, 0.3, [0.1, 0.1, 0.1, 0]),  # no weight at all: even
        (None, MASK * 0, 0.3, [0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32])
def test_probabilities_by_hand(gradient_norms, mask, floor, expected, mask_dtype):
    mask = None if mask is None else mask.to(mask_dtype)
    p = row_probabilities(ROWS, gradient_norms, mask, floor)
    torch.testing.assert_close(p, torch.tensor(expected).float())
    if mask is not None:
        assert torch.equal(p[mask == 0], torch.zeros(int((mask == 0).sum())))  # exactly zero


def test_floor_keeps_every_valid_row_possible_and_bounds_its_scale(estimator, generator):
    """Stale zeros in the gradient norms: p >= floor / valid, scale <= valid / (k floor).

    The exact number of winners may leave a single row to be drawn: its scale knows no k.
    """
    k, floor = 8, 0.05
    gradient_norms = torch.rand(40).where(torch.arange(40) % 3 > 0, 0)
    mask = torch.arange(40) < 30
    p = row_probabilities(torch.randn(40, 4), gradient_norms, mask, floor)
    assert (p[:30] >= 0.999 * floor / 30).all()
    for _ in range(50):
        indices, scales = draw(estimator, p, k, generator)
        drawn = 1 if estimator == "wtacrs_exact" else k
        assert (scales <= 1.001 * 30 / (drawn * floor)).all()
        assert (indices < 30).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", [0, 3], ids=["valid", "masked"])
def test_non_finite_rows_give_nan(value, row):
    """Also in a masked row: 0 * NaN is NaN in the plain layer too."""
    rows = ROWS.clone()
    rows[row, 0] = value
    p = row_probabilities(rows, GRADIENT_NORMS + 1, MASK, 0.01)
    assert p.isnan().any()


def test_all_rows_masked_hides_no_nan():
    rows = ROWS.clone()
    rows[1] = float("nan")
    assert row_probabilities(rows, None, MASK * 0, 0.01).isnan().any()


def test_tiny_activations_keep_their_probabilities():
    """Weights around 1e-30 are normalised, not taken for zero."""
    p = row_probabilities(ROWS * 1e-15, GRADIENT_NORMS * 1e-15, None, 0.0)
    torch.testing.assert_close(p, torch.tensor([0.5, 0.5, 0.0, 0.0]))


def test_scaled_norms_stay_in_range():
    """Norms of 1e-25 and of 1e25, whose squares leave float32; zero and NaN are what they are."""
    for size in (1e-25, 1e25):
        norms = scaled_row_norms(ROWS * size)
        torch.testing.assert_close(norms, torch.tensor([1.25, 0.25, 0, 0.5]))
    assert torch.equal(scaled_row_norms(ROWS * 0), torch.zeros(4))
    assert scaled_row_norms(ROWS * float("nan")).isnan().all()
