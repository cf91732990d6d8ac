"""The first pass with sampled linears inside: it keeps nothing of theirs, and draws nothing."""

import pytest
import torch
from torch import nn

from tests.wtacrs.tiny import batch_of, step, tiny_bert, tiny_t5
from wtacrs import SamplingConfig, sample_linears_
from wtacrs.layers import save_less_
from wtacrs.measure.step import SavedBytes
from wtacrs.recompute import recompute_

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
