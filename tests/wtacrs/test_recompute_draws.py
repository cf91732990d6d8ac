"""The first pass with sampled linears inside: it keeps nothing, and draws nothing."""

import copy

import pytest
import torch

from tests.wtacrs.tiny import batch_of, step, tiny_bert, tiny_t5
from wtacrs import SamplingConfig, sample_linears_
from wtacrs.layers import save_less_
from wtacrs.measure.step import SavedBytes
from wtacrs.recompute import recompute_

bert_and_t5 = pytest.mark.parametrize("make", [tiny_bert, tiny_t5], ids=["bert", "t5"])


@bert_and_t5
def test_nothing_is_drawn_in_the_first_pass(make):
    """The generators move in the backward pass only; all rows but the head's are counted there."""
    model = make()
    sampler = sample_linears_(model, SamplingConfig(budget=0.5, exclude=["classifier", "lm_head"]))
    step(model)
    recompute_(model, "block")
    before, seen = copy.deepcopy(sampler.state_dict()["generators"]["states"]), sampler.rows_seen
    loss = model(**batch_of(model)).loss
    after = sampler.state_dict()["generators"]["states"]
    assert [*after] == ["cpu"]
    assert torch.equal(after["cpu"], before["cpu"])
    assert sampler.rows_seen == seen
    loss.backward()
    assert not torch.equal(sampler.state_dict()["generators"]["states"]["cpu"], before["cpu"])
    assert sampler.rows_seen == 2 * seen


def test_the_output_of_a_recomputed_norm_is_sampled():
    """A norm in the attention sublayer keeps its output, for which the feed-forward refers to it;
    in a first pass it keeps nothing, so that there is nothing to refer to."""
    model = tiny_bert(dropout=0.0)
    sample_linears_(model, SamplingConfig(budget=0.5))
    save_less_(model, kinds=("norm",))
    recompute_(model, "attention")
    hidden = torch.randn(4, 10, 16, requires_grad=True)
    block = model.bert.encoder.layer[0]
    with SavedBytes(model) as saved:
        block(hidden)
    shapes = [shape for shape, _ in saved.tensors]
    assert shapes.count((20, 16)) == 1  # what the feed-forward's first layer reads
    assert shapes.count((4, 10, 16)) == 2  # the attention's input, the last norm's output


def test_compiled(make_encoder, exact_step):
    """A checkpoint in which layers sample is left to run as it does without a compiler."""
    model = make_encoder(blocks=2)
    expected = exact_step(model, None)
    sampler = sample_linears_(model, SamplingConfig(budget=0.5))
    recompute_(model, "block")
    compiled = torch.compile(model, backend="aot_eager")
    for name, gradient in exact_step(model, sampler, compiled).items():
        torch.testing.assert_close(gradient, expected[name])
    assert 0 < sampler.rows_kept < sampler.rows_seen
