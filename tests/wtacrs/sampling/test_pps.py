"""The draw of pps: no order of the rows is a bad one, no rounding ends on a row that cannot be."""

import pytest
import torch

from wtacrs.sampling.estimators import inclusion_probabilities, pps

N = 256


def positions(strength):
    """Rows that lie along a path, as with position vectors added."""
    angle = torch.arange(N) / N * 12 * torch.pi
    return strength * torch.stack([angle.sin(), angle.cos(), angle / angle.max()], 1).repeat(1, 2)


def noise(seed):
    return torch.randn(N, 6, generator=torch.Generator().manual_seed(seed))


AT = torch.arange(N)
PATTERNS = {
    "alternating": noise(0) * 0.1 + (1 - 2 * (AT % 2))[:, None],
    "sine at the step": noise(1) * 0.1 + torch.sin(AT * torch.pi / 2 + 0.3)[:, None],
    "[CLS] at a stride": noise(2) * 0.2 + 3.0 * (AT % 32 == 0)[:, None],
    "[CLS] at the step": noise(3) * 0.2 + 1.0 * (AT % 4 == 0)[:, None],
    "position vectors": noise(4) * 0.2 + positions(1.0),
    "blocks": noise(5) * 0.2 + (AT // 64)[:, None],
}


def error(x, dy, k, draws=400):
    """(mean, standard error) of ||dW_hat - dW||^2 for k of the rows, flat weights."""
    generator = torch.Generator().manual_seed(7)
    exact, errors = x.T @ dy, []
    for _ in range(draws):
        indices, scales = pps(torch.ones(N), k, generator)
        estimate = (scales[:, None] * x[indices]).T @ dy[indices]
        errors.append((estimate - exact).square().sum())
    errors = torch.stack(errors)
    return errors.mean(), errors.std() / draws**0.5


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("k", [N // 4, N // 8, 77])
def test_no_order_is_worse_than_a_random_one(pattern, k):
    """At most 1.3 times. Flat weights, so that the step meets the period of the rows; plain
    systematic sampling in token order is 18 times worse with [CLS] at a stride."""
    x, dy = PATTERNS[pattern], 1.0 + 0.1 * noise(8)[:, :3]
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(9))
    (found, one), (random, two) = error(x, dy, k), error(x[shuffled], dy[shuffled], k)
    assert found - 4.5 * one < 1.3 * (random + 4.5 * two)


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53], ids=["0", "the last below 1"])
@pytest.mark.parametrize("n", [7, 1000, 4099])
def test_the_extreme_draws_end_on_rows_that_can_be(draw, n, monkeypatch):
    """The last rows are padding; the sums of pi are what rounding makes of k."""
    p = torch.rand(n, generator=torch.Generator().manual_seed(n))
    p[-n // 4 :] = 0
    monkeypatch.setattr(torch, "rand", lambda *_, **given: torch.full((1,), draw).double())
    for k in (1, n // 3, n // 2):
        indices, scales = pps(p, k, torch.Generator())
        assert scales.isfinite().all()
        assert (p[indices[scales > 0]] > 0).all()
        assert (scales == 0).sum() <= (draw == 0.0)  # a point beyond the sum, by rounding alone


def test_inclusion_probabilities_add_up_to_k():
    p = torch.exp(3 * torch.randn(500, generator=torch.Generator().manual_seed(0)))
    for k in (1, 50, 499):
        inclusion = inclusion_probabilities(p, k)
        assert inclusion.max() <= 1
        torch.testing.assert_close(inclusion.double().sum(), torch.tensor(float(k)).double())


def test_every_row_comes_as_often_as_it_says(generator):
    """Counts over 4,000 draws within 4.5 standard deviations, 40 rows: 1 false alarm in 4,000."""
    p = torch.exp(torch.randn(40, generator=torch.Generator().manual_seed(4)))
    inclusion, counts = inclusion_probabilities(p, 12).double(), torch.zeros(40).double()
    for _ in range(4000):
        indices, _ = pps(p, 12, generator)
        assert len(indices.unique()) == 12
        counts[indices] += 1
    spread = (4000 * inclusion * (1 - inclusion)).sqrt()
    assert ((counts - 4000 * inclusion).abs() <= 4.5 * spread + 1e-6).all()
