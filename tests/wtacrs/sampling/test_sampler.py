"""The sampler: masks, shared draws, randomness of its own, and exact resuming."""

import copy
import io
import random

import pytest
import torch
from torch import nn

from wtacrs import SamplingConfig, sample_linears_

B, T = 4, 10


def kept(sampler, name, x):
    """Indices that layer ``name`` keeps of ``x`` with a positive scale."""
    kept = sampler.sample_rows(name, x).kept
    return kept.indices[kept.scales > 0].tolist()


def train(model, sampler, steps, start=0):
    """Gradients of ``steps`` training steps with ids and masks; step s always sees batch s."""
    gradients = []
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(B, T, 4, generator=generator)
        ids = torch.randperm(8, generator=generator)[:B]
        sampler.start_batch(sample_ids=ids, mask=(torch.arange(T) < 8).expand(B, T))
        model.zero_grad()
        model(x)[:, :8].square().sum().backward()
        gradients += [p.grad.clone() for p in model.parameters()]
    return gradients


def sampled(model, estimator="wtacrs", seed=0):
    model = copy.deepcopy(model)
    config = SamplingConfig(estimator=estimator, seed=seed)
    return model, sample_linears_(model, config, num_samples=8, max_tokens=T)


def same(first, second):
    return all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


def test_resuming_is_exact(estimator, make_encoder):
    """Through a file, read with weights_only=True, into a sampler that has drawn other numbers."""
    model, sampler = sampled(make_encoder(), estimator)
    train(model, sampler, 3)
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    expected = train(model, sampler, 2, start=3)
    file.seek(0)
    resumed, other = sampled(make_encoder(), estimator, seed=5)
    resumed.load_state_dict(model.state_dict())
    train(resumed, other, 1, start=7)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same(train(resumed, other, 2, start=3), expected)


@pytest.mark.parametrize("steps", [0, 2], ids=["before the first step", "later"])
def test_a_state_is_a_snapshot(steps, make_encoder):
    """In memory: training on must not change it, and going back to it is exact."""
    model, sampler = sampled(make_encoder())
    train(model, sampler, steps)
    state = sampler.state_dict()
    expected = train(model, sampler, 2, start=3)
    sampler.load_state_dict(state)
    assert same(train(model, sampler, 2, start=3), expected)


