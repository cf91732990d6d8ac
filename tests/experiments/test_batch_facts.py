"""What a batch tells the sampler, and what is counted of the steps."""

import io
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from experiments.training import BatchFacts


class Told:
    """Stands for a sampler."""

    def __init__(self):
        self.batches = []

    def start_batch(self, sample_ids, mask):
        self.batches.append((sample_ids, mask))


class Model(nn.Module):
    def forward(self, attention_mask):
        return SimpleNamespace(loss=attention_mask.sum() / 2)


@pytest.mark.parametrize("sampled", [True, False])
def test_batch_facts(sampled):
    told, model = Told(), Model()
    facts = BatchFacts(model, told if sampled else None, warmup_steps=1)
    ids, mask = torch.tensor([7, 9]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    model(attention_mask=mask, sample_ids=ids)  # Model would refuse sample_ids
    assert facts.tokens == 0  # the first step is the warm-up
    model(attention_mask=mask[:1], sample_ids=ids[:1])
    model(attention_mask=mask, sample_ids=ids)
    model.eval()
    model(attention_mask=mask)
    assert facts.samples == [2, 1, 2]
    assert facts.tokens == 3 + 4
    assert facts.mean_loss == (2 + 1.5 + 2) / 3
    assert len(told.batches) == (3 if sampled else 0)
    if sampled:
        assert told.batches[0][0] is ids
        assert told.batches[0][1] is mask


class Given(nn.Module):
    """A model whose loss is given."""

    def forward(self, attention_mask, loss):
        return SimpleNamespace(loss=torch.as_tensor(loss))


ONE = torch.ones(1, 1, dtype=torch.long)


@pytest.mark.parametrize("diverged", [float("nan"), float("inf"), float("-inf")])
def test_mean_loss_hides_no_nan(diverged):
    facts = BatchFacts(model := Given(), None)
    for loss in (1.0, diverged, 1.0, -diverged):
        model(attention_mask=ONE, loss=loss)
    assert not math.isfinite(facts.mean_loss)


def test_mean_loss_is_summed_in_double_precision():
    """In float32 2^24 + 1 is 2^24."""
    facts = BatchFacts(model := Given(), None)
    for loss in (2.0**24, 1.0, 1.0, 1.0):
        model(attention_mask=ONE, loss=loss)
    assert facts.mean_loss == (2**24 + 3) / 4


def test_batch_facts_go_on_where_they_were():
    """To the last bit, through a checkpoint's file."""
    torch.manual_seed(0)
    losses = torch.rand(40) / 3

    def after(losses, state=None):
        facts = BatchFacts(model := Given(), None)
        if state is not None:
            facts.load_state_dict(state)
        for loss in losses:
            model(attention_mask=ONE, loss=loss)
        return facts

    torch.save(after(losses[:17]).state_dict(), file := io.BytesIO())
    file.seek(0)
    resumed = after(losses[17:], torch.load(file, weights_only=True))
    assert resumed.mean_loss == after(losses).mean_loss
    assert resumed.mean_loss == pytest.approx(losses.mean().item())


def test_batch_facts_read_no_device_and_keep_nothing():
    """On the meta device a value that is read is an error; each sum is one tensor, ever the same.

    One that came anew in each step would count as a byte that the step saves.
    """
    facts = BatchFacts(model := Model(), None)

    def step():
        model(attention_mask=torch.ones(2, 5, dtype=torch.long, device="meta"))
        return [value for value in vars(facts).values() if torch.is_tensor(value)]

    first, second = step(), step()
    assert [(t.shape, t.dtype) for t in first] == [((), torch.int64), ((), torch.float64)]
    assert [*map(id, first)] == [*map(id, second)]
