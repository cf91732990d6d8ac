"""Models on the meta device: changed without values, and loaded before they train."""

import pytest
import torch
from torch import nn

from tests.wtacrs.tiny import assert_same_step, batch_of, step, tiny_bert, tiny_llama
from wtacrs import apply_
from wtacrs.layers import save_less_


def loaded(model, plain):
    """``model``, which was on the meta device, with the weights and buffers of ``plain``."""
    model.to_empty(device="cpu")
    for own, given in ((model.parameters, plain.parameters), (model.buffers, plain.buffers)):
        for tensor, values in zip(own(), given(), strict=True):
            tensor.data.copy_(values)
    return model


def test_a_model_on_the_meta_device():
    """One that is yet to be made, as for FSDP: what needs no values is done, and then it trains."""
    with torch.device("meta"):
        model = tiny_llama(0.0)
    handle = apply_(model, "lean", budget=1.0)
    with pytest.raises(ValueError, match="LlamaForCausalLM are on the meta device"):
        handle.report(batch_of(tiny_llama()))
    plain = tiny_llama(0.0)
    loaded(model, plain)
    assert handle.swapped["LosslessNorm"]
    assert handle.report(batch_of(plain)).now.peak_bytes > 0
    assert_same_step(step(model), step(plain), 1e-4, 1e-5)
    assert handle.report().swapped == handle.swapped


@pytest.mark.parametrize("preset", ["lean", "leanest"])
@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
def test_norms_whose_values_come_later_and_hide_their_input(make, preset):
    """They compute as before, from the first training call on, and the report says so."""
    plain = make(0.0)
    norms = [n for n, m in plain.named_modules() if "Norm" in type(m).__name__]
    for name in norms[1:]:  # the first one stays as it is
        norm = plain.get_submodule(name)
        norm.weight.data[3] = 0.0 if make is tiny_llama else 1e-4
    with torch.device("meta"):
        model = make(0.0)
    handle = apply_(model, preset, budget=1.0)
    loaded(model, plain)
    with torch.no_grad():
        model(**batch_of(model))
    expected = apply_(twin := loaded(make(0.0), plain), preset, budget=1.0).report()
    found, same = step(model), step(twin)
    assert all(torch.equal(found[1][name], gradient) for name, gradient in same[1].items())
    assert handle.report().swapped == expected.swapped
    assert handle.report().left == expected.left
    (hidden,) = [names for why, names in expected.left.items() if "too small" in why]
    assert hidden == norms[1:]
    handle.undo()
    assert [*map(type, model.modules())] == [*map(type, plain.modules())]
    assert not any("inverts" in vars(module) for module in model.modules())


def test_a_graph_of_norms_whose_values_come_later():
    """It cannot look at values, so the norms in it compute as before."""
    plain = nn.LayerNorm(8)
    plain.weight.data[3], plain.bias.data[3] = 1e-8, 1.0
    norm = nn.LayerNorm(8, device="meta")
    save_less_(nn.ModuleList([norm]))
    loaded(norm, plain)
    x = torch.randn(4, 8)
    for one in (plain, torch.compile(norm, backend="eager", fullgraph=True)):
        one(x).square().sum().backward()
    torch.testing.assert_close(norm.weight.grad, plain.weight.grad, rtol=1e-6, atol=0)
