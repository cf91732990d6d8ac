"""What is counted of the steps, beside what a batch tells the sampler."""

import io
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from wtacrs_experiments.run.batch_facts import BatchFacts
from wtacrs_experiments.run.memory import save_memory
from wtacrs_experiments.run.models import load_model


class Model(nn.Module):
    def forward(self, attention_mask):
        return SimpleNamespace(loss=attention_mask.sum() / 2)


def step(facts, *batches):
    """A step of the Trainer, which divides the losses of its batches by their number."""
    for model, given in batches:
        facts.add(model(**given).loss / len(batches))
    facts.on_step_end(None, None, None)


def test_batch_facts():
    facts = BatchFacts(model := Model(), warmup_steps=1)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    step(facts, (model, {"attention_mask": mask}))
    assert facts.tokens == 0  # the first step is the warm-up
    step(facts, (model, {"attention_mask": mask[:1]}))
    step(facts, (model, {"attention_mask": mask}))
    model.eval()
    model(attention_mask=mask)
    assert facts.samples == [2, 1, 2]
    assert facts.tokens == 3 + 4
    assert facts.mean_loss == (2 + 1.5 + 2) / 3


def test_a_step_of_several_batches_is_one():
    facts = BatchFacts(model := Model(), warmup_steps=1)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    for _ in range(10):
        step(facts, (model, {"attention_mask": mask}), (model, {"attention_mask": mask[:1]}))
    assert facts.samples == [3] * 10
    assert facts.tokens == 9 * (4 + 3)
    assert (facts.steps, facts.mean_loss) == (10, 1.75)
    assert facts.curve == {"step": [10], "loss": [1.75]}


@pytest.mark.parametrize("memory", ["plain", "linear"])
def test_sample_ids_never_reach_the_model(memory, make_config):
    """Whichever of the two was registered first, and whether or not anything is sampled."""
    config = make_config(f"memory={memory}")
    for counts_first in (True, False):
        model = load_model(config.model, 10, False).train()
        facts = BatchFacts(model) if counts_first else None
        handle = save_memory(model, config, 8, 4)
        facts = facts or BatchFacts(model)
        told, seen = [], []
        if handle.sampler is not None:
            start = handle.sampler.start_batch
            handle.sampler.start_batch = lambda *a, s=start, t=told: t.append(a) or s(*a)
        model.bert.register_forward_pre_hook(lambda _, a, k, s=seen: s.append(k), with_kwargs=True)
        ids, mask = torch.tensor([7, 2]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        batch = {"input_ids": mask, "attention_mask": mask, "labels": torch.tensor([3, 4])}
        model(**batch, sample_ids=ids).loss.backward()
        facts.on_step_end(None, None, None)
        model.eval()
        model(**batch, sample_ids=ids)
        assert len(seen) == 2
        assert all("sample_ids" not in kwargs for kwargs in seen)
        assert (facts.samples, int(facts.tokens)) == ([2], 6)
        if handle.sampler is not None:
            ((told_ids, told_mask),) = told
            assert told_ids is ids
            assert torch.equal(told_mask, mask)


class Given(nn.Module):
    """A model whose loss is given."""

    def forward(self, attention_mask, loss):
        return SimpleNamespace(loss=torch.as_tensor(loss))


ONE = torch.ones(1, 1, dtype=torch.long)


@pytest.mark.parametrize("diverged", [float("nan"), float("inf"), float("-inf")])
def test_mean_loss_hides_no_nan(diverged):
    facts = BatchFacts(model := Given())
    for loss in (1.0, diverged, 1.0, -diverged):
        step(facts, (model, {"attention_mask": ONE, "loss": loss}))
    assert not math.isfinite(facts.mean_loss)


def test_mean_loss_is_summed_in_double_precision():
    """In float32 2^24 + 1 is 2^24."""
    facts = BatchFacts(model := Given())
    for loss in (2.0**24, 1.0, 1.0, 1.0):
        step(facts, (model, {"attention_mask": ONE, "loss": loss}))
    assert facts.mean_loss == (2**24 + 3) / 4


def test_batch_facts_go_on_where_they_were():
    """To the last bit, through a checkpoint's file."""
    torch.manual_seed(0)
    losses = torch.rand(40) / 3

    def after(losses, state=None):
        facts = BatchFacts(model := Given())
        if state is not None:
            facts.load_state_dict(state)
        for loss in losses:
            step(facts, (model, {"attention_mask": ONE, "loss": loss}))
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
    facts = BatchFacts(model := Model())

    def sums():
        step(facts, (model, {"attention_mask": torch.ones(2, 5, device="meta").long()}))
        return [value for value in vars(facts).values() if torch.is_tensor(value)]

    first, second = sums(), sums()
    assert [(t.shape, t.dtype) for t in first] == [((), torch.int64), ((), torch.float64)]
    assert [*map(id, first)] == [*map(id, second)]


def test_the_loss_curve_goes_on_where_it_was_cut_off():
    """A point is the mean of ten steps, of which the first may lie before a resumption."""
    whole, before, after = (BatchFacts(model := Given()) for _ in range(3))
    for number in range(25):
        one = model, {"attention_mask": ONE, "loss": float(number)}
        step(whole, one)
        step(before if number < 14 else after, one)
        if number == 13:
            after.load_state_dict(before.state_dict())
    assert whole.curve == after.curve == {"step": [10, 20], "loss": [4.5, 14.5]}
