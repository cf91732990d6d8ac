"""Experts of mixtures: which are sampled, what stays exact, and the way back.

The oracle is transformers' own forward of the experts.
"""

import copy

import pytest
import torch

from tests.wtacrs import zoo
from tests.wtacrs.experts import BUDGET, MIXTURES, sampled, step
from wtacrs import MemoryConfig, SamplingConfig, apply_
from wtacrs.layers import feed_forward


@pytest.fixture(autouse=True)
def quiet():
    zoo.quiet()


@pytest.fixture
def small_parts(monkeypatch):
    """Gates are computed again a row or two at a time."""
    monkeypatch.setattr(feed_forward, "PART_BYTES", 256)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("recompute", ["none", "block"])
@pytest.mark.parametrize("name", MIXTURES)
def test_all_but_the_sampled_gradients_are_exact(name, recompute):
    model, given = zoo.make(name), zoo.batch(name)
    expected_loss, expected = step(model, given)
    include = ["*.experts.*", "*.o_proj"]
    sampling = SamplingConfig("wtacrs", budget=BUDGET, include=include)
    handle = apply_(model, MemoryConfig(sampling=sampling, recompute=recompute))
    loss, found = step(model, given)
    estimated = {*handle.sampler.experts} | {f"{n}.weight" for n in handle.sampler.names}
    assert len(handle.sampler.experts) == 2 * (1 if name == "deepseek_v3" else 2)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        off = (found[key] - gradient).norm() / gradient.norm()
        assert (off > 0.01) if key in estimated else (off < 1e-5), key


@pytest.mark.parametrize("name", MIXTURES)
def test_undone(name):
    model, given = zoo.make(name), zoo.batch(name)
    expected = step(model, given)
    handle = sampled(model)
    assert any("forward" in vars(module) for module in model.modules())
    step(model, given)
    handle.undo()
    assert not any("forward" in vars(module) for module in model.modules())
    found = step(model, given)
    assert all(torch.equal(found[1][key], gradient) for key, gradient in expected[1].items())


def test_names_reasons_and_share():
    model = zoo.make("mixtral")
    model.model.layers[0].mlp.experts.down_proj.requires_grad_(False)
    handle = sampled(model, exclude=["*.1.mlp.experts.gate_up_proj"])
    sampler, at = handle.sampler, "model.layers.{}.mlp.experts.{}"
    assert sampler.experts == [at.format(0, "gate_up_proj"), at.format(1, "down_proj")]
    assert handle.swapped["sampled experts"] == sampler.experts
    assert sampler.skipped[at.format(0, "down_proj")] == "frozen: it saves nothing"
    assert sampler.skipped[at.format(1, "gate_up_proj")] == "excluded"
    assert not {*sampler.experts} & sampler.skipped.keys()
    weights = sum(model.get_parameter(name).numel() for name in sampler.experts)
    weights += sum(layer.self_attn.o_proj.weight.numel() for layer in model.model.layers)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert handle.report().sampled_share == pytest.approx(weights / trained)
    assert "sampled experts" in str(handle.report())


def test_a_model_of_experts_alone():
    """No linear layer matches, and none is needed: it trains, resumes and is undone."""
    model, given = zoo.make("mixtral"), zoo.batch("mixtral")
    _, expected = step(model, given)
    handle = sampled(model, "leanest", include=["*.experts.*"])
    assert handle.sampler.names == []
    assert "sampled linear layers" not in handle.swapped
    _, found = step(model, given)
    assert {*handle.sampler.late} == {*handle.sampler.experts}
    for key, gradient in expected.items():
        off = (found[key] - gradient).norm() / gradient.norm()
        assert (off > 0.01) if key in handle.sampler.experts else (off < 1e-5), key
    handle.load_state_dict(handle.state_dict())
    handle.undo()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    with pytest.raises(ValueError, match="no linear layer matches"):
        sampled(model, include=["*.nothing.*"])
    assert not model._forward_hooks


