"""Masks are put to proof: a masked row that has a gradient is an error with the layer's name."""

import pytest
import torch
from torch import nn

from tests.wtacrs.tiny import tiny_bert, tiny_llama, tiny_t5
from wtacrs import sample_linears_

B, T = 4, 10
MASK = (torch.arange(T) < torch.tensor([10, 7, 3, 9])[:, None]).long()


def step(model, sampler, mask, **batch):
    """A step, and the start of the next, where what the first one showed is told."""
    sampler.start_batch(mask=mask)
    model(**batch).loss.backward()
    sampler.start_batch()


def ids(b=B, t=T, seed=0):
    return torch.randint(1, 50, (b, t), generator=torch.Generator().manual_seed(seed))


def bert_batch():
    return {"input_ids": ids(), "attention_mask": MASK, "labels": torch.tensor([0, 1, 1, 0])}


def t5_batch():
    """Source and target of one length, as it happens."""
    return {"input_ids": ids(), "attention_mask": MASK, "labels": ids(seed=1)}


def llama_batch(padding, **labels):
    mask = MASK if padding == "right" else MASK.flip(1)
    return {"input_ids": ids(), "attention_mask": mask, "labels": labels.get("labels", ids())}


def test_a_right_mask_is_no_error():
    model = tiny_bert()
    sampler = sample_linears_(model)
    for _ in range(3):
        step(model, sampler, MASK, **bert_batch())
    sampler.state_dict()


@pytest.mark.parametrize("padding", ["left", "right"])
def test_labels_on_padding(padding):
    """``labels=input_ids``: the padding is predicted too."""
    model, batch = tiny_llama(), llama_batch(padding)
    sampler = sample_linears_(model)
    with pytest.raises(ValueError, match=r"'model\.layers.*hides rows.*-100"):
        step(model, sampler, batch["attention_mask"], **batch)
    sampler.start_batch()  # told once


def test_a_causal_model_with_padding_on_the_left():
    """The last padding row predicts the first token, though padding has no label."""
    model, batch = tiny_llama(), llama_batch("left")
    mask = batch["attention_mask"]
    batch["labels"] = batch["labels"].masked_fill(mask == 0, -100)
    sampler = sample_linears_(model)
    with pytest.raises(ValueError, match="padded on the left"):
        step(model, sampler, mask, **batch)
    # The remedy that it names: no label for that token either.
    batch["labels"].scatter_(1, mask.argmax(1, keepdim=True), -100)
    step(model, sampler, mask, **batch)


def test_one_mask_for_encoder_and_decoder_is_refused_at_once():
    sampler = sample_linears_(tiny_t5())
    with pytest.raises(ValueError, match=r"mapping from layer patterns.*EncDecAttention"):
        sampler.start_batch(mask=MASK)


@pytest.mark.parametrize(
    "masks",
    [
        {"*": MASK},  # the decoder's rows are others
        {"*encoder.*": MASK, "*decoder.*": MASK.flip(0)},  # cross-attention reads the source
    ],
)
def test_maps_that_catch_the_wrong_layers(masks):
    model = tiny_t5()
    sampler = sample_linears_(model)
    with pytest.raises(ValueError, match=r"'decoder\..*hides rows"):
        step(model, sampler, masks, **t5_batch())


def test_the_map_that_the_error_gives_is_right():
    model, batch = tiny_t5(), t5_batch()
    batch["labels"][1, 5:] = -100
    sampler = sample_linears_(model)
    target = batch["labels"] != -100
    step(
        model,
        sampler,
        {"*encoder.*": MASK, "*.EncDecAttention.[kv]": MASK, "*": target},
        **batch,
    )


def test_time_first_inputs(make_layer):
    """(t, b, i) with t = b: shapes agree, rows do not."""
    layer, sampler = make_layer()
    mask = torch.ones(4, 4)
    mask[0, 1:] = 0
    dy = torch.ones(4, 4, 3) * mask.T[..., None]
    sampler.start_batch(mask=mask)
    layer(torch.randn(4, 4, 4)).backward(dy)
    with pytest.raises(ValueError, match="batch first"):
        sampler.start_batch()


def test_two_towers_in_one_call(make_encoder):
    """One mask cannot be that of both."""

    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = make_encoder()

        def forward(self, a, b):
            return self.tower(a) + self.tower(b)

    model = Towers()
    sampler = sample_linears_(model)
    sampler.start_batch(mask=MASK)
    out = model(torch.randn(B, T, 4), torch.randn(B, T, 4))
    (out * (1 - MASK)[..., None]).sum().backward()
    with pytest.raises(ValueError, match="one start_batch for each call"):
        sampler.start_batch()


def test_a_saved_state_tells_too(make_layer):
    layer, sampler = make_layer()
    sampler.start_batch(mask=torch.zeros(2, 5))
    layer(torch.randn(2, 5, 4)).sum().backward()
    with pytest.raises(ValueError, match="'fc' hides rows"):
        sampler.state_dict()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_overflow_is_no_wrong_mask(value, make_layer):
    layer, sampler = make_layer()
    sampler.start_batch(mask=torch.zeros(2, 5))
    layer(torch.randn(2, 5, 4)).backward(torch.full((2, 5, 3), value))
    sampler.start_batch()


@pytest.mark.parametrize(("size", "raises"), [(1e-8, False), (1e-4, True)])
def test_what_an_additive_mask_leaves_is_no_gradient(size, raises, make_layer):
    """Of masked rows, beside rows of norm 1: far below the rounding of dW, or not."""
    layer, sampler = make_layer()
    mask = (torch.arange(5) < 3).expand(2, 5)
    sampler.start_batch(mask=mask)
    layer(torch.randn(2, 5, 4)).backward(torch.where(mask[..., None], 1.0, size).expand(2, 5, 3))
    if raises:
        with pytest.raises(ValueError, match="hides rows"):
            sampler.start_batch()
    else:
        sampler.start_batch()


@pytest.mark.parametrize("shape", [(2, 2, T, 4), (B * T, 4), (T, 4)])
def test_likeness_of_shapes_is_no_match(shape, make_layer):
    """A mask (b, t) is for (b, t, i), whatever else has as many rows."""
    layer, sampler = make_layer(estimator="uniform")
    sampler.start_batch(mask=torch.zeros(B, T))
    layer(torch.randn(shape)).sum().backward()
    sampler.start_batch()
    assert layer.weight.grad.abs().max() > 0


def test_grad_norms_none_checks_masks_too(make_layer):
    layer, sampler = make_layer(grad_norms="none")
    sampler.start_batch(mask=torch.zeros(2, 5))
    layer(torch.randn(2, 5, 4)).sum().backward()
    with pytest.raises(ValueError, match="'fc' hides rows"):
        sampler.start_batch()
