from types import SimpleNamespace

import torch
from torch import nn

from wtacrs_experiments.bench.deep_narrow import measure


class Squares(nn.Module):
    """Keeps ``count`` vectors of 1,000 floats for its backward pass."""

    def __init__(self, count):
        super().__init__()
        self.weight, self.count = nn.Parameter(torch.ones(1000)), count

    def forward(self):
        x = self.weight * torch.ones(())
        for _ in range(self.count):
            x = x.exp()  # keeps its output
        return SimpleNamespace(loss=x.sum())


def test_the_peak_is_what_is_kept_and_one_gradient_or_two():
    peaks = [measure(Squares(count), {})[0] for count in (5, 25)]
    assert peaks[1] - peaks[0] == 20 * 4000
    assert 5 * 4000 < peaks[0] < 9 * 4000


def test_operations_are_those_of_matrix_products():
    class Product(Squares):
        def forward(self):
            return SimpleNamespace(loss=(self.weight.view(10, 100) @ torch.ones(100, 7)).sum())

    assert measure(Product(0), {})[1] == 2 * 2 * 10 * 100 * 7
