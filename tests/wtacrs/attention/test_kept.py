"""On long sequences fused attention is not computed again: its output is kept of the first pass."""

import gc
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from tests.saved import SavedBytes
from tests.wtacrs.calls import Calls
from tests.wtacrs.tiny import assert_same_step, build, step
from wtacrs import MemoryConfig, apply_
from wtacrs.attention.kept import FUSED
from wtacrs.measure.step import StorageTracker, measure_step

LAYERS, WIDTH = 2, 16
LONG, SHORT = WIDTH, WIDTH - 1  # tokens: no fewer, or fewer, than the output of a head is wide
SIZES = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 24, "num_hidden_layers": LAYERS, "vocab_size": 50}
parts = pytest.mark.parametrize("what", ["attention", "block"])


def llama():
    return build(LlamaForCausalLM, LlamaConfig(**SIZES))


def batch(tokens=LONG, padded=False):
    ids = torch.randint(1, 50, (3, tokens), generator=torch.Generator().manual_seed(6))
    if not padded:
        return {"input_ids": ids, "labels": ids}
    mask = (torch.arange(tokens) < torch.tensor([tokens, 3, 7])[:, None]).long()
    return {"input_ids": ids, "labels": ids.masked_fill(mask == 0, -100), "attention_mask": mask}


def recomputed(what, model=None):
    model = model or llama()
    config = {"attention": "recompute", "recompute": what, "attention_output": "kept"}
    apply_(model, MemoryConfig(sampling=None, **config))
    return model


@parts
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_it_runs_once_and_gradients_are_the_plain_ones(what, padded):
    expected = step(llama(), batch(padded=padded))
    model = recomputed(what)
    with Calls(FUSED) as kernels:
        found = step(model, batch(padded=padded))
    assert kernels.count == LAYERS
    assert_same_step(found, expected, 0)


def classifier(preset):
    config = LlamaConfig(**SIZES, pad_token_id=0, use_cache=False)
    model = build(LlamaForSequenceClassification, config)
    apply_(model, preset)
    return model, {"input_ids": batch(4 * LONG)["input_ids"], "labels": torch.tensor([0, 1, 1])}


def test_leanest_keeps_no_more_than_checkpointing():
    """Of long sequences, where no head hides it."""
    kept = {}
    for preset in ("checkpoint", "leanest"):
        model, given = classifier(preset)
        with SavedBytes(model) as saved:
            model(**given)
        kept[preset] = saved.bytes
    assert kept["leanest"] <= kept["checkpoint"]


@pytest.mark.parametrize(("preset", "times"), [("lean", 1), ("leanest", 2)])
def test_a_preset_computes_it(preset, times):
    model, given = classifier(preset)
    with Calls(FUSED) as kernels:
        step(model, given)
    assert kernels.count == times * LAYERS


def heavy(output="auto"):
    """Gradients of a block take a hundred times what attention gives."""
    config = LlamaConfig(**SIZES | {"intermediate_size": 2048}, use_cache=False)
    model = build(LlamaForCausalLM, config)
    exact = MemoryConfig(sampling=None, attention="recompute", recompute="block")
    apply_(model, replace(exact, attention_output=output))
    return model


def test_beside_gradients_that_take_much_more_it_is_kept_for_nothing():
    """The peak comes when these are there and it is gone."""
    peaks = {}
    for output in ("auto", "recomputed"):
        model = heavy(output)
        loss = lambda model=model: model(**batch()).loss.backward()  # noqa: E731
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        peaks[output] = measure_step(model, optimizer, batch(), step=loss).peak_bytes
    assert peaks["auto"] == peaks["recomputed"]


@pytest.mark.parametrize(
    ("before", "times"), [("nothing", 1), ("gradients", 2), ("frozen", 2), ("a larger batch", 2)]
)
def test_what_gradients_are_to_come_decides(before, times):
    model, given = heavy(), batch()
    if before == "gradients":  # of the batch before, to which those of this one are added
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    if before == "frozen":
        for block in model.model.layers:
            block.mlp.requires_grad_(False)
    if before == "a larger batch":
        given = {name: value.repeat(20, 1) for name, value in given.items()}
    with Calls(FUSED) as kernels:
        model(**given).loss.backward()
    assert kernels.count == times * LAYERS


@parts
def test_on_short_sequences_it_runs_twice(what):
    model = recomputed(what)
    with Calls(FUSED) as kernels:
        step(model, batch(SHORT))
    assert kernels.count == 2 * LAYERS


@parts
def test_a_graph_that_is_retained(what):
    model = recomputed(what)
    _, expected, _ = step(model, batch())
    expected = {name: 2 * gradient for name, gradient in expected.items()}
    model.zero_grad()
    loss = model(**batch()).loss
    with Calls(FUSED) as kernels:
        loss.backward(retain_graph=True)
        loss.backward()
    assert kernels.count == 0
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-5, atol=1e-7)


@parts
def test_another_kernel_is_computed_again(what):
    with sdpa_kernel(SDPBackend.MATH):
        assert_same_step(step(recomputed(what), batch()), step(llama(), batch()), 0)


@parts
def test_what_is_kept(what):
    """The output and a number a row and head, beside what is kept on short sequences."""

    def bytes_of(tokens):
        model = recomputed(what)
        model.config.use_cache = False
        with SavedBytes(model) as saved:
            model(**batch(tokens))
        return saved.bytes

    # Inside: what a token and a sequence take. Two short ones tell, a long one has the rest.
    per_token = bytes_of(SHORT) - bytes_of(SHORT - 1)
    kept = LAYERS * 3 * LONG * (WIDTH + 4) * 4
    assert bytes_of(LONG) - bytes_of(SHORT) == per_token + kept


def test_hooks_that_are_around_have_it():
    """Of offloading, say: it is packed and unpacked by them, once a block, and without its graph,
    which hooks that hand it on as it is would hold for ever."""
    model, counts = recomputed("block"), Counter()

    def pack(x):
        if tuple(x.shape) == (3, 4, LONG, 4):
            counts["packed"] += 1
            assert not x.requires_grad
        return x.detach().clone()

    def unpack(x):
        counts["unpacked"] += tuple(x.shape) == (3, 4, LONG, 4)
        return x

    expected = step(model, batch())
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        assert_same_step(step(model, batch()), expected, 0)
    assert counts == {"packed": LAYERS, "unpacked": LAYERS}


@pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing")
def test_inside_of_a_block_that_is_checkpointed():
    """Nothing is kept, for the checkpoint computes the first pass again; gradients are right."""
    expected = step(llama(), batch())
    kept = []
    for inside in ("none", "attention"):
        model = llama()
        model.config.use_cache = False
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if inside == "attention":
            recomputed(inside, model)
        assert_same_step(step(model, batch()), expected, 1e-6)
        with SavedBytes(model) as saved:
            model(**batch())
        kept.append(saved.bytes)
    assert kept[0] == kept[1]


@parts
def test_nothing_is_left_of_a_step(what):
    """No cycle that waits for the garbage collector."""
    model = recomputed(what)
    gc.collect()
    gc.disable()
    try:
        with StorageTracker(model.parameters()) as tracker:
            alive = []
            for backward in (True, True, False, True):
                loss = model(**batch()).loss
                if backward:
                    loss.backward()
                del loss
                alive.append(tracker.current_bytes)
        assert len({*alive}) == 1
    finally:
        gc.enable()
