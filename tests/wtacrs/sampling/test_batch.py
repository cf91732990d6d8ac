"""Facts of a batch belong to its forward pass: whatever else is under way, and however it runs."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wtacrs import SamplingConfig, sample_linears_

B, T = 4, 10
EARLY = (torch.arange(T) < 5).expand(B, T)  # half of the rows each: with budget 0.5 the draw is
LATE = ~EARLY  # exact if the mask is right, and misses rows if it is another's
reentrant = pytest.mark.parametrize("use_reentrant", [False, True])


class Checkpointed(nn.Module):
    """An encoder whose blocks run under torch's checkpointing."""

    def __init__(self, encoder, use_reentrant):
        super().__init__()
        self.encoder, self.use_reentrant = encoder, use_reentrant

    def forward(self, x):
        x = self.encoder.embed(x)
        for block in self.encoder.layers:
            x = checkpoint(block, x, use_reentrant=self.use_reentrant)
        return self.encoder.head(x)


def batch(seed):
    return torch.randn(B, T, 4, generator=torch.Generator().manual_seed(seed))


def loss_of(model, x, mask):
    """Rows that are masked have no gradient."""
    return (model(x).square() * mask[..., None]).sum()


def gradients(model, total):
    model.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_equal(found, expected):
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture
def checkpointed(make_encoder, request):
    return Checkpointed(make_encoder(blocks=2), request.param)


in_two_ways = pytest.mark.parametrize("checkpointed", [False, True], indirect=True)


@in_two_ways
def test_two_batches_and_one_backward_pass(checkpointed, estimator):
    """Recomputation of the first meets the mask of the first, though the second came later."""
    work = [(batch(1), EARLY), (batch(2), LATE)]
    expected = gradients(checkpointed, sum(loss_of(checkpointed, *one) for one in work))
    sampler = sample_linears_(checkpointed, SamplingConfig(estimator=estimator, budget=0.5))
    for _ in range(2):  # the second time with gradient norms
        total = 0
        for x, mask in work:
            sampler.start_batch(mask=mask)
            total = total + loss_of(checkpointed, x, mask)
        assert_equal(gradients(checkpointed, total), expected)
    assert sampler.rows_kept < sampler.rows_seen


@in_two_ways
def test_batches_of_a_pipeline(checkpointed):
    """One forward, one backward: the backward pass of A runs when C is told of."""
    work = [(batch(seed), mask) for seed, mask in ((1, EARLY), (2, LATE), (3, EARLY), (4, LATE))]
    expected = [gradients(checkpointed, loss_of(checkpointed, *one)) for one in work]
    sampler = sample_linears_(checkpointed, SamplingConfig(budget=0.5))
    waiting = []
    for at in range(len(work) + 2):
        if at < len(work):
            sampler.start_batch(mask=work[at][1])
            waiting.append(loss_of(checkpointed, *work[at]))
        if at >= 2:
            assert_equal(gradients(checkpointed, waiting[at - 2]), expected[at - 2])


@in_two_ways
@pytest.mark.parametrize("told", ["first", "second"])
def test_a_batch_without_facts_counts_too(checkpointed, told, assert_unbiased):
    """Nobody tells of one of the two, and its rows are drawn from all of them."""
    work = [(batch(1), EARLY), (batch(2), torch.ones(B, T))]
    work = work if told == "first" else work[::-1]
    expected = gradients(checkpointed, sum(loss_of(checkpointed, *one) for one in work))
    config = SamplingConfig(estimator="uniform", budget=0.5, grad_norms="none")
    sampler = sample_linears_(checkpointed, config)
    estimates = []
    for _ in range(150):
        total = 0
        for at, (x, mask) in enumerate(work):
            if (at == 0) == (told == "first"):
                sampler.start_batch(mask=mask)
            total = total + loss_of(checkpointed, x, mask)
        found = gradients(checkpointed, total)
        estimates.append(torch.cat([found[name].flatten() for name in sorted(found)]))
    exact = torch.cat([expected[name].flatten() for name in sorted(expected)])
    assert_unbiased(torch.stack(estimates), exact, 1e-4)


def test_the_second_of_two_calls_has_no_facts(make_encoder, assert_unbiased):
    """Two towers of one model, told of once: the mask is that of the first call."""
    model = make_encoder()
    x, other = batch(1), batch(2)

    def total():
        return loss_of(model, x, EARLY) + loss_of(model, other, LATE)

    expected = gradients(model, total())
    sampler = sample_linears_(model, SamplingConfig(estimator="uniform", budget=0.5))
    estimates = []
    for _ in range(150):
        sampler.start_batch(mask=EARLY)
        found = gradients(model, total())
        estimates.append(torch.cat([found[name].flatten() for name in sorted(found)]))
    exact = torch.cat([expected[name].flatten() for name in sorted(expected)])
    assert_unbiased(torch.stack(estimates), exact, 1e-4)


