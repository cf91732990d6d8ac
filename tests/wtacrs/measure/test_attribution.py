"""Who holds what, on models where it is known; totals to the byte."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification

from wtacrs import SamplingConfig, sample_linears_
from wtacrs.attention.interface import set_attention
from wtacrs.layers import save_less_
from wtacrs.measure.attribution import attribute
from wtacrs.measure.step import measure_step
from wtacrs.measure.watch import BEFORE, OUTPUT, UNSEEN
from wtacrs.recompute import recompute_

HALF = SamplingConfig(include=["*"], budget=0.5, grad_norms="none")


class Mlp(nn.Module):
    """(8, 4) -> fc1 -> (8, 6) -> act -> fc2 -> (8, 2), summed."""

    def __init__(self, act):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(4, 6), act, nn.Linear(6, 2)

    def forward(self, x):
        return SimpleNamespace(loss=self.fc2(self.act(self.fc1(x))).sum())


def tiny_bert(**config):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    sizes |= {"num_hidden_layers": 2, "vocab_size": 50, "attn_implementation": "eager"}
    model = BertForSequenceClassification(BertConfig(**sizes | config)).train()
    ids = torch.ones(4, 10, dtype=torch.int64)
    mask = torch.ones_like(ids)
    return model, {"input_ids": ids, "attention_mask": mask, "labels": ids[:, 0] % 2}


def row_of(found, made_in, operation):
    (row,) = [r for r in found.rows if (r.made_in, r.operation) == (made_in, operation)]
    return row


def layer_of(found, pattern):
    (layer,) = [layer for layer in found.sampled if layer.pattern == pattern]
    return layer


def test_rows_of_a_small_model():
    """GELU keeps its input, fc2 its own; x was there before, the loss is returned."""
    found = attribute(Mlp(nn.GELU()), {"x": torch.ones(8, 4)})
    rows = [(r.made_in, r.operation, r.count, r.bytes, r.held_by) for r in found.rows]
    assert rows == [
        ("act", "gelu", 1, 192, ("fc2 (Addmm)",)),
        ("fc1", "addmm", 1, 192, ("act (Gelu)",)),
        ("(Mlp)", "sum", 1, 4, (OUTPUT,)),
    ]
    assert found.bytes == 388
    assert [row.share for row in found.rows] == [192 / 388, 192 / 388, 4 / 388]
    assert found.sampled == ()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("saving", ["nothing", "lossless", "checkpoint"])
def test_totals_are_the_saved_bytes(fake, saving):
    """On a BERT, each storage once: neither parameters nor the batch, and nothing is left out."""
    with FakeTensorMode() if fake else torch.enable_grad():
        model, batch = tiny_bert()
        if saving == "lossless":
            save_less_(model)
        if saving == "checkpoint":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        sample_linears_(model, SamplingConfig(budget=0.5))
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
        saved = measure_step(model, optimizer, batch).saved_bytes
        found = attribute(model, batch)
    assert found.bytes == saved == sum(row.bytes for row in found.rows)
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    sizes = [row.bytes for row in found.rows]
    assert sizes == sorted(sizes, reverse=True)


def test_rows_of_a_bert():
    model, batch = tiny_bert()
    found = attribute(model, batch)
    layer = "bert.encoder.layer.*"
    norm = row_of(found, f"{layer}.attention.output.LayerNorm", "native_layer_norm")
    # Output (40, 16), mean and rstd (40, 1), of two layers.
    assert (norm.count, norm.bytes) == (6, 2 * 4 * (640 + 40 + 40))
    assert norm.held_by == (
        f"{layer}.attention.output.LayerNorm (NativeLayerNorm)",
        f"{layer}.intermediate.dense (Addmm)",
    )
    softmax = row_of(found, f"{layer}.attention.self", "_softmax")
    assert softmax.bytes == 2 * 4 * (4 * 2 * 10 * 10)
    # What a dropout keeps is named for the draw, not for the empty tensor it is drawn into.
    mask = row_of(found, f"{layer}.output.dropout", "bernoulli_")
    assert (mask.bytes, mask.held_by) == (2 * 4 * 640, (f"{layer}.output.dropout (Mul)",))
    assert not any(row.operation.startswith("empty") for row in found.rows)


@pytest.mark.parametrize(("act", "node"), [(nn.ReLU(), "Relu"), (nn.GELU(), None)])
def test_who_holds_the_input_of_a_sampled_layer(act, node):
    """ReLU keeps its output, which is fc2's input. GELU keeps its input: fc2's goes."""
    model = Mlp(act)
    sample_linears_(model, HALF)
    found = attribute(model, {"x": torch.ones(8, 4)})
    first = layer_of(found, "fc1")
    assert (first.input_bytes, first.held_by) == (128, (BEFORE,))
    if node is None:
        assert [layer.pattern for layer in found.sampled] == ["fc1"]
    else:
        second = layer_of(found, "fc2")
        assert (second.layers, second.input_bytes) == (("fc2",), 192)
        assert (second.held_by, second.keeps_from) == ((f"act ({node})",), ("fc2",))
        assert second.own_bytes >= 4 * 6 * 4  # the rows, half of 8


class Gated(nn.Module):
    """A sampled layer beside a GELU and a LayerNorm that all read x."""

    def __init__(self):
        super().__init__()
        self.embed, self.up = nn.Linear(4, 6), nn.Linear(6, 6)
        self.act, self.norm = nn.GELU(), nn.LayerNorm(6)

    def forward(self, x):
        x = self.embed(x)
        return SimpleNamespace(loss=(self.act(x) * self.up(x) + self.norm(x)).sum())


def test_norm_and_gelu_that_hold_the_input_of_a_sampled_layer():
    model = Gated()
    sample_linears_(model, SamplingConfig(include=["up"], budget=0.5))
    found = attribute(model, {"x": torch.ones(8, 4)})
    assert layer_of(found, "up").held_by == ("act (Gelu)", "norm (NativeLayerNorm)")


def test_an_input_that_is_gone_is_held_by_nobody():
    """GELU saves x, but its output is not used: its node goes, and x after it."""
    model = Gated()
    model.forward = lambda x: (model.act(h := model.embed(x)), model.up(h))[1].sum()
    sample_linears_(model, SamplingConfig(include=["up", "embed"], budget=0.5))
    found = attribute(model, {"x": torch.ones(8, 4)})
    assert [layer.pattern for layer in found.sampled] == ["embed"]


def test_sampled_layers_of_a_bert():
    """ReLU's output feeds the last layer; the key and the value take the rows of the query."""
    model, batch = tiny_bert(hidden_act="relu")
    sample_linears_(model, SamplingConfig(budget=0.5))
    found = attribute(model, batch)
    block = "bert.encoder.layer.*"
    names = {"output.dense", "attention.self.key", "attention.self.value"}
    assert {layer.pattern for layer in found.sampled} == {f"{block}.{name}" for name in names}
    held = found.sampled[0]
    assert held.pattern == f"{block}.output.dense"
    assert held.layers == tuple(f"bert.encoder.layer.{i}.output.dense" for i in range(2))
    assert held.held_by == (f"{block}.intermediate.intermediate_act_fn (Relu)",)
    assert held.input_bytes == 2 * 40 * 24 * 4
    for name in ("key", "value"):
        layer = layer_of(found, f"{block}.attention.self.{name}")
        assert (layer.own_bytes, layer.held_by) == (0, ())
        assert layer.keeps_from == (f"{block}.attention.self.query",)


