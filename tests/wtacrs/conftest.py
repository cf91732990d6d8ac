"""What the tests of the library share: the estimators, a small encoder, the unbiasedness test."""

import pytest
import torch
from torch import nn

from wtacrs import ESTIMATORS, SamplingConfig, sample_linears_

BIASED = {"deterministic"}  # every other estimator has to pass the statistics


@pytest.fixture(params=sorted(ESTIMATORS))
def estimator(request):
    return request.param


@pytest.fixture(params=sorted(ESTIMATORS.keys() - BIASED))
def unbiased(request):
    return request.param


@pytest.fixture(autouse=True)
def _fixed_inputs_one_thread():
    torch.manual_seed(0)  # for test inputs only: the library never reads the global generator
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only lose by more
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(1)


def check_unbiased(estimates, exact, rounding=0.0):
    """Assert that the mean of ``estimates`` (m, ...) is ``exact`` (...), as statistics.

    The errors are projected on one fixed random direction, and their mean has to lie within 4.5
    standard errors of zero: a false alarm in 7 of a million cases, so below 1 in 1000 for the
    whole folder; the generators are fixed, so a case that passes once always passes.
    ``rounding`` (...) bounds the rounding error of each entry, which no averaging removes.
    """
    direction = torch.randn(exact.shape, generator=torch.Generator().manual_seed(2)).double()
    errors = ((estimates.double() - exact.double()) * direction).flatten(1).sum(1)
    standard_error = errors.std() / len(errors) ** 0.5
    rounded = (rounding * direction.abs()).sum()
    allowed = 4.5 * standard_error + rounded
    assert errors.mean().abs() <= allowed, f"{errors.mean():.3g} is not within {allowed:.3g} of 0"
    return float((errors.mean().abs() - rounded).clamp(min=0) / standard_error)


@pytest.fixture
def assert_unbiased(request):
    """``check_unbiased``, whose worst |z| the end of the session tells."""

    def check(*arguments, **named):
        z = check_unbiased(*arguments, **named)
        request.node.user_properties.append(("z", z))

    return check


class Block(nn.Module):
    """Four linears as in attention; tokens do not mix, so masked tokens get no gradient."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        return x + self.o(torch.tanh(self.q(x)) * torch.sigmoid(self.k(x)) + self.v(x))


class Encoder(nn.Module):
    """(b, t, 4) -> (b, t, 2): an embedding, transformer-like blocks, a head."""

    def __init__(self, blocks=1):
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.layers = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture
def make_encoder():
    return Encoder


@pytest.fixture
def make_layer():
    """Factory of one sampled layer, ``nn.Linear(4, 3)`` by default, and its sampler."""

    def make(linear=None, *, num_samples=None, max_tokens=None, **config):
        holder = nn.ModuleDict({"fc": linear or nn.Linear(4, 3)})
        config = SamplingConfig(include=["*"], **config)
        sampler = sample_linears_(holder, config, num_samples=num_samples, max_tokens=max_tokens)
        return holder["fc"], sampler

    return make


def run_exact_step(model, sampler, call=None):
    """One training step in which 5 of 10 tokens are masked; returns the gradients by name.

    With budget 0.5 the sampled path runs, and yet every gradient has to equal the plain layer's:
    k rows are all the rows that count. ``sampler`` is None for the plain model.
    """
    x = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(3), requires_grad=True)
    mask = (torch.arange(10) % 2).expand(2, 10)
    if sampler is not None:
        sampler.start_batch(mask=mask)
    model.zero_grad()
    call = model if call is None else call
    (call(x).float().square() * mask[..., None]).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()} | {"x": x.grad}


@pytest.fixture
def exact_step():
    return run_exact_step
