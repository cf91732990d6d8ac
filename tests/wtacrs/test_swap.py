"""The swap: parameters, hooks and everything that holds them survive it, and back."""

import copy
import io

import pytest
import torch
from torch import nn

from tests.saved import SavedBytes
from wtacrs import SampledLinear, SamplingConfig, restore_linears_, sample_linears_

IN_THE_BLOCK = [f"layers.0.{name}" for name in "qkvo"]
EVERYTHING = SamplingConfig(include=["*"])


def sampled_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, SampledLinear)]


def step(model, x=None):
    model.zero_grad()
    model(torch.ones(2, 10, 4) if x is None else x).sum().backward()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, IN_THE_BLOCK),
        ({"include": ["*"]}, ["embed", *IN_THE_BLOCK, "head"]),
        ({"include": ["layers.*.[qk]", "head"]}, [*IN_THE_BLOCK[:2], "head"]),
        ({"include": lambda name: name.endswith("d")}, ["embed", "head"]),
        ({"exclude": ["*.o"]}, IN_THE_BLOCK[:3]),
        ({"exclude": lambda name: "v" in name}, [*IN_THE_BLOCK[:2], IN_THE_BLOCK[3]]),
        ({"include": ["*"], "exclude": ["layers.*"]}, ["embed", "head"]),
    ],
)
def test_which_layers_are_sampled(options, names, make_encoder):
    model = make_encoder()
    sampler = sample_linears_(model, SamplingConfig(**options))
    assert sampler.names == sampled_names(model) == names
    others = {name for name, m in model.named_modules() if type(m) is nn.Linear}
    assert set(sampler.skipped) == others
    assert all(sampler.skipped.values())


def test_a_layer_with_a_forward_of_its_own_is_left_alone():
    """As accelerate's hooks set it, on the instance: the swap would sample in name only."""
    model = nn.ModuleDict({"patched": nn.Linear(4, 4), "plain": nn.Linear(4, 4)})
    model["patched"].forward = model["patched"].forward
    sampler = sample_linears_(model, EVERYTHING)
    assert sampler.names == ["plain"]
    assert "forward" in sampler.skipped["patched"]


@pytest.mark.parametrize("kind", ["nothing matches", "no linear"])
def test_no_match_lists_the_names(kind, make_encoder):
    model, include, words = {
        "nothing matches": (make_encoder(), ["blocks.*"], [*IN_THE_BLOCK, "embed", "head"]),
        "no linear": (nn.ModuleList([nn.ReLU()]), ["*"], ["none"]),
    }[kind]
    with pytest.raises(ValueError, match="no linear layer matches") as error:
        sample_linears_(model, SamplingConfig(include=include))
    message = str(error.value)
    assert all(word in message for word in [*words, f"include={include}", "Give include"])
    assert not sampled_names(model)


def test_the_objects_stay():
    """Whoever holds a layer holds the sampled one, and a model may be a layer."""
    layer = nn.Linear(4, 4)
    sample_linears_(layer, EVERYTHING)
    assert isinstance(layer, SampledLinear)
    restore_linears_(layer)
    assert type(layer) is nn.Linear
    assert not {"sampler", "name"} & layer.__dict__.keys()


def test_swapping_twice_is_an_error(make_encoder):
    model = make_encoder()
    sample_linears_(model)
    with pytest.raises(ValueError, match=r"'layers\.0\.q'.*restore_linears_\(model\) first"):
        sample_linears_(model)
    restore_linears_(model)
    assert sample_linears_(model).names == IN_THE_BLOCK


def test_parameters_are_shared_and_restored(make_encoder):
    """Identity, keys, requires_grad and mode; restoring leaves plain layers without a trace."""
    model = make_encoder()
    model.layers[0].k.bias.requires_grad_(False)
    model.layers[0].v.eval()
    before = dict(model.named_parameters())
    values = copy.deepcopy(model.state_dict())
    plain = {name: set(vars(m)) for name, m in model.named_modules() if type(m) is nn.Linear}
    for swap in (lambda m: sample_linears_(m, EVERYTHING), restore_linears_):
        swap(model)
        after = dict(model.named_parameters())
        assert before.keys() == after.keys()
        assert all(after[name] is parameter for name, parameter in before.items())
        assert not model.layers[0].k.bias.requires_grad
        assert model.layers[0].q.training
        assert not model.layers[0].v.training
        torch.testing.assert_close(model.state_dict(), values, rtol=0, atol=0)
    restored = {name: set(vars(m)) for name, m in model.named_modules() if type(m) is nn.Linear}
    assert restored == plain
    restore_linears_(model)  # a second time: nothing to do


