"""Which feed-forward sublayers are found, which are refused, and the way back."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import OPTConfig, OPTForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from tests.wtacrs.tiny import (
    assert_same_step,
    batch_of,
    build,
    fake_batch_of,
    step,
    tiny_bert,
    tiny_llama,
    tiny_t5,
)
from wtacrs import SamplingConfig, sample_linears_
from wtacrs.layers import restore_layers_, save_less_
from wtacrs.layers.chunks import chunk_feed_forward_, restore_feed_forward_

NAMES = {
    tiny_bert: [f"bert.encoder.layer.{i}.output.dense" for i in range(2)],
    tiny_t5: [f"encoder.block.{i}.layer.1" for i in range(2)]
    + [f"decoder.block.{i}.layer.2" for i in range(2)],
    tiny_llama: [f"model.layers.{i}.mlp" for i in range(2)],
}
models = pytest.mark.parametrize("make", NAMES, ids=["bert", "t5", "llama"])


def sampled(model):
    sample_linears_(model, SamplingConfig(budget=1.0))
    save_less_(model)
    return model


@models
def test_what_is_chunked(make):
    """By name; classes, keys and generator stay; and back, a forward of a module included."""
    model = make()
    keys, types, state = [*model.state_dict()], [*map(type, model.modules())], torch.get_rng_state()
    assert chunk_feed_forward_(model) == NAMES[make]
    assert torch.equal(torch.get_rng_state(), state)
    assert [*model.state_dict()] == keys
    assert [*map(type, model.modules())] == types
    restore_feed_forward_(model)
    assert not any("forward" in vars(module) for module in model.modules())


class FeedForward(nn.Module):
    """d -> 2 d -> d and back, with what ``kind`` says between or after."""

    def __init__(self, kind="", width=12):
        super().__init__()
        self.up, self.down, self.kind = nn.Linear(6, width), nn.Linear(width, 6), kind
        self.norm, self.batch_norm = nn.LayerNorm(6), nn.BatchNorm1d(width)
        if kind != "batch statistics":
            del self.batch_norm

    def forward(self, x):
        h = torch.tanh(self.up(x))
        if self.kind == "tokens mix":
            h = h + h.mean(1, keepdim=True)
        if self.kind == "samples mix":
            h = h - h.mean(0, keepdim=True)
        if self.kind == "tokens are shifted":
            h = h.roll(1, 1)
        if self.kind == "batch statistics":
            h = self.batch_norm(h.flatten(0, -2)).view_as(h)
        if self.kind == "noise in training" and self.training:
            h = h + h.mean(1, keepdim=True)
        y = self.down(h)
        if self.kind == "tuple":
            return (y,)
        if self.kind == "norm after":
            return self.norm(y + x)
        if self.kind == "gate":
            return y * torch.sigmoid(y)
        return y


@pytest.mark.parametrize(
    "kind", ["tokens mix", "samples mix", "tokens are shifted", "batch statistics", "tuple"]
)
def test_what_is_not_row_by_row_stays(kind):
    assert chunk_feed_forward_(nn.ModuleList([FeedForward(kind)])) == []


@pytest.mark.parametrize("adapters", [False, True])
def test_what_a_block_holds_itself_is_told(adapters):
    """OPT's fc1 and fc2, under adapters, too; a model of modules alone is not told of."""
    sizes = {"hidden_size": 16, "ffn_dim": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=50, word_embed_proj_dim=16, **sizes))
    if adapters:
        model = get_peft_model(model, LoraConfig(target_modules=["fc1", "fc2"]))
    assert chunk_feed_forward_(model, left := {}) == []
    assert [len(names) for names in left.values()] == [2]
    chunk_feed_forward_(tiny_llama(), left := {})
    assert left == {}


def test_what_does_not_widen_stays():
    assert chunk_feed_forward_(nn.ModuleList([FeedForward(width=6), nn.Linear(6, 12)])) == []
    assert chunk_feed_forward_(nn.Sequential(FeedForward())) == []  # in no block


def test_two_of_a_class_are_not_alike_by_that():
    """Each kind is tried; a flag makes another kind."""
    blocks = nn.ModuleList([FeedForward(""), FeedForward("tokens mix"), FeedForward("")])
    assert chunk_feed_forward_(blocks) == ["0", "2"]