def test_a_layer_that_is_not_sampled_holds_the_input_of_those_that_are():
    model, batch = tiny_bert()
    sample_linears_(model, SamplingConfig(budget=0.5, exclude=["*.key"]))
    found = attribute(model, batch)
    block = "bert.encoder.layer.*.attention.self"
    assert layer_of(found, f"{block}.query").held_by == (f"{block}.key (Addmm)",)


def test_a_recomputed_block_holds_its_input():
    """Though the Functions within it make nodes of their own before it saves."""
    model, batch = tiny_bert()
    set_attention(model, "recompute")
    recompute_(model, "block")
    found = attribute(model, batch)
    block = "bert.encoder.layer.*"
    held = row_of(found, f"{block}.output.LayerNorm", "native_layer_norm")
    assert held.held_by == (f"{block} (checkpoint)", "bert.pooler.dense (Addmm)")


def test_sampled_layers_that_refer_to_an_input_are_not_why_it_stays():
    model, batch = tiny_bert(hidden_dropout_prob=0.0)
    save_less_(model, kinds=("norm",))
    sample_linears_(model, SamplingConfig(budget=0.5))
    found = attribute(model, batch)
    queries = [layer for layer in found.sampled if layer.pattern.endswith("query")]
    norms = {"bert.embeddings.LayerNorm", "bert.encoder.layer.*.output.LayerNorm"}
    assert {layer.held_by for layer in queries} == {(f"{n} (LayerNormFunction)",) for n in norms}


class Checkpointed(nn.Module):
    """x -> exp -> checkpointed tanh, and a number of its own, all in one forward."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.kept = None

    def forward(self, x):
        h = (x * self.scale).exp()
        self.kept = h.detach() + 1
        return SimpleNamespace(loss=checkpoint(torch.tanh, F.relu(h), use_reentrant=False).sum())


def test_checkpointing_and_python():
    """The checkpoint saves where it starts; what only an attribute holds, no hook has seen."""
    found = attribute(Checkpointed(), {"x": torch.ones(8, 4)})
    held = {row.operation: row.held_by for row in found.rows}
    assert held == {
        "exp": ("(Checkpointed) (Exp)",),
        "relu": ("(Checkpointed) (Relu)", "(Checkpointed) (checkpoint)"),
        "add": (UNSEEN,),
        "sum": (OUTPUT,),
    }


def test_no_hook_stays_behind():
    model = Mlp(nn.ReLU())
    sample_linears_(model, HALF)
    before = [(m._forward_hooks.copy(), m._forward_pre_hooks.copy()) for m in model.modules()]
    with pytest.raises(ValueError, match="no forward pass"):
        attribute(model, lambda: None)
    with pytest.raises(RuntimeError, match="shape"):
        attribute(model, {"x": torch.ones(8, 3)})
    after = [(m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
    assert after == before


def test_as_text():
    model = Mlp(nn.ReLU())
    sample_linears_(model, HALF)
    lines = str(attribute(model, {"x": torch.ones(1 << 16, 4)})).splitlines()
    assert lines[0].startswith(" MiB  share  count  operation ")
    assert lines[1].startswith("1.50  42.9%      1  relu ")
    assert lines[1].endswith("act (Relu)")
    assert any("fc2" in line and line.endswith("act (Relu)") for line in lines[4:])
