"""The first pass with sampled linears inside: it keeps nothing of theirs, and draws nothing."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from tests.saved import SavedBytes
from tests.wtacrs.calls import Calls
from tests.wtacrs.tiny import batch_of, step, tiny_bert, tiny_t5
from wtacrs import SamplingConfig, recompute, sample_linears_
from wtacrs.attention.interface import set_attention
from wtacrs.layers import save_less_
from wtacrs.measure.step import StorageTracker
from wtacrs.recompute import recompute_

DRAWS = torch.ops.aten.bernoulli_, torch.ops.aten.native_dropout  # from the global generator
bert_and_t5 = pytest.mark.parametrize("make", [tiny_bert, tiny_t5], ids=["bert", "t5"])


@bert_and_t5
def test_nothing_is_drawn_in_the_first_pass(make):
    """The generator moves in the backward pass only; layers inside are not told of as early."""
    model = make()
    sampler = sample_linears_(model, SamplingConfig(budget=0.5, exclude=["classifier", "lm_head"]))
    step(model)
    seen = sampler.rows_seen
    recompute_(model, "block")
    generator = sampler.generator(torch.device("cpu"))
    before = generator.get_state()
    loss = model(**batch_of(model)).loss
    assert torch.equal(generator.get_state(), before)
    loss.backward()
    assert not torch.equal(generator.get_state(), before)
    assert sampler.rows_seen == seen
    assert sampler.late == {*sampler.names}


def test_a_linear_after_a_recomputed_norm():
    """A norm at the end of the attention sublayer keeps its output, which the feed-forward then
    refers to; the attention keeps its input besides, and the last norm its output."""
    model = tiny_bert(dropout=0.0)
    sampler = sample_linears_(model, SamplingConfig(budget=0.5))
    save_less_(model, kinds=("norm",))
    recompute_(model, "attention")
    hidden = torch.randn(4, 10, 16, requires_grad=True)
    block = model.bert.encoder.layer[0]
    with SavedBytes(model) as saved:
        block(hidden)
    shapes = [shape for shape, _ in saved.tensors]
    assert shapes.count((4, 10, 16)) == 3
    assert "bert.encoder.layer.0.intermediate.dense" in sampler.late


class NormAttention(nn.Sequential):
    """A part by its name, with no layer that samples inside."""


def test_a_recomputed_norm_that_is_not_kept():
    """In a first pass a norm keeps nothing: a linear outside refers to no row of it in vain."""
    blocks = nn.ModuleList([NormAttention(nn.LayerNorm(4)), nn.Linear(4, 4)])
    sampler = sample_linears_(blocks, SamplingConfig(budget=0.5))
    save_less_(blocks)
    recompute_(blocks, "attention")
    blocks[1](blocks[0](torch.randn(2, 10, 4))).sum().backward()
    assert sampler.late == set()
    assert sampler.rows_kept == 10


def test_compiled(make_encoder, exact_step):
    """A checkpoint in which layers sample is left to run as it does without a compiler."""
    model = make_encoder(blocks=2)
    expected = exact_step(model, None)
    sampler = sample_linears_(model, SamplingConfig(budget=0.5))
    recompute_(model, "block")
    compiled = torch.compile(model, backend="aot_eager")
    for name, gradient in exact_step(model, sampler, compiled).items():
        torch.testing.assert_close(gradient, expected[name])
    assert sampler.late == {*sampler.names}


@bert_and_t5
@pytest.mark.parametrize("what", ["attention", "block"])
def test_a_mask_is_drawn_once(make, what, monkeypatch):
    """On a CPU, where that is slow: the second pass has the bits of the first."""
    model = make()
    save_less_(model)
    set_attention(model, "recompute")
    sample_linears_(model, SamplingConfig(budget=1.0))
    counted = []
    for change in (lambda: None, lambda: recompute_(model, what)):
        change()
        with Calls(DRAWS) as draws:
            step(model)
        counted.append(draws.count)
    assert counted[0] == counted[1] > 0


class Mixed(nn.Module):
    """A block with dropouts of ours and one that knows nothing of what is kept."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.first, self.second = nn.Dropout(0.5), nn.Dropout(0.3)

    def forward(self, x):
        x = nn.functional.dropout(self.first(self.a(x)), 0.4)
        return self.second(self.b(nn.functional.dropout(self.second(x), 0.2))) * x


@pytest.mark.parametrize("stops", [True, False], ids=["", "no early stop"])
@pytest.mark.parametrize("samples", [True, False])
def test_a_dropout_that_keeps_no_bits_is_replayed(samples, stops):
    """Between two of ours, which are not drawn again; of a graph that is retained twice."""
    blocks, x = nn.ModuleList([Mixed(), Mixed()]), torch.randn(2, 10, 4, requires_grad=True)

    def gradients():
        torch.manual_seed(5)
        blocks.zero_grad()
        x.grad = None
        with set_checkpoint_early_stop(stops):
            loss = blocks[1](blocks[0](x)).square().sum()
            loss.backward(retain_graph=True)
            loss.backward()
        return [p.grad.clone() for p in (x, *blocks.parameters())], torch.get_rng_state()

    expected, state = gradients()
    save_less_(blocks)
    if samples:
        sample_linears_(blocks, SamplingConfig(budget=1.0))
    recompute_(blocks, "block")
    mine, after = gradients()
    torch.testing.assert_close(mine, expected)
    assert torch.equal(after, state)
    assert not any("memo" in vars(module) for module in blocks.modules())


@pytest.mark.parametrize("slow", [True, False])
def test_bits_are_kept_where_to_draw_is_slow(slow, monkeypatch):
    """On a CPU a bit an element of (b, h, t, t), elsewhere nothing."""
    hidden, kept = torch.randn(4, 10, 16, requires_grad=True), []
    if not slow:
        monkeypatch.setattr(recompute, "SLOW_TO_DRAW", ())
    for dropout in (0.0, 0.1):
        model = tiny_bert(dropout=0.0, attention_probs_dropout_prob=dropout)
        set_attention(model, "recompute")
        recompute_(model, "attention")
        with StorageTracker(model.parameters()) as tracker:
            alive = model.bert.encoder.layer[0].attention(hidden)
            kept.append(tracker.current_bytes)
        del alive
    bits = 4 * 2 * 10 * 10 // 8
    assert kept[1] - kept[0] == (bits if slow else 0)
