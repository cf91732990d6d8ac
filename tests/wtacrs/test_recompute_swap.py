"""What is recomputed, what of it is kept, and the swap: names, copies, fake tensors, errors."""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.saved import SavedBytes
from tests.wtacrs.tiny import (
    assert_same_step,
    batch_of,
    fake_batch_of,
    models,
    step,
    tiny_bert,
)
from wtacrs.measure.step import StorageTracker
from wtacrs.recompute import recompute_, restore_forward_

parts = pytest.mark.parametrize("what", ["attention", "block"])
NAMES = {
    ("bert", "attention"): [f"bert.encoder.layer.{i}.attention" for i in range(2)],
    ("bert", "block"): [f"bert.encoder.layer.{i}" for i in range(2)],
    ("t5", "attention"): [f"encoder.block.{i}.layer.0" for i in range(2)]
    + [f"decoder.block.{i}.layer.{j}" for i in range(2) for j in range(2)],
    ("t5", "block"): [f"{part}.block.{i}" for part in ("encoder", "decoder") for i in range(2)],
    ("llama", "attention"): [f"model.layers.{i}.self_attn" for i in range(2)],
    ("llama", "block"): [f"model.layers.{i}" for i in range(2)],
}


def recomputed(make, what):
    model = make()
    recompute_(model, what)
    return model


@parts
@models
def test_what_is_recomputed(make, what):
    """By name: each block, or its outermost modules of attention, norm and dropout included. The
    classes stay, by which FSDP and others find blocks."""
    model = make()
    keys, types = [*model.state_dict()], [type(m) for m in model.modules()]
    assert recompute_(model, "none") == []
    assert [type(m) for m in model.modules()] == types
    names = recompute_(model, what)
    assert names == NAMES[model.config.model_type, what]
    assert [n for n, m in model.named_modules() if "forward" in vars(m)] == names
    assert [type(m) for m in model.modules()] == types
    assert [*model.state_dict()] == keys


def test_saved_bytes_of_blocks(make_encoder):
    """Of each block (2, 10, 4) its input, to the byte; and nothing is alive that is not counted."""
    model = make_encoder(blocks=3)
    recompute_(model, "block")
    x = torch.randn(2, 10, 4)
    with SavedBytes(model) as saved:
        model(x)
    assert saved.bytes == (1 + 3 + 1) * x.nbytes  # embedding, blocks, head: the input of each
    with StorageTracker() as tracker:
        y = model(x)
        del y
        assert tracker.current_bytes == 0
        y = model(x)
    assert tracker.current_bytes == (3 + 1) * x.nbytes + y.nbytes


@parts
def test_hooks_can_free_the_input(what):
    """Offloading: what autograd has handed over, nothing else holds."""
    model = tiny_bert()
    recompute_(model, what)
    hidden = torch.randn(4, 10, 16)
    gone = weakref.ref(hidden)
    block = model.bert.encoder.layer[0]
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.shape, lambda shape: None):
        out = (block.attention if what == "attention" else block)(hidden)
    del hidden
    assert gone() is None
    assert out is not None


def test_saved_bytes_of_blocks_of_a_model():
    """Beside their inputs (4, 10, 16) only the mask, which all share."""
    model = tiny_bert()
    recompute_(model, "block")
    hidden = torch.randn(4, 10, 16, requires_grad=True)
    mask = torch.zeros(4, 1, 10, 10)
    with SavedBytes(model) as saved:
        model.bert.encoder(hidden, attention_mask=mask)
    assert saved.bytes == 2 * hidden.nbytes + mask.nbytes


def test_saved_bytes_of_attention():
    """Of a block what the feed-forward keeps stays; a (b, h, t, t) tensor is nowhere."""
    plain, model = tiny_bert(), recomputed(tiny_bert, "attention")
    counted = []
    for one in (plain, model):
        with SavedBytes(one) as saved:
            one(**batch_of(one))
        counted.append(saved)
    assert (4, 2, 10, 10) in [shape for shape, _ in counted[0].tensors]
    assert (4, 2, 10, 10) not in [shape for shape, _ in counted[1].tensors]
    assert counted[1].bytes < 0.5 * counted[0].bytes


@parts
@models
def test_copies(make, what):
    model = recomputed(make, what)
    expected = step(model)
    copied = copy.deepcopy(model)
    assert_same_step(step(copied), expected, 0)
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in model.parameters()}
    restore_forward_(copied)
    assert [type(m) for m in copied.modules()] == [type(m) for m in make().modules()]


@parts
@models
def test_on_fake_tensors(make, what):
    with FakeTensorMode() as mode:
        model = recomputed(make, what)
        step(model, fake_batch_of(model, mode))


def test_compiled_whole(make_encoder, exact_step):
    """torch.compile traces a checkpoint without leaving the graph."""
    model = make_encoder(blocks=2)
    expected = exact_step(model, None)
    recompute_(model, "block")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for name, gradient in exact_step(model, None, compiled).items():
        torch.testing.assert_close(gradient, expected[name])


def test_unknown():
    with pytest.raises(ValueError, match="'blocks' is unknown; choose none, attention, block"):
        recompute_(tiny_bert(), "blocks")


@pytest.mark.parametrize(
    ("model", "what", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "block", "Sequential has no module in a block.*: none"),
        (nn.Sequential(nn.ModuleList([nn.GELU()])), "attention", r"\.\.\.Attention.*blocks: GELU"),
    ],
)
def test_no_match(model, what, message):
    with pytest.raises(ValueError, match=message):
        recompute_(model, what)


@pytest.mark.filterwarnings("error")
def test_no_warning():
    assert recompute_(tiny_bert(), "block")


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")
def test_gradient_checkpointing_conflicts():
    model = tiny_bert()
    model.gradient_checkpointing_enable()
    message = "gradient checkpointing enabled already, .*'block' is in its place; disable it"
    with pytest.raises(ValueError, match=message):
        recompute_(model, "block")
    model.gradient_checkpointing_disable()
    assert recompute_(model, "block")
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=message):
        model(**batch_of(model))


@parts
def test_a_second_call(what):
    """Refused, and without effect."""
    model = tiny_bert()
    expected = step(model)
    recompute_(model, what)
    with pytest.raises(ValueError, match=r"recomputed already.*restore_forward_"):
        recompute_(model, what)
    assert_same_step(step(model), expected, 1e-6)


def test_blocks_that_are_the_model():
    """As ``sample_linears_`` takes them."""
    blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    assert recompute_(blocks, "block") == ["0", "1"]
