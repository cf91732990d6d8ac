"""Which rows may have a gradient, as it is read from a call: never fewer than have one."""

import pytest
import torch

from tests.wtacrs.tiny import MASK, batch_of, tiny_bert, tiny_llama, tiny_t5
from wtacrs.facts import OF_THE_SOURCE, mask_of
from wtacrs.sampling.batch import Facts

IDS = torch.ones(4, 10, dtype=torch.long)
LEFT = MASK.flip(1)


def labels_at(*places):
    """(4, 10), a label at these tokens of each sample."""
    labels = torch.full((4, 10), -100)
    labels[:, list(places)] = 1
    return labels


LABELS = {
    "every token": IDS,
    "tokens, padding on the right": torch.where(MASK == 1, IDS, -100),
    "tokens, padding on the left": torch.where(LEFT == 1, IDS, -100),
    "the first": labels_at(0),
    "the second": labels_at(1),
    "two in the middle": labels_at(5, 6),
    "the last": labels_at(9),
}


def rows_of(mask):
    return [row.nonzero().flatten().tolist() for row in mask]


def gradient_rows(model, batch):
    """Which rows of the first block's input have a gradient."""
    inputs = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    given = {name: value for name, value in batch.items() if name != "input_ids"}
    model.eval()(inputs_embeds=inputs, **given).loss.backward()
    return inputs.grad.abs().sum(-1) > 0


def test_an_encoder():
    model = tiny_bert()
    assert mask_of(model, batch_of(model)) is MASK  # labels (b,)
    # A loss of its own, or that of an extractive answer, may read padding.
    assert mask_of(model, {"attention_mask": MASK}) is None
    assert mask_of(model, {"input_ids": IDS}) is None
    assert mask_of(model, {"attention_mask": None}) is None
    assert mask_of(model, {"attention_mask": MASK[:, None, None]}) is None


def test_a_label_at_padding_counts():
    """As in token classification with labels that were not masked."""
    mask = mask_of(tiny_bert(), {"attention_mask": MASK, "labels": labels_at(8)})
    assert rows_of(mask) == [[*range(10)], [*range(7), 7, 8], [0, 1, 2, 7, 8], [*range(9)]]


@pytest.mark.parametrize("attention", [MASK, LEFT], ids=["right", "left"])
def test_a_causal_model_without_labels(attention):
    """Its loss is computed elsewhere, of whichever row."""
    assert mask_of(tiny_llama(), {"attention_mask": attention}) is None


@pytest.mark.parametrize("attention", [MASK, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_a_causal_model_hides_no_row_with_a_gradient(attention, labels):
    """Padded on the left, the row before the first token predicts its label: it attends to nothing,
    which is to everything alike, so that no row of that sample may be hidden."""
    model = tiny_llama(dropout=0.0)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 50, (4, 10), generator=generator)
    batch = {"input_ids": ids, "attention_mask": attention, "labels": labels}
    mask = mask_of(model, batch)
    assert not (gradient_rows(model, batch) & ~mask).any()
    assert mask[attention == 1].all()


def test_padding_is_hidden():
    """On the right behind the tokens, on the left where no label follows the padding at once."""
    for attention, labels, valid in (
        (MASK, torch.where(MASK == 1, IDS, -100), MASK),
        (LEFT, labels_at(9), LEFT),
    ):
        mask = mask_of(tiny_llama(), {"attention_mask": attention, "labels": labels})
        assert torch.equal(mask, valid == 1)


def test_an_encoder_and_a_decoder():
    """Layers that read the source have its mask; the others, rows up to the last label."""
    model = tiny_t5()
    labels = batch_of(model)["labels"]
    labels[2] = -100
    labels[3, 2] = -100
    masks = mask_of(model, batch_of(model) | {"labels": labels})
    assert [*masks][: len(OF_THE_SOURCE)] == [*OF_THE_SOURCE]
    facts = Facts(None, masks)
    for name in ("encoder.block.0.layer.0.SelfAttention.q", "model.encoder.layers.0.fc1"):
        assert facts.mask_of(name) is MASK
    for name in (
        "decoder.block.1.layer.1.EncDecAttention.k",
        "decoder.layers.0.encoder_attn.v_proj",
        "decoder.bert.encoder.layer.0.crossattention.self.key",
    ):
        assert facts.mask_of(name) is MASK
    for name in (
        "decoder.block.1.layer.1.EncDecAttention.q",
        "decoder.block.0.layer.0.SelfAttention.k",
        "decoder.bert.encoder.layer.0.attention.self.query",
    ):
        assert rows_of(facts.mask_of(name)) == [[*range(7)], [*range(5)], [], [*range(7)]]


def test_a_decoder_without_labels_has_no_mask():
    assert mask_of(tiny_t5(), {"attention_mask": MASK}) is None


def test_a_model_that_says_nothing_of_itself(make_encoder):
    given = {"attention_mask": MASK, "labels": torch.zeros(len(MASK))}
    assert mask_of(make_encoder(), given) is MASK
