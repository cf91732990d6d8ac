"""Caches of keys and values, in recomputed parts: dropped while empty, refused with content."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import register_pytree_node

from tests.wtacrs.tiny import assert_same_step, batch_of, step, tiny_llama, tiny_t5
from wtacrs.recompute import recompute_

parts = pytest.mark.parametrize("what", ["attention", "block"])


@parts
@pytest.mark.parametrize("make", [tiny_t5, tiny_llama], ids=["t5", "llama"])
def test_use_cache_in_training(make, what):
    """The default of such models. A cache lays keys out otherwise: other roundings in the plain."""
    model = make()
    batch = batch_of(model) | {"use_cache": True}
    expected = step(model, batch)
    recompute_(model, what)
    assert_same_step(step(model, batch), expected, 1e-5, loss_rtol=1e-6)


@parts
@pytest.mark.parametrize("make", [tiny_t5, tiny_llama], ids=["t5", "llama"])
def test_generation_uses_its_cache(make, what):
    model = make().eval()
    prompt = {name: batch_of(model)[name][:1] for name in ("input_ids", "attention_mask")}
    generate = {**prompt, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**generate)
    recompute_(model, what)
    assert torch.equal(model.generate(**generate), expected)


@parts
def test_a_cache_with_content(what):
    """Keys and values of a prefix count in the plain model; here they would be lost."""
    model = tiny_llama()
    recompute_(model, what)
    ids = batch_of(model)["input_ids"]
    with torch.no_grad():
        cache = model(ids[:, :6], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cache"):
        model(ids[:, 6:], past_key_values=cache)


class Registered:
    """A cache that pytree can take apart, as transformers makes its own for torch.export."""

    def __init__(self, length):
        self.length = length

    def get_seq_length(self):
        return self.length


class Reader(nn.Module):
    """A block that tells which cache it is given."""

    def forward(self, x, cache):
        return x, cache


def test_a_cache_that_is_a_pytree():
    """It is looked at before it falls into parts."""
    register_pytree_node(Registered, lambda x: ([x.length], None), lambda x, _: Registered(*x))
    model = nn.Sequential(nn.ModuleList([Reader()]))
    recompute_(model, "block")
    assert model[0][0](torch.ones(2), Registered(0))[1] is None
    with pytest.raises(ValueError, match="cache"):
        model[0][0](torch.ones(2), Registered(3))