def test_facts_end_though_an_output_is_not_used(make_layer):
    layers = nn.ModuleDict({name: nn.Linear(4, 3) for name in "qk"})
    sampler = make_layer(layers, estimator="uniform")[1]
    sampler.start_batch(mask=EARLY)
    x = batch(1)
    used, _ = layers["q"](x), layers["k"](x)
    (used * EARLY[..., None]).sum().backward()
    later = {i % T for _ in range(5) for i in sampler.sample_rows("fc.q", x).kept.indices.tolist()}
    assert max(later) >= 5


def test_a_draw_ends_with_its_backward_pass(make_layer):
    """A cached input that another layer reads in the next step is drawn from anew."""
    layers = nn.ModuleDict({name: nn.Linear(4, 3) for name in "qk"})
    sampler = make_layer(layers)[1]
    x = batch(1)
    drawn = [sampler.sample_rows("fc.q", x).kept.indices]
    layers["k"](x).sum().backward()  # reads the draw of q
    drawn.append(sampler.sample_rows("fc.k", x).kept.indices)
    sampler.start_batch()
    drawn.append(sampler.sample_rows("fc.q", x).kept.indices)
    assert len({tuple(indices.tolist()) for indices in drawn}) == 3


@reentrant
def test_norms_of_every_batch_in_flight_are_kept(make_encoder, use_reentrant):
    """By sample: two batches, one backward pass, both are in the table."""
    model = Checkpointed(make_encoder(), use_reentrant)
    sampler = sample_linears_(model, num_samples=8, max_tokens=T)
    total = 0
    for ids in (torch.arange(4), torch.arange(4, 8)):
        sampler.start_batch(ids)
        total = total + model(batch(1)).square().sum()
    total.backward()
    assert (sampler.state_dict()["grad_norms"]["table"] >= 0).all()


def test_a_pass_older_than_what_is_remembered_has_no_facts(make_encoder):
    """Rather none than another batch's: the mask of the last would hide rows of the first."""
    model = Checkpointed(make_encoder(), False)
    sampler = sample_linears_(model, SamplingConfig(estimator="uniform", budget=0.5))
    sampler.start_batch(mask=EARLY)
    first = loss_of(model, batch(1), torch.ones(B, T))
    for _ in range(70):
        sampler.start_batch(mask=EARLY)
        model(batch(2))
    first.backward()
    kept = sampler.passes._strange[1]
    assert kept.facts.mask is None


def test_the_swap_leaves_no_hook_behind(make_encoder):
    from wtacrs import restore_linears_

    model = make_encoder()
    sample_linears_(model)
    assert model._forward_pre_hooks
    restore_linears_(model)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


@pytest.mark.parametrize("inner", [False, True], ids=["inner not reentrant", "inner reentrant"])
def test_a_checkpoint_within_a_reentrant_one(inner, make_encoder, assert_unbiased):
    """Nodes that a recomputation makes are numbered after the batches that came later: no facts."""

    class Nested(Checkpointed):
        def forward(self, x):
            return checkpoint(super().forward, x.requires_grad_(), use_reentrant=True)

    model = Nested(make_encoder(), inner)
    work = [(batch(1), torch.ones(B, T)), (batch(2), LATE)]
    expected = gradients(model, sum(loss_of(model, *one) for one in work))
    config = SamplingConfig(estimator="uniform", budget=0.5, grad_norms="none")
    sampler = sample_linears_(model, config)
    estimates = []
    for _ in range(150):
        first = loss_of(model, *work[0])
        sampler.start_batch(mask=LATE)
        found = gradients(model, first + loss_of(model, *work[1]))
        estimates.append(torch.cat([found[name].flatten() for name in sorted(found)]))
    exact = torch.cat([expected[name].flatten() for name in sorted(expected)])
    assert_unbiased(torch.stack(estimates), exact, 1e-4)


def test_norms_of_more_batches_than_are_remembered(make_encoder):
    """They report by themselves, however many are in flight."""
    model = make_encoder()
    sampler = sample_linears_(model, num_samples=70, max_tokens=T)
    total = 0
    for sample in range(70):
        sampler.start_batch(torch.tensor([sample]))
        total = total + model(batch(1)[:1]).square().sum()
    total.backward()
    assert (sampler.state_dict()["grad_norms"]["table"] >= 0).all()
