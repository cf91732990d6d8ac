"""Feed-forward sublayers in parts: unbiased where they sample, and the bytes of both passes."""

import pytest
import torch
from torch import nn

from tests.saved import SavedBytes
from tests.wtacrs.tiny import EXACT, sampled, tiny_bert, tiny_llama, tiny_t5
from wtacrs import SamplingConfig, sample_linears_
from wtacrs.layers import feed_forward, save_less_
from wtacrs.layers.chunks import chunk_feed_forward_
from wtacrs.measure.step import StorageTracker


@pytest.fixture
def _few_parts(monkeypatch):
    monkeypatch.setattr(feed_forward, "PART_BYTES", 900)


def calls_of(model):
    """The first block, how its feed-forward is called, and globs of its linear layers."""
    if hasattr(model, "bert"):
        block = model.bert.encoder.layer[0]
        call = lambda x: block.output.dense(block.intermediate(x))  # noqa: E731
        return block, call, ["0.intermediate.dense", "0.output.dense"]
    if hasattr(model, "encoder"):
        block = model.encoder.block[0]
        return block, lambda x: block.layer[1](x), ["0.layer.1.*.w[io]"]
    block = model.model.layers[0]
    return block, lambda x: block.mlp(x), ["0.mlp.*"]


@pytest.mark.usefixtures("_few_parts")
@pytest.mark.parametrize("make", [tiny_bert, tiny_t5, tiny_llama], ids=["bert", "t5", "llama"])
def test_unbiased(make, assert_unbiased):
    """Parts draw for themselves; all weights of a feed-forward sublayer, at budget 0.3."""
    block, call, include = calls_of(make(dropout=0.0))
    blocks = nn.ModuleList([block])
    x, dy = torch.randn(4, 10, 16), torch.randn(4, 10, 16)
    call(x).backward(dy)
    trained = [p for p in block.parameters() if p.dim() == 2 and p.grad is not None]
    exact = torch.cat([p.grad.flatten() for p in trained])
    sampler = sample_linears_(blocks, SamplingConfig(budget=0.3, include=include))
    save_less_(blocks, EXACT)
    chunk_feed_forward_(blocks)
    estimates = []
    for _ in range(120):
        blocks.zero_grad()
        call(x).backward(dy)
        estimates.append(torch.cat([p.grad.flatten() for p in trained]))
    assert_unbiased(torch.stack(estimates), exact, 1e-4)
    assert torch.stack(estimates).std(0).max() > 1e-2
    assert sampler.late == {*sampler.names}


@pytest.mark.parametrize(
    ("make", "kept"),
    [(tiny_llama, 0), (tiny_t5, 40 * (24 + 16) // 8 + 40 * 4)],
    ids=["llama", "t5"],
)
def test_saved_bytes(make, kept):
    """The input alone, for hooks; beside it bits of ReLU and dropout, and a norm a row."""
    model = sampled(make(), budget=0.5, chunked=True)
    _, call, _ = calls_of(model)
    x = torch.randn(4, 10, 16, requires_grad=True)
    with SavedBytes(model) as saved:
        call(x)
    assert saved.bytes == x.nbytes
    with StorageTracker() as tracker:
        y = call(x)
    assert tracker.current_bytes == y.nbytes + kept


@pytest.mark.usefixtures("_few_parts")
def test_nothing_of_the_width_is_whole():
    """In neither pass: the peak is a few parts, not (n, 4 d)."""
    blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 6))])
    x = torch.randn(100, 10, 6, requires_grad=True)
    peaks = []
    for chunked in (False, True):
        if chunked:
            chunk_feed_forward_(blocks)
            blocks.zero_grad()
        with StorageTracker([x, *blocks.parameters()]) as tracker:
            blocks[0](x).sum().backward()
        peaks.append(tracker.peak_bytes)
    assert blocks[0].forward.count(x) == 20
    assert peaks[1] < peaks[0] - 1000 * 12 * 4
