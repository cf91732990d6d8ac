"""One seed, and a stream of its own for each purpose, device and rank."""

import pytest
import torch

from wtacrs import SamplingConfig, sample_linears_
from wtacrs.layers import rounding_of, save_less_
from wtacrs.randomness import Randomness, stream_seed

CPU = torch.device("cpu")


def first(randomness):
    return torch.rand(8, generator=randomness.generator(CPU))


def test_purposes_ranks_and_seeds_differ():
    seeds = {stream_seed(s, p, r) for s in range(3) for p in ("rows", "rounding") for r in range(3)}
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_no_stream_is_that_of_dropout():
    """torch.manual_seed(seed) is what the Trainer calls: its numbers are nobody else's."""
    draws = [first(Randomness(7, purpose)) for purpose in ("rows", "rounding", "directions")]
    draws.append(torch.rand(8, generator=torch.Generator().manual_seed(7)))
    assert all(not torch.equal(a, b) for at, a in enumerate(draws) for b in draws[:at])


def test_ranks_draw_apart(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    draws = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        draws += [first(Randomness(0, "rows")), first(Randomness(0, "rows"))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_state_goes_on_where_it_was():
    mine, other = Randomness(0, "rows"), Randomness(5, "rows")
    first(mine)
    state = mine.state_dict()
    expected = first(mine)
    other.load_state_dict(state)
    assert torch.equal(first(other), expected)


def test_the_layers_of_a_model_use_them(make_encoder):
    model = make_encoder()
    model.layers.append(torch.nn.GELU())
    sampler = sample_linears_(model, SamplingConfig(seed=3))
    save_less_(model, kinds=(), gelu="rounded", seed=3)
    streams = [sampler._randomness, sampler.centring._randomness, rounding_of(model)]
    assert [one.purpose for one in streams] == ["rows", "directions", "rounding"]
    assert all(one.seed == 3 for one in streams)


def test_another_ranks_state_gives_a_stream_of_ones_own(monkeypatch):
    """Rank 0 saves for all: the others must not draw what it draws."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    saver = Randomness(0, "rows")
    first(saver)
    state = saver.state_dict()
    draws = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        mine = Randomness(0, "rows")
        mine.load_state_dict(state)
        draws.append(first(mine))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    assert torch.equal(draws[0], first(saver))
    assert not any(torch.equal(a, b) for at, a in enumerate(draws) for b in draws[:at])


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_any_integer_is_a_seed(seed):
    assert first(Randomness(seed, "rows")).shape == (8,)


def test_a_state_of_a_device_that_is_not_here_is_left_out():
    randomness = Randomness(3, "rows")
    first(randomness)
    state = randomness.state_dict()
    state["states"] |= {"cuda:99": state["states"]["cpu"]}
    other = Randomness(3, "rows")
    other.load_state_dict(state)
    assert torch.equal(first(other), first(randomness))