def test_what_is_not_chosen_is_exact():
    """One of the two products alone, and one that is frozen."""
    model, given = zoo.make("mixtral"), zoo.batch("mixtral")
    frozen = model.model.layers[0].mlp.experts.down_proj.requires_grad_(False)
    _, expected = step(model, given)
    sampled(model, exclude=["*.1.mlp.experts.gate_up_proj"])
    _, found = step(model, given)
    assert frozen.grad is None
    exact = "model.layers.1.mlp.experts.gate_up_proj"
    torch.testing.assert_close(found[exact], expected[exact], rtol=1e-4, atol=1e-7)


def test_by_default_all_that_train_in_a_block():
    handle = apply_(zoo.make("olmoe"), "linear")
    assert len(handle.sampler.experts) == 4
    for own in ("gate_up_proj", "down_proj"):
        model = zoo.make("olmoe")
        for module in model.modules():
            if hasattr(module, own):
                getattr(module, own).requires_grad_(False)
        left = apply_(model, "linear").sampler
        assert len(left.experts) == 2
        assert all(own not in name for name in left.experts)


def test_experts_that_hold_no_plain_parameters_are_left():
    model = zoo.make("mixtral")
    experts = model.model.layers[0].mlp.experts
    torch.nn.utils.parametrize.register_parametrization(experts, "down_proj", torch.nn.Identity())
    sampler = sampled(model).sampler
    assert len(sampler.experts) == 2
    reason = sampler.skipped["model.layers.0.mlp.experts.gate_up_proj"]
    assert reason.startswith("experts whose weights are no plain 3-D parameters")


def test_a_copy_trains_as_the_model_does():
    model, given = zoo.make("gpt_oss"), zoo.batch("gpt_oss")
    handle = sampled(model)
    other = copy.deepcopy(model)
    found, expected = step(other, given)[1], step(model, given)[1]
    assert all(torch.equal(found[key], gradient) for key, gradient in expected.items())
    experts = other.model.layers[0].mlp.experts
    assert experts.forward.module is experts
    assert experts.forward.sampler is not handle.sampler


def test_a_resumed_run_draws_the_same():
    model, given = zoo.make("mixtral"), zoo.batch("mixtral")
    handle = sampled(model)
    step(model, given)
    state = copy.deepcopy(handle.state_dict())
    expected = step(model, given)[1]
    assert not torch.equal(
        step(model, given)[1][handle.sampler.experts[0]], expected[handle.sampler.experts[0]]
    )
    handle.load_state_dict(state)
    found = step(model, given)[1]
    assert all(torch.equal(found[key], gradient) for key, gradient in expected.items())


@pytest.mark.parametrize("preset", ["linear", "leanest"])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_the_gradients_of_the_experts_are_unbiased(name, preset):
    """z of the mean of 100 gradients along one random direction, over all experts; false alarms:
    |z| > 4.5, 7 in a million each."""
    model, given = zoo.make(name), zoo.batch(name)
    _, expected = step(model, given)
    names = sampled(model, preset).sampler.experts
    generator = torch.Generator().manual_seed(3)
    ways = {
        key: torch.randn(expected[key].shape, generator=generator) / expected[key].norm()
        for key in names
    }
    aim = sum((expected[key] * way).sum() for key, way in ways.items())
    found = []
    for _ in range(100):
        gradients = step(model, given)[1]
        found.append(sum((gradients[key] * way).sum() for key, way in ways.items()))
    values = torch.stack(found).double()
    assert values.std() > 0
    assert abs((values.mean() - aim) / (values.std() / len(values) ** 0.5)) < 4.5


@pytest.mark.parametrize("name", MIXTURES)
def test_evaluation_and_generation_are_bit_for_bit(name):
    """At a budget below 1, with gradients enabled too; so is a training call without gradients."""
    model, given = zoo.make(name), zoo.batch(name)

    def outputs():
        found = []
        for trains, enabled in ((False, False), (False, True), (True, False)):
            with torch.set_grad_enabled(enabled):
                found.append(model.train(trains)(**given).logits.detach())
        how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "use_cache": True}
        return [*found, model.eval().generate(input_ids=given["input_ids"], **how)]

    expected = outputs()
    handle = sampled(model)
    assert all(map(torch.equal, outputs(), expected))
    assert handle.sampler.rows_seen == 0  # equal bits may be luck
    step(model.train(), given)
    assert handle.sampler.rows_seen > 0
