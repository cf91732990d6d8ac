"""Under torch.compile: one graph, every draw made once, the gradients those of eager mode."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.wtacrs.tiny import assert_same_step, batch_of, step, tiny_bert, tiny_llama
from wtacrs import MemoryConfig, SamplingConfig, apply_, sample_linears_
from wtacrs.layers import save_less_
from wtacrs.sampling import draws

EARLY, LATE = MemoryConfig(), MemoryConfig(lossless=("norm", "dropout"))
memories = pytest.mark.parametrize(
    "memory", [EARLY, LATE, "lean", "leanest"], ids=["early", "late", "lean", "leanest"]
)
bert_and_llama = pytest.mark.parametrize("make", [tiny_bert, tiny_llama], ids=["bert", "llama"])


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model, **how):
    return torch.compile(model, **{"backend": "aot_eager", "fullgraph": True} | how)


@memories
@bert_and_llama
def test_no_graph_break(make, memory):
    model = make()
    apply_(model, memory)
    batch = batch_of(model)
    explained = torch._dynamo.explain(lambda: model(**batch).loss)()
    assert (explained.graph_break_count, explained.graph_count) == (0, 1)


@pytest.mark.parametrize("memory", [EARLY, LATE, "lean"], ids=["early", "late", "lean"])
def test_gradients_are_exact_where_all_rows_that_count_are_kept(memory):
    """30 rows are kept, and 29 have a gradient: the rows are drawn, and yet nothing is lost."""
    expected = step(tiny_bert(dropout=0))
    model = tiny_bert(dropout=0, problem_type="single_label_classification")
    config = memory if isinstance(memory, MemoryConfig) else MemoryConfig()
    budget = SamplingConfig(budget=0.75)
    given = memory if isinstance(memory, str) else MemoryConfig(budget, config.lossless)
    sampler = apply_(model, given, **({"budget": 0.75} if given is memory else {})).sampler
    forward = compiled(model)
    for _ in range(2):  # the second one knows gradient norms
        model.zero_grad()
        loss = forward(**batch_of(model)).loss
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert_same_step((loss.detach(), gradients, expected[2]), expected, 1e-4, 1e-5)
    assert sampler.late or sampler.rows_kept


def test_budget_one_is_the_plain_model():
    model, expected = tiny_llama(dropout=0), step(tiny_llama(dropout=0))
    apply_(model, MemoryConfig(SamplingConfig(budget=1.0), LATE.lossless))
    loss = compiled(model)(**batch_of(model)).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same_step((loss.detach(), gradients, expected[2]), expected, 1e-4, 1e-5)


class Readers(nn.Module):
    """A norm, then two linears that read its output; the second after a change in place or not."""

    def __init__(self, changes):
        super().__init__()
        self.embed, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)
        self.changes = changes

    def forward(self, x):
        x = self.norm(self.embed(x))
        y = self.a(x)
        if self.changes:
            x.add_(1)
        return y + self.b(x)


@pytest.fixture
def count_draws(monkeypatch):
    """The names of the estimators that have drawn."""
    drawn, draw = [], draws.draw

    def counting(estimator, *arguments):
        drawn.append(estimator)
        return draw(estimator, *arguments)

    monkeypatch.setattr(draws, "draw", counting)
    return drawn


@pytest.mark.parametrize(
    ("changes", "late", "each"), [(False, False, 1), (True, False, 2), (False, True, 2)]
)
def test_draws_of_a_step(changes, late, each, count_draws):
    """Early one for each input, which a change in place makes another one; late one for each
    layer. None while it is traced, and as many in each step, whether a graph is retained or not."""
    model = Readers(changes)
    sample_linears_(model, SamplingConfig(include=["a", "b"]))
    if late:
        save_less_(model)
    forward, x = compiled(model), torch.randn(2, 10, 4)
    for taken in range(1, 4):
        loss = forward(x).sum()
        loss.backward()
        assert len(count_draws) == taken * each


def test_layers_compiled_one_by_one_draw_for_themselves(count_draws):
    """What is noted on an input while one is traced says nothing to the other, which may be given
    that input changed."""
    layers = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
    sample_linears_(layers, SamplingConfig(include=["*"]))
    x = torch.randn(2, 10, 4)
    for taken, layer in enumerate(layers, start=1):
        layer.compile(backend="aot_eager", fullgraph=True)
        layer(x).sum().backward()
        assert len(count_draws) == taken


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("estimator", ["wtacrs", "pps"])
def test_unbiased(estimator, late, assert_unbiased):
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)).requires_grad_(False)
    model[1].weight.requires_grad_()
    x, dy = torch.randn(4, 10, 4, requires_grad=True), torch.randn(4, 10, 3)
    exact = dy.flatten(0, 1).T @ model[0](x).detach().flatten(0, 1)
    sample_linears_(model, SamplingConfig(estimator, include=["*"], grad_norms="none"))
    if late:
        save_less_(model)
    forward, estimates = compiled(model), []
    for _ in range(200):
        model.zero_grad()
        forward(x).backward(dy)
        estimates.append(model[1].weight.grad)
    assert_unbiased(torch.stack(estimates), exact, 1e-6)


@pytest.mark.parametrize(("estimator", "whole"), [("pps", True), ("crs", False)])
def test_the_same_steps_as_in_eager_mode(estimator, whole, make_encoder):
    """To rounding, over steps with facts and history, since both draw the same numbers; the model
    compiled as a whole, or one block of it."""
    x, mask = torch.randn(3, 10, 4), (torch.arange(10) < 7).expand(3, 10)
    results = []
    for mode in ("eager", "compiled"):
        torch.manual_seed(1)
        model = make_encoder(blocks=2)
        config = SamplingConfig(estimator)
        sampler = sample_linears_(model, config, num_samples=6, max_tokens=10)
        forward = compiled(model) if whole and mode == "compiled" else model
        if not whole and mode == "compiled":
            model.layers[0].compile(backend="aot_eager", fullgraph=True)
        for first in (0, 3, 0):
            sampler.start_batch(torch.arange(first, first + 3), mask)
            (forward(x).square() * mask[..., None]).sum().backward()
        state = sampler.state_dict()
        results.append(([p.grad for p in model.parameters()], state["grad_norms"]["table"]))
        assert 0 < sampler.rows_kept < sampler.rows_seen
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_a_copy_is_another_sampler(make_encoder):
    model = make_encoder()
    sampler = sample_linears_(model, SamplingConfig())
    forward, other = compiled(model), copy.deepcopy(model)
    for call in (forward, compiled(other)):
        call(torch.randn(2, 10, 4)).sum().backward()
    assert sampler.rows_seen == other.layers[0].q.sampler.rows_seen > 0


def test_layers_in_a_checkpoint_pick_late(make_encoder, exact_step):
    """What is computed again is there in the backward pass; a draw must not be made again."""
    model = make_encoder(blocks=2)
    expected = exact_step(model, None)
    sampler = sample_linears_(model, SamplingConfig(budget=0.5))

    def forward(x):
        x = model.embed(x)
        for layer in model.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return model.head(x)

    for name, gradient in exact_step(model, sampler, compiled(forward)).items():
        torch.testing.assert_close(gradient, expected[name])
    assert (sampler.late, sampler.rows_seen) == ({*sampler.names}, 0)
