"""What ``apply_`` and its handle refuse, by name."""

import pytest
import torch

from tests.wtacrs import zoo
from tests.wtacrs.tiny import tiny_bert, tiny_llama
from wtacrs import apply_

quiet = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing")


@quiet
@pytest.mark.parametrize("first", ["plain", "checkpoint", "linear"])
@pytest.mark.parametrize("second", ["plain", "lean"])
def test_apply_twice_is_refused(first, second):
    """Or the undo of the older handle would take the newer one's away."""
    model = tiny_bert()
    handle = apply_(model, first)
    with pytest.raises(ValueError, match=r"applied .* already.*handle.undo\(\) first"):
        apply_(model, second)
    handle.undo()
    apply_(model, second)


def test_a_state_of_something_else():
    handle = apply_(tiny_bert(), "lean")
    for state in ({}, None, {"sampler": None}):
        with pytest.raises(ValueError, match="keys"):
            handle.load_state_dict(state)
    with pytest.raises(ValueError, match=r"give an nn\.Module"):
        apply_("bert")


def test_a_report_of_a_batch_without_labels():
    handle = apply_(tiny_llama(), "lean")
    batch = {"input_ids": torch.ones(2, 5, dtype=torch.long)}
    with pytest.raises(ValueError, match="input_ids has no loss"):
        handle.report(batch)


def test_a_model_that_is_half_offloaded():
    """As accelerate leaves it: its weights on the meta device, brought when a layer is called."""
    model = tiny_llama()
    model.model.layers[1].mlp.to("meta")
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=r"3 weights of .*ForCausalLM .* without offloading"):
        apply_(model, "lean")
    assert {name: type(module) for name, module in model.named_modules()} == before


@pytest.mark.parametrize("name", ["mamba", "convnext"])
@pytest.mark.parametrize("preset", ["lean", "leanest", "paper"])
def test_a_model_without_attention(name, preset):
    """Says what was done, and that nothing attends."""
    handle = apply_(zoo.make(name), preset)
    assert zoo.NO_ATTENTION in handle.left
    assert not any(key.startswith("attention") for key in handle.swapped)
    assert handle.swapped["sampled linear layers"]
    assert "no module attends" in str(handle.report())
