"""Feed-forwards written into a block itself, beside its attention: which go through in parts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration

from tests.wtacrs.tiny import SamplingConfig, assert_same_step, batch_of, build, step
from wtacrs import apply_, sample_linears_
from wtacrs.layers import save_less_
from wtacrs.layers.chains import ELSEWHERE, MORE, NOT_BY_ROWS, NOT_CALLED
from wtacrs.layers.chunks import chunk_feed_forward_, restore_feed_forward_


class TokensMix(nn.ReLU):
    def forward(self, x):
        return super().forward(x) + x.mean(0, keepdim=True)


class Block(nn.Module):
    """Mixes tokens, then fc1, act and fc2, with what ``kind`` says between."""

    def __init__(self, kind="", act=None):
        super().__init__()
        self.kind, self.act = kind, act or nn.GELU()
        self.fc1, self.fc2, self.norm = nn.Linear(6, 12), nn.Linear(12, 6), nn.LayerNorm(6)

    def forward(self, x, mask):
        if self.kind == "asks for a mask":
            x = x * mask
        if self.kind == "elsewhere":
            x = self.act(x)
        h = self.norm(x + x.mean(1, keepdim=True))
        shape = h.shape
        h = self.fc1(h.flatten(0, 1) if self.kind == "rows" else h)
        if self.kind == "a function":
            h = torch.tanh(h)
        h = self.act(h)
        if self.kind == "twice":
            h = self.act(h)
        if self.kind == "a dropout":
            h = F.dropout(h, 0.1, self.training)
        return x + self.fc2(h).view(shape)


def ones():
    return torch.ones(3, 5, 6)


@pytest.mark.parametrize("estimator", ["wtacrs", "full"])
@pytest.mark.parametrize("kind", ["", "rows"])
def test_a_chain(kind, estimator):
    """In parts, exact, the last product left out of the second pass; and back."""
    torch.manual_seed(0)
    blocks, x = nn.ModuleList([Block(kind), Block(kind)]), torch.randn(3, 5, 6)
    blocks[1](blocks[0](x, ones()), ones()).square().sum().backward()
    expected = [p.grad for p in blocks.parameters()]
    blocks.zero_grad()
    if estimator != "full":
        sample_linears_(blocks, SamplingConfig(budget=1.0))
    left = {}
    assert chunk_feed_forward_(blocks, left) == ["0.fc2", "1.fc2"]
    assert left == {}
    for block in blocks:
        block.fc2.forward.least_parts = 3
        assert bool(block.fc2.forward.in_vain) == (estimator != "full")
    blocks[1](blocks[0](x, ones()), ones()).square().sum().backward()
    for p, gradient in zip(blocks.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)
    restore_feed_forward_(blocks)
    assert not any("forward" in vars(module) for module in blocks.modules())


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        *(("a function", MORE), ("a dropout", MORE), ("twice", MORE)),
        *(("asks for a mask", NOT_CALLED), ("elsewhere", ELSEWHERE)),
        ("tokens mix", NOT_BY_ROWS),
    ],
)
def test_what_is_more_stays_and_is_told(kind, why):
    blocks, left = nn.ModuleList([Block(kind, TokensMix() if kind == "tokens mix" else None)]), {}
    assert chunk_feed_forward_(blocks, left) == []
    assert left == {f"Block: {why}": ["0"]}


def test_an_activation_of_several_blocks_stays():
    act = nn.GELU()
    assert chunk_feed_forward_(nn.ModuleList([Block(act=act), Block(act=act)])) == []


def test_a_forward_that_was_replaced_stays():
    blocks = nn.ModuleList([Block()])
    blocks[0].act.forward = blocks[0].act.forward
    assert chunk_feed_forward_(blocks) == []


def bart(**config):
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 50}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0}
    sizes |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 16}
    return build(BartForConditionalGeneration, BartConfig(**sizes | config))


def test_draws_around_are_the_same():
    """Dropout before and after it, and the generator's state."""
    model = bart(dropout=0.2)
    save_less_(model, ["norm"])
    expected = step(model, batch_of(model))
    assert len(chunk_feed_forward_(model)) == 4
    assert_same_step(step(model, batch_of(model)), expected, 1e-5, 1e-6)


def test_a_dropout_that_begins_later():
    """What was seen when it was swapped must hold in each step."""
    model = bart()
    chunk_feed_forward_(model)
    model.model.encoder.layers[0].activation_dropout = 0.5
    with pytest.raises(RuntimeError, match="not followed by its output layer at once"):
        step(model, batch_of(model))


def test_the_report_tells_of_a_dropout_between():
    handle = apply_(bart(activation_dropout=0.1), "leanest")
    names = handle.report().left[f"BartDecoderLayer: {MORE}"]
    assert names == [f"model.decoder.layers.{i}" for i in range(2)]
    handle = apply_(copy.deepcopy(bart()), "leanest")
    assert not any("feed-forward" in reason for reason in handle.report().left)
