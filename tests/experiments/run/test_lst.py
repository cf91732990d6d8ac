"""Ladder Side-Tuning: what is trained, what is kept, how the side begins; that it learns."""

import copy
import math

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
)

from tests.experiments.run.test_text2text import tiny_t5
from tests.saved import SavedBytes
from wtacrs_experiments.config import TuningConfig
from wtacrs_experiments.config.known import LADDERS
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.run import tuning
from wtacrs_experiments.run.lst import ladder_
from wtacrs_experiments.run.pruning import SIZES

LST = TuningConfig(name="lst", reduction=4)
WIDE, HEADS, INNER, LAYERS = 32, 2, 80, 3
ENCODER = {
    **{"vocab_size": 50, "hidden_size": WIDE, "intermediate_size": INNER},
    **{"num_hidden_layers": LAYERS, "num_attention_heads": HEADS},
}
T5_SIZES = {
    **{"d_model": WIDE, "d_kv": WIDE // HEADS, "d_ff": INNER, "dropout_rate": 0.1},
    **{"num_layers": LAYERS, "num_decoder_layers": 2, "num_heads": HEADS},
}
MAKERS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**ENCODER)),
    "mpnet": lambda: MPNetForSequenceClassification(MPNetConfig(**ENCODER)),
    "t5": lambda: tiny_t5(**T5_SIZES),
}
SIDE = ("side.", "enter.", "down.", "up.")
PRUNED = {  # layers that are looked at
    "t5": [
        *("layer.0.SelfAttention.q", "layer.0.SelfAttention.o", "layer.1.DenseReluDense.wi"),
        *("layer.1.DenseReluDense.wo", "layer.0.layer_norm"),
    ],
    "bert": [
        *("attention.self.query", "attention.output.dense", "intermediate.dense"),
        *("output.dense", "output.LayerNorm"),
    ],
    "mpnet": [
        *("attention.attn.q", "attention.attn.o", "intermediate.dense"),
        *("output.dense", "output.LayerNorm"),
    ],
}
each_type = pytest.mark.parametrize("kind", MAKERS)


def made(kind, tuned=True):
    torch.manual_seed(0)
    model = MAKERS[kind]().train()
    if tuned:
        tuning.tune(model, LST)
    return model


def batch(kind):
    torch.manual_seed(1)
    ids = torch.randint(3, 50, (4, 10))
    mask = (torch.arange(10) < torch.tensor([[10], [4], [7], [10]])).long()
    labels = torch.randint(3, 50, (4, 2)) if kind == "t5" else torch.tensor([0, 1, 1, 0])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def rungs(model):
    return {name: m for name, m in model.named_modules() if hasattr(m, "gate")}


@each_type
def test_side_and_head_are_trained_and_nothing_else(kind):
    model = made(kind)
    assert len(rungs(model)) == (LAYERS + 2 if kind == "t5" else LAYERS)
    for name, parameter in model.named_parameters():
        of_ladder = any(f".{part}" in name for part in (*SIDE, "gate")) and ".backbone" not in name
        up = name.startswith("decoder.final_layer_norm.")
        assert parameter.requires_grad == (of_ladder or up or name.startswith("classifier")), name
    model(**batch(kind)).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad and "bias" not in name:
            assert parameter.grad.abs().max() > 0, name


