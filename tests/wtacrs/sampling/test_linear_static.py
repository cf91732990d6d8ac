"""Where a forward pass may run: recomputed, on fake tensors, compiled, without a stop on a GPU."""

import functools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.checkpoint import checkpoint

from wtacrs import SamplingConfig, restore_linears_, sample_linears_
from wtacrs.sampling.select import draw

reentrant = pytest.mark.parametrize("use_reentrant", [False, True])


def recomputed(model, use_reentrant):
    """The forward pass of the encoder with each block under activation checkpointing."""

    def forward(x):
        x = model.embed(x)
        for layer in model.layers:
            x = checkpoint(layer, x, use_reentrant=use_reentrant)
        return model.head(x)

    return forward


def assert_same(gradients, expected):
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected[name], msg=lambda m, name=name: f"{name}: {m}"
        )


@reentrant
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_checkpointing_gives_the_same_gradients(
    estimator, use_reentrant, autocast, make_encoder, exact_step
):
    """Sampled and recomputed against plain and not, twice: the second step knows gradient norms."""
    model = make_encoder(blocks=2)
    context = torch.autocast("cpu", torch.bfloat16, enabled=autocast)

    def call(forward, x):
        with context:
            return forward(x)

    expected = exact_step(model, None, functools.partial(call, model))
    sampler = sample_linears_(model, SamplingConfig(estimator=estimator, budget=0.5))
    forward = functools.partial(call, recomputed(model, use_reentrant))
    for _ in range(2):
        assert_same(exact_step(model, sampler, forward), expected)
    assert 0 < sampler.rows_kept < sampler.rows_seen


@reentrant
def test_checkpointing_records_each_norm_once(use_reentrant, make_encoder, exact_step, monkeypatch):
    """By input: q stands for q, k and v. They are the norms of a run that recomputes nothing."""
    model = make_encoder(blocks=2)
    recorded = []
    for call in (model, recomputed(model, use_reentrant)):
        sampler = sample_linears_(model.layers, SamplingConfig(include=["*"], budget=0.5))
        norms = {}
        observe = sampler.grad_norms.observe

        def take(names, values, *facts, norms=norms, observe=observe):
            assert norms.keys().isdisjoint(names), f"one of {names} was recorded twice"
            norms.update(zip(names, values, strict=True))
            observe(names, values, *facts)

        monkeypatch.setattr(sampler.grad_norms, "observe", take)
        exact_step(model, sampler, call)
        sampler.settle()
        recorded.append(norms)
        restore_linears_(model.layers)
    assert sorted(recorded[0]) == ["0.o", "0.q", "1.o", "1.q"]
    assert_same(recorded[1], recorded[0])


@reentrant
def test_checkpointing_stays_unbiased(unbiased, use_reentrant, make_layer, assert_unbiased):
    """The recomputed forward pass draws other rows than the first one; they go together."""
    layer, _ = make_layer(estimator=unbiased, grad_norms="none")
    x, dy = torch.randn(40, 4, requires_grad=True), torch.randn(40, 3)
    estimates = []
    for _ in range(150):
        layer.weight.grad = None
        checkpoint(layer, x, use_reentrant=use_reentrant).backward(dy)
        estimates.append(layer.weight.grad)
    assert_unbiased(torch.stack(estimates), dy.T @ x.detach(), 1e-6)


def test_draws_on_fake_tensors(estimator):
    """FakeTensorMode raises at any look at a value, so nothing here waits for a device."""
    with FakeTensorMode():
        p = torch.ones(40)
        indices, scales = draw(estimator, p, 12, torch.Generator())
        assert (indices.shape, indices.dtype, scales.shape) == ((12,), torch.int64, (12,))
        with pytest.raises(DataDependentOutputException):
            p.sum().item()  # the guard is on


def test_trains_on_fake_tensors(estimator, make_encoder):
    """Two steps, the second with gradient norms, and a mask: shapes only, no value is asked for."""
    with FakeTensorMode():
        model = make_encoder()
        sampler = sample_linears_(model, SamplingConfig(estimator=estimator))
        for _ in range(2):
            sampler.start_batch(mask=torch.ones(2, 10))
            model(torch.randn(2, 10, 4)).sum().backward()
        rows = sampler.sample_rows("layers.0.q", torch.randn(2, 10, 4))
    assert rows.rows.shape == (6, 4)
    assert model.layers[0].q.weight.grad.shape == (4, 4)


def test_a_compiled_model_trains(exact_step):
    """Dynamo and AOTAutograd, without code generation: the right gradients, and it is sampled."""
    model = nn.Sequential(nn.Linear(4, 4))
    expected = exact_step(model, None)
    sampler = sample_linears_(model, SamplingConfig(include=["*"], budget=0.5))
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        assert_same(exact_step(model, sampler, compiled), expected)
    assert 0 < sampler.rows_kept < sampler.rows_seen


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_never_waits_for_the_gpu(estimator, make_encoder):
    model = make_encoder().cuda()
    sampler = sample_linears_(model, SamplingConfig(estimator=estimator))
    x, mask = torch.randn(2, 10, 4, device="cuda"), torch.ones(2, 10, device="cuda")

    def step():
        sampler.start_batch(mask=mask)
        model(x).sum().backward()

    step()  # handles, generators and kernels are made
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert model.layers[0].q.weight.grad.isfinite().all()