def test_a_forward_that_was_replaced_stays():
    blocks = nn.ModuleList([FeedForward()])
    blocks[0].forward = blocks[0].forward
    assert chunk_feed_forward_(blocks) == []


@pytest.mark.parametrize(("kind", "skips"), [("", True), ("norm after", False), ("gate", False)])
@pytest.mark.parametrize("estimator", ["wtacrs", "full"])
def test_where_the_last_product_is_read_it_is_computed_again(kind, skips, estimator):
    """A norm after it, say; a layer that is not sampled keeps its input and its product."""
    torch.manual_seed(0)
    blocks, x = nn.ModuleList([FeedForward(kind)]), torch.randn(2, 5, 6)
    blocks[0](x).square().sum().backward()
    expected = [p.grad for p in blocks.parameters()]
    blocks.zero_grad()
    if estimator != "full":
        sample_linears_(blocks, SamplingConfig(budget=1.0))
    assert chunk_feed_forward_(blocks) == ["0"]
    forward = blocks[0].forward
    forward.least_parts = 2
    if estimator != "full":
        assert bool(forward.in_vain) == skips
    blocks[0](x).square().sum().backward()
    for p, gradient in zip(blocks.parameters(), expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(p.grad, gradient)
    assert not getattr(blocks[0].down, "without_product", False)


class TwoDropouts(nn.Module):
    """One that is turned into bits, one that is not."""

    def __init__(self, p):
        super().__init__()
        self.up, self.down, self.dropout = nn.Linear(6, 12), nn.Linear(12, 6), nn.Dropout(p)

    def forward(self, x):
        return self.down(F.dropout(self.dropout(torch.tanh(self.up(x))), 0.5, self.training))


def test_what_a_second_pass_would_draw_elsewhere_stays():
    """Bits are not drawn again, so the other one would meet other numbers."""
    blocks = nn.ModuleList([TwoDropouts(0.5)])
    assert chunk_feed_forward_(copy.deepcopy(blocks)) == ["0"]
    save_less_(blocks)
    assert chunk_feed_forward_(blocks) == []


def test_a_pair_that_is_not_called_in_a_row():
    """The output layer must see what the intermediate one was given."""
    model = tiny_bert()
    chunk_feed_forward_(model)
    layer, x = model.bert.encoder.layer[0], torch.randn(4, 10, 16)
    with pytest.raises(RuntimeError, match=r"not followed by its output layer at once"):
        layer.output.dense(layer.intermediate(x) * 1.0)


@pytest.mark.parametrize("copied", ["deepcopy", "torch.save"])
@models
def test_copies(make, copied):
    """They make the same step, with parameters of their own, and have their own way back."""
    model = sampled(make())
    chunk_feed_forward_(model)
    expected = step(model)
    if copied == "deepcopy":
        mine = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        mine = torch.load(file, weights_only=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    assert_same_step(step(mine), expected, 0)
    restore_feed_forward_(mine)
    restore_layers_(mine)
    assert_same_step(step(mine), expected, 1e-4, 1e-5)


@models
def test_on_fake_tensors(make):
    """Tried on real ones all the same, so that a plan is of what will run."""
    with FakeTensorMode() as mode:
        model = make()
        assert chunk_feed_forward_(model) == NAMES[make]
        step(model, fake_batch_of(model, mode))


def test_in_bfloat16_it_is_tried_in_float32():
    model = tiny_llama().bfloat16()
    assert chunk_feed_forward_(model) == NAMES[tiny_llama]
    assert step(model)[1]["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16


def test_a_loss_on_the_router():
    """A hook takes the logits inside, which must not have come out of a part as numbers."""
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 50, "num_experts": 4}
    experts = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    router = {"num_experts_per_tok": 2, "router_aux_loss_coef": 1.0, "output_router_logits": True}
    config = Qwen2MoeConfig(**sizes, **experts, **router, attn_implementation="eager")
    model, batch = build(Qwen2MoeForCausalLM, config), batch_of(tiny_llama())
    expected = step(model, batch)
    chunk_feed_forward_(model)
    assert_same_step(step(model, batch), expected, 1e-4, 1e-5)