@each_type
def test_gates_are_half_open_at_first(kind):
    rung = next(iter(rungs(made(kind)).values()))
    assert rung.gate.item() == 0
    assert rung.gate.requires_grad
    side, backbone = torch.randn(2, 3, WIDE // 4), torch.randn(2, 3, WIDE)
    assert torch.allclose(rung.mix(side, backbone), (side + rung.down(backbone)) / 2)
    torch.nn.init.constant_(rung.gate, 0.1)  # one temperature
    mu = 1 / (1 + torch.e**-1)
    expected = mu * side + (1 - mu) * rung.down(backbone)
    assert torch.allclose(rung.mix(side, backbone), expected, atol=1e-6)


@each_type
def test_backbone_keeps_nothing_but_what_the_shortcuts_read(kind):
    model, inputs = made(kind), batch(kind)
    recording = []
    for rung in rungs(model).values():
        rung.backbone.register_forward_hook(lambda *_: recording.append(torch.is_grad_enabled()))
    with SavedBytes(model) as saved:
        model(**inputs).loss.backward()
    assert recording == [False] * len(rungs(model))
    shapes = [shape for shape, _ in saved.tensors if shape]
    assert not [shape for shape in shapes if INNER in shape]
    wide = [shape for shape in shapes if shape[-1] == WIDE and math.prod(shape) == 4 * 10 * WIDE]
    assert len(wide) == LAYERS + 1, shapes  # h_0 and each h_i; of T5, those of the encoder
    of_decoder = [shape for shape in shapes if math.prod(shape) == 4 * 2 * WIDE]
    assert len(of_decoder) == (2 + 1 + 1 if kind == "t5" else 0), shapes  # and a dropout's mask


@each_type
def test_side_begins_as_the_pruned_backbone(kind):
    """The features whose weights are made ten times as large are those that stay."""
    model = made(kind, tuned=False)
    stack = model.encoder if kind == "t5" else model.base_model.encoder
    before = stack.block if kind == "t5" else stack.layer
    stream, heads, inner = (
        [1, 4, 9, 12, 20, 21, 30, 31],
        [0, 5, 6, 15, 18, 19, 24, 31],
        [*range(20)],
    )
    q, o, wi, wo, norm = PRUNED[kind]
    with torch.no_grad():
        for block in before:
            for name, rows, columns in ((q, heads, stream), (o, stream, heads)):
                block.get_submodule(name).weight[rows] *= 10
                block.get_submodule(name).weight[:, columns] *= 10
            block.get_submodule(wi).weight[inner] *= 10
            block.get_submodule(wo).weight[:, inner] *= 10
            torch.nn.init.normal_(block.get_submodule(norm).weight)
    before = copy.deepcopy(before)
    tuning.tune(model, LST)
    for block, rung in zip(before, stack.block if kind == "t5" else stack.layer, strict=True):
        assert type(rung.side) is type(block)
        expected = {
            q: block.get_submodule(q).weight[heads][:, stream],
            o: block.get_submodule(o).weight[stream][:, heads],
            wi: block.get_submodule(wi).weight[inner][:, stream],
            wo: block.get_submodule(wo).weight[stream][:, inner],
            norm: block.get_submodule(norm).weight[stream],
        }
        for name, weight in expected.items():
            assert torch.equal(rung.side.get_submodule(name).weight, weight), name


@each_type
def test_each_way_through_the_ladder_counts(kind):
    """Padding does not, in the side either."""
    model, inputs = made(kind).eval(), batch(kind)
    logits = model(**inputs).logits
    assert torch.equal(model(**inputs).logits, logits)
    hidden = {**inputs, "input_ids": inputs["input_ids"].clone()}
    hidden["input_ids"][1, 4:] = 7  # of the second sample four tokens count
    assert torch.allclose(model(**hidden).logits, logits, atol=1e-5)
    for name in rungs(model):
        for part in ("gate", "down.weight"):
            other = copy.deepcopy(model)
            torch.nn.init.normal_(other.get_parameter(f"{name}.{part}"))
            assert not torch.allclose(other(**inputs).logits, logits, atol=1e-6), (name, part)


@each_type
def test_state_dict_holds_the_ladder(kind, tmp_path):
    model, other = made(kind), made(kind)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "state")
    other.load_state_dict(torch.load(tmp_path / "state"))
    inputs = batch(kind)
    assert torch.equal(model.eval()(**inputs).logits, other.eval()(**inputs).logits)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_attention_is_chosen_for_both(kind):
    model = made(kind)
    model.set_attn_implementation("eager")
    assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} == {
        "eager"
    }


@each_type
def test_loss_goes_down(kind):
    model, inputs = made(kind), batch(kind)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=1e-2), []
    for _ in range(100):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_refusals():
    gpt = GPT2ForSequenceClassification(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
    with pytest.raises(UserError, match=r"no ladder for model_type 'gpt2'; .* t5, bert, mpnet"):
        tuning.tune(gpt, LST)
    for kind, reduction, what in (
        ("bert", 3, "hidden_size, 32"),
        ("bert", 32, "intermediate_size, 80"),
        ("mpnet", 20, "hidden_size, 32"),
        ("t5", 32, "d_kv, 16"),
    ):
        with pytest.raises(UserError, match=rf"reduction={reduction} does not divide {what}"):
            ladder_(made(kind, tuned=False), reduction)
    assert tuple(SIZES) == LADDERS  # what is refused before a model is there
