"""What is kept of a recomputed block: its input, and what follows its last layer."""

import gc
import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import MixtralConfig, MixtralForCausalLM

from tests.saved import SavedBytes
from tests.wtacrs.tiny import batch_of, build, models, sampled, tiny_bert, tiny_llama
from wtacrs.measure.step import StorageTracker

parts = pytest.mark.parametrize("what", ["attention", "block"])
chunked_or_not = pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])


def bytes_of_blocks(model, hidden, **arguments):
    with SavedBytes(model) as saved:
        for block in model.layers if hasattr(model, "layers") else model.layer:
            hidden = block(hidden, **arguments)
    return saved


@chunked_or_not
def test_what_bert_keeps_of_a_block(chunked):
    """Its input; of its end one bit an element of dropout, a norm's output and a number a row."""
    model = sampled(tiny_bert(), "block", chunked=chunked)
    hidden = torch.randn(4, 10, 16, requires_grad=True)
    saved = bytes_of_blocks(model.bert.encoder, hidden)
    bits = 2 * (hidden.numel() // 8)
    assert saved.bytes == (1 + 2) * hidden.nbytes + bits + 2 * 40 * 4


@chunked_or_not
def test_what_llama_keeps_of_a_block(chunked):
    """Its input and the rotations; a sum at its end needs nothing."""
    model = sampled(tiny_llama(), "block", chunked=chunked)
    hidden = torch.randn(4, 10, 16, requires_grad=True)
    places = torch.arange(10)[None]
    rotations = model.model.rotary_emb(hidden, places)
    saved = bytes_of_blocks(model.model, hidden, position_embeddings=rotations)
    assert saved.bytes == 2 * hidden.nbytes + sum(one.nbytes for one in rotations)


def test_what_a_mixture_of_experts_keeps_of_a_block():
    """The same: experts are no linear layers, and what comes before them is not the end."""
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 24, "num_hidden_layers": 2, "num_local_experts": 4}
    model = sampled(build(MixtralForCausalLM, MixtralConfig(**sizes, vocab_size=50)), "block")
    hidden = torch.randn(4, 10, 16, requires_grad=True)
    rotations = model.model.rotary_emb(hidden, torch.arange(10)[None])
    saved = bytes_of_blocks(model.model, hidden, position_embeddings=rotations)
    assert saved.bytes == 2 * hidden.nbytes + sum(one.nbytes for one in rotations)


@pytest.mark.parametrize("backward", [True, False], ids=["", "no backward pass"])
@chunked_or_not
@parts
@models
def test_nothing_is_left_of_a_step(make, what, chunked, backward):
    """No cycle that waits for the garbage collector, or for ever: a second step adds no byte but
    its mask, which is remembered."""
    model = sampled(make(), what, budget=0.5, chunked=chunked)
    batch = batch_of(model)
    gc.collect()
    gc.disable()
    try:
        with StorageTracker(model.parameters()) as tracker:
            alive = []
            for _ in range(3):
                loss = model(**batch).loss
                if backward:
                    loss.backward()
                del loss
                alive.append(tracker.current_bytes)
        assert alive[2] == alive[1]
    finally:
        gc.enable()


def test_hooks_see_what_is_kept_of_the_end():
    """Offloading, say: of a block on its own each saved tensor passes through a user's hooks."""
    model = sampled(tiny_bert(), "block")
    block, hidden = model.bert.encoder.layer[0], torch.randn(4, 10, 16, requires_grad=True)
    packed, kept = [], []
    with saved_tensors_hooks(
        lambda x: packed.append(x.clone()) or len(packed) - 1, packed.__getitem__
    ):
        out = block(hidden)
    kept = [tuple(x.shape) for x in packed]
    assert kept.count((4, 10, 16)) == 2  # the input, and the output of the norm at the end
    gone = weakref.ref(out.untyped_storage())
    loss = out.sum()
    del out
    assert gone() is None
    loss.backward()
    assert hidden.grad.isfinite().all()
