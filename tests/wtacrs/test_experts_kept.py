"""What sampled experts keep, and which products they compute again."""

import pytest
import torch

from tests.saved import SavedBytes
from tests.wtacrs import zoo
from tests.wtacrs.calls import Calls
from tests.wtacrs.experts import BUDGET, MIXTURES, sampled, step
from wtacrs import MemoryConfig, SamplingConfig, apply_


@pytest.mark.parametrize("name", MIXTURES)
def test_the_second_product_is_not_computed_again(name):
    """Its value no gradient needs, unless shared experts come after it."""
    model, given = zoo.make(name), zoo.batch(name)
    expected = step(model, given)[1]
    handle = sampled(model, "leanest", include=["*.experts.*"])
    with Calls([torch.ops.wtacrs.grouped_product]) as products:
        found = step(model, given)[1]
    for key in expected.keys() - {*handle.sampler.experts}:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-6)
    # Of a layer: two products, their two gradients each; and again the first one.
    again = 2 if name in ("deepseek_v3", "qwen2_moe") else 1
    assert products.count == (2 + 4 + again) * len(handle.sampler.experts) / 2


def test_what_experts_keep():
    """Of rows (s, .) the gate's and the up projection's output, the sampled rows and the router's
    weight; no activation, and no output of the second product."""
    model = zoo.make("mixtral")
    sampled(model, include=["*.experts.*"])
    experts, generator = model.model.layers[0].mlp.experts, torch.Generator().manual_seed(0)
    x = torch.randn(60, 16, generator=generator, requires_grad=True)
    index = torch.rand(60, 4, generator=generator).topk(2).indices
    weights = torch.rand(60, 2, generator=generator, requires_grad=True)
    with SavedBytes(model) as saved:
        experts(x, index, weights)
    s, k, w = 120, 36, 32
    picked = k * (16 + w) * 4 + 2 * k * (8 + 4) + 2 * 4 * 4  # rows, their places, where they end
    places = 2 * s * 8 + s * 8 + 4 * 4  # token and order, expert, where they end
    assert saved.bytes == pytest.approx(s * 2 * w * 4 + s * 4 + picked + places, abs=s * 8)


def test_picked_late_where_the_tokens_are_there():
    """Under recomputation both products; else the first one, of tokens that a norm keeps or that
    are no more than the rows that it would keep."""
    given, names = zoo.batch("mixtral"), ("gate_up_proj", "down_proj")
    config = SamplingConfig("wtacrs", budget=BUDGET)
    many = SamplingConfig("wtacrs", budget=0.5)  # of twice as many rows as tokens
    for memory, late in (
        (MemoryConfig(sampling=config), ()),
        (MemoryConfig(sampling=many), names[:1]),
        (MemoryConfig(sampling=config, lossless=("norm",)), names[:1]),
        (MemoryConfig(sampling=config, recompute="block"), names),
    ):
        model = zoo.make("mixtral")
        sampler = apply_(model, memory).sampler
        step(model, given)
        found = {name.rpartition(".")[2] for name in sampler.late if "experts" in name}
        assert found == {*late}


def test_a_plan_says_that_the_experts_keep_less():
    """On fake tensors, whose sizes alone are known, in any dtype that the plain ones take."""
    model, given = zoo.make("qwen3_moe"), zoo.batch("qwen3_moe")
    model.set_experts_implementation("batched_mm")  # torch plans its grouped product in bfloat16
    handle = sampled(model)
    with_experts = handle.report(given).now.saved_bytes
    handle.undo()
    without = sampled(model, include=["*.o_proj"]).report(given).now.saved_bytes
    assert with_experts < without


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_report_of_a_step(dtype):
    """On fake tensors, on which torch's grouped product takes bfloat16 alone."""
    model, given = zoo.make("mixtral").to(dtype), zoo.batch("mixtral")
    text = str(sampled(model).report(given))
    assert "sampled experts" in text
    assert "peak bytes" in text