def test_the_seed_decides(unbiased, make_encoder):
    model = make_encoder()
    first, again, other = (train(*sampled(model, unbiased, seed), 1) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_the_global_generators_are_left_alone(estimator, make_encoder):
    model, sampler = sampled(make_encoder(), estimator)
    before = torch.get_rng_state(), random.getstate()
    train(model, sampler, 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_layers_of_one_input_share_the_draw(make_encoder):
    _, sampler = sampled(make_encoder())
    x = torch.randn(B, T, 4)
    q, k = (sampler.sample_rows(f"layers.0.{name}", x) for name in "qk")
    assert q.rows.data_ptr() == k.rows.data_ptr()
    assert q.kept.indices is k.kept.indices
    again = sampler.sample_rows("layers.0.q", x)  # the next forward pass
    assert not torch.equal(again.kept.indices, q.kept.indices)
    assert not torch.equal(
        sampler.sample_rows("layers.0.k", x.clone()).kept.indices, q.kept.indices
    )


@pytest.mark.parametrize("shape", [(B, T, 4), (B * T, 4)], ids=["(b, t, i)", "(n, i)"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_masked_rows_are_not_kept(estimator, shape, dtype, make_encoder):
    """Inputs of rank 2 may be the flattened rows of the batch."""
    _, sampler = sampled(make_encoder(), estimator)
    mask = (torch.arange(B * T) % 3 > 0).reshape(B, T)
    for _ in range(20):
        # Rank 2 may be anything, so flattened rows have a mask only where one is named for them.
        given = mask.to(dtype)
        sampler.start_batch(mask=given if len(shape) == 3 else {"layers.*": given})
        assert mask.reshape(-1)[kept(sampler, "layers.0.q", torch.randn(shape))].all()


def test_the_mask_ends_with_the_backward_pass(make_layer):
    """A forward pass that nobody told of must not meet the mask of the batch before."""
    layer, sampler = make_layer(estimator="uniform")
    mask = (torch.arange(T) < 5).expand(B, T)
    sampler.start_batch(mask=mask)
    x = torch.randn(B, T, 4)
    assert all(i % T < 5 for i in kept(sampler, "fc", x))
    layer(x).sum().backward()
    assert any(i % T >= 5 for i in kept(sampler, "fc", x))


def test_recomputing_one_of_two_batches_has_no_mask(make_layer):
    """Checkpointing recomputes batch A when the mask told last is B's: dW must stay unbiased."""
    layer, sampler = make_layer(estimator="uniform")
    first = (torch.arange(T) < 5).expand(B, T)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, B, T, 4, generator=generator)
    exact = layer.weight.new_zeros(layer.weight.shape)
    for x, mask in ((a, first), (b, ~first)):
        exact += torch.ones(layer.out_features, 1) * (x * mask[..., None]).sum((0, 1))
    steps = []
    for _ in range(300):
        layer.weight.grad = None
        total = 0
        for x, mask in ((a, first), (b, ~first)):
            sampler.start_batch(mask=mask)
            y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
            total = total + (y * mask[..., None]).sum()
        total.backward()
        steps.append(layer.weight.grad)
    draws = torch.stack(steps)
    z = (draws.mean(0) - exact) / (draws.std(0) / len(steps) ** 0.5)
    assert z[0].abs().max() < 4.5  # 4 numbers: a false alarm in 1 of 30,000


def test_masks_by_layer_name():
    """Encoder and decoder: the first glob that matches counts, no match is no mask."""
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("encoder", "decoder", "other")})
    sampler = sample_linears_(model, SamplingConfig(include=["*"], estimator="uniform"))
    early, late = (torch.arange(T) < 5).expand(B, T), (torch.arange(T) >= 5).expand(B, T)
    sampler.start_batch(mask={"enc*": early, "*coder": late})
    columns = {
        name: {i % T for _ in range(20) for i in kept(sampler, name, torch.randn(B, T, 4))}
        for name in model
    }
    everywhere = set(range(T))
    assert columns == {"encoder": set(range(5)), "decoder": set(range(5, T)), "other": everywhere}


def test_facts_that_do_not_fit_are_not_used(make_layer):
    """A pooled input, or rows that are no tokens: sampled, without mask and without norms."""
    layer, sampler = make_layer(num_samples=8, max_tokens=T)
    sampler.start_batch(torch.arange(B), torch.zeros(B, T))
    for shape in [(30, 4), (B, 3, 5, 4), (B, T - 2, 4)]:
        assert len(kept(sampler, "fc", torch.ones(shape))) == round(
            0.3 * torch.ones(shape).numel() / 4
        )
    layer(torch.randn(30, 4)).sum().backward()
    assert layer.weight.grad.abs().max() > 0


def test_the_facts_of_a_batch_end_with_it(make_layer):
    _, sampler = make_layer()
    sampler.start_batch(mask=(torch.arange(T) < 5).expand(B, T))
    sampler.start_batch()
    x = torch.ones(B, T, 4)
    assert max(i % T for _ in range(5) for i in kept(sampler, "fc", x)) >= 5


def test_rows_are_counted(make_encoder):
    """The budget that was really spent: layers * rows, and 0.3 of each."""
    model, sampler = sampled(make_encoder())
    train(model, sampler, 2)
    assert sampler.rows_seen == 2 * 4 * B * T
    assert sampler.rows_kept == 2 * 4 * 12
    model.eval()(torch.randn(B, T, 4))
    assert sampler.rows_seen == 2 * 4 * B * T


def test_the_full_estimator_keeps_all(make_encoder):
    model = make_encoder()
    _, sampler = sampled(model, "full")
    assert sampler.sample_rows("layers.0.q", torch.ones(B, T, 4)) is None
    assert sampler.rows_kept == sampler.rows_seen == B * T


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        (None, torch.ones(5), ["(5,)", "give (batch, tokens)"]),
        (None, {"*": torch.ones(1, 2, 3)}, ["(1, 2, 3)", "give (batch, tokens)"]),
        (torch.ones(2, 2), None, ["(2, 2)", "give (batch,)"]),
        (torch.arange(3), torch.ones(2, 4), ["(3,)", "(2, 4)", "give (batch,) and"]),
    ],
)
def test_bad_facts_are_named(ids, mask, words, make_layer):
    _, sampler = make_layer()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        sampler.start_batch(ids, mask)
    assert all(word in str(error.value) for word in words), str(error.value)