def test_tied_parameters_stay_tied():
    """One Parameter in two linears: the gradient is the sum, as in the plain model."""
    gradients = []
    for config in (None, SamplingConfig(include=["*"], budget=0.5, floor=0.0)):
        model = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in "ab"})
        model["b"].weight = model["a"].weight
        nn.init.eye_(model["a"].weight)
        if config is not None:
            sample_linears_(model, config)
        assert model["a"].weight is model["b"].weight
        x = torch.ones(8, 4) * (torch.arange(8) < 4)[:, None]  # 4 rows count: exact
        model["b"](model["a"](x)).sum().backward()
        gradients.append(model["a"].weight.grad)
    assert torch.equal(*gradients)


def test_one_module_under_two_names():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared})})
    sampler = sample_linears_(model, EVERYTHING)
    assert model["a"] is model["b"]["c"]
    assert sampler.names == ["a"]
    restore_linears_(model)
    assert model["a"] is model["b"]["c"]
    assert type(model["a"]) is nn.Linear


def test_an_optimizer_made_before_trains_on(make_encoder):
    model = make_encoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sample_linears_(model)
    before = copy.deepcopy(model.state_dict())
    step(model)
    optimizer.step()
    assert all((before[name] != p).any() for name, p in model.named_parameters())


@pytest.mark.parametrize("swap", ["sampled", "restored"])
def test_hooks_survive(swap):
    """They fire on the new layer, and the handles that came with them still remove them."""
    model = nn.ModuleDict({"fc": nn.Linear(4, 3)})
    fired = []
    handles = [
        model["fc"].register_forward_pre_hook(lambda *_: fired.append("before")),
        model["fc"].register_forward_hook(lambda *_: fired.append("after")),
        model["fc"].register_full_backward_hook(lambda *_: fired.append("backward")),
    ]
    sample_linears_(model, EVERYTHING)
    if swap == "restored":
        restore_linears_(model)
    x = torch.randn(10, 4, requires_grad=True)
    model["fc"](x).sum().backward()
    assert fired == ["before", "after", "backward"]
    for handle in handles:
        handle.remove()
    model["fc"](x).sum().backward()
    assert len(fired) == 3


def test_deepcopy_has_a_sampler_of_its_own(make_encoder):
    model = make_encoder()
    sampler = sample_linears_(model)
    sampler.start_batch(mask=torch.ones(2, 10))
    step(model)
    other = copy.deepcopy(model)
    samplers = {id(m.sampler): m.sampler for m in other.modules() if isinstance(m, SampledLinear)}
    assert len(samplers) == 1
    assert sampler not in samplers.values()
    x = torch.randn(2, 10, 4)
    sampler.start_batch()
    for one in (model, other):
        step(one, x)  # the same randomness and norms, each its own
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert p is not q
        assert torch.equal(p.grad, q.grad)


def test_a_whole_model_is_saved_and_loaded(make_encoder):
    model = make_encoder()
    sampler = sample_linears_(model, num_samples=4, max_tokens=10)
    sampler.start_batch(sample_ids=torch.arange(2))
    step(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    sampler.start_batch()
    for one in (model, loaded):
        step(one, torch.ones(2, 10, 4).cumsum(1))
    for p, q in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_print_is_a_report(make_encoder):
    model = make_encoder()
    sample_linears_(model, SamplingConfig(budget=0.1))
    assert "out_features=4, bias=True, estimator=wtacrs, budget=0.1" in repr(model)


def test_a_layer_frozen_after_the_swap_saves_nothing(make_encoder):
    """And says so: adapters that are added after sampling freeze all that was sampled."""
    model = make_encoder()
    sample_linears_(model)
    model.requires_grad_(False)
    with SavedBytes(model) as saved, pytest.warns(UserWarning, match=r"4 sampled .*get_peft_model"):
        model(torch.ones(2, 10, 4))
    assert saved.bytes == 0
