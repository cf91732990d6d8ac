"""Where a second pass ends: at the last layer that keeps something; what follows is kept."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from tests.saved import SavedBytes
from tests.wtacrs.calls import Calls
from tests.wtacrs.tiny import assert_same_step, batch_of, models, sampled, step, tiny_bert, tiny_t5
from wtacrs import SamplingConfig, sample_linears_
from wtacrs.recompute import recompute_

parts = pytest.mark.parametrize("what", ["attention", "block"])
chunked_or_not = pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])


@chunked_or_not
@parts
@models
def test_the_step_is_the_plain_one(make, what, chunked):
    """With dropout, twice, and nothing is left on the layers that the second pass set."""
    expected = step(make())
    model = sampled(make(), what, chunked=chunked)
    for _ in range(2):
        assert_same_step(step(model), expected, 1e-4, 1e-5)
    for module in model.modules():
        for one in (module, module.__dict__.get("forward")):
            assert not getattr(one, "without_product", False)
            assert getattr(one, "when_done", None) is None


@chunked_or_not
@parts
@models
def test_without_early_stop(make, what, chunked):
    """A user's switch: the second pass runs on, and its zeros reach no gradient."""
    expected = step(make())
    model = sampled(make(), what, chunked=chunked)
    with set_checkpoint_early_stop(False):
        assert_same_step(step(model), expected, 1e-4, 1e-5)


@chunked_or_not
@parts
@models
def test_a_graph_that_is_kept(make, what, chunked):
    """It has a second pass for each of its backward passes."""
    expected = step(make())[1]
    model = sampled(make(), what, chunked=chunked)
    torch.manual_seed(5)
    loss = model(**batch_of(model)).loss
    loss.backward(retain_graph=True)
    loss.backward()
    for name, gradient in expected.items():
        found = model.get_parameter(name).grad
        torch.testing.assert_close(found, 2 * gradient, rtol=1e-3, atol=1e-5)


class Products(Calls):
    """Counts floating-point operations, as ``FlopCounterMode`` does, but follows no module."""

    def worth(self, func, args, kwargs, out):
        return self.ops[func.overloadpacket](*args, **kwargs, out_val=out)


def flops_of_backward(model):
    loss = model(**batch_of(model)).loss
    with Products(flop_registry) as products:
        loss.backward()
    return products.count


def flops_of(names, model):
    """Of the forward passes of the parts ``names``."""
    with FlopCounterMode(display=False) as counter:
        model(**batch_of(model))
    counts = counter.get_flop_counts()
    return sum(sum(counts[f"{type(model).__name__}.{name}"].values()) for name in names)


def last_products(model, what):
    """Of two blocks, by the closed form: 2 n d_in d_out for each layer that is the last."""
    config = model.config
    if config.model_type == "t5":  # (4, 10) in the encoder, (4, 7) in the decoder
        rows = 40 + 28 if what == "block" else 40 + 28 + 28
        return 2 * 2 * rows * 16 * (24 if what == "block" else 16)
    return 2 * 2 * 40 * 16 * (24 if what == "block" else 16)


@pytest.mark.parametrize(
    ("what", "chunked"), [("attention", False), ("block", False), ("block", True)]
)
@models
def test_the_last_product_is_not_computed_again(make, what, chunked):
    """The backward pass costs the parts' forward passes more, less that."""
    plain = flops_of_backward(sampled(make(), "none"))
    again = flops_of(recompute_(make(), what), make())
    found = flops_of_backward(sampled(make(), what, chunked=chunked))
    assert found - plain == again - last_products(make(), what)


def test_of_a_chunked_relu_the_budget_of_the_first_product_is_computed_again():
    """And of the attention before it everything."""
    plain = flops_of_backward(sampled(tiny_t5(), "none", budget=0.5))
    found = flops_of_backward(sampled(tiny_t5(), "block", budget=0.5, chunked=True))
    attention = flops_of(recompute_(tiny_t5(), "attention"), tiny_t5())
    assert found - plain == attention + 2 * 2 * (40 + 28) // 2 * 16 * 24


class Odd(nn.Module):
    """A block that calls its layers in an order of its own."""

    def __init__(self, order):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.order = order

    def forward(self, x):
        for name in self.order:
            x = torch.tanh(getattr(self, name)(x)) * x
        return x


@pytest.mark.parametrize("order", ["abc", "cba", "acb", "abccb", "ab", "cabc", ""])
@pytest.mark.parametrize("stops", [True, False], ids=["", "no early stop"])
def test_any_order_of_the_layers(order, stops):
    """The last one in the order of registration may run first, twice, or not at all."""
    torch.manual_seed(0)
    blocks, x = nn.ModuleList([Odd(order), Odd("abc")]), torch.randn(2, 10, 4, requires_grad=True)

    def gradients():
        blocks.zero_grad()
        x.grad = None
        with set_checkpoint_early_stop(stops):
            blocks[1](blocks[0](x)).square().sum().backward()
        return [p.grad for p in (x, *blocks.parameters()) if p.grad is not None]

    expected = gradients()
    sample_linears_(blocks, SamplingConfig(budget=1.0))
    recompute_(blocks, "block")
    for mine, plain in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(mine, plain)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["nested", "reentrant"])
@models
def test_within_checkpointed_blocks(make, use_reentrant):
    expected = step(make())
    model = sampled(make(), "attention")
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()  # which reentrant checkpoints need
    assert_same_step(step(model), expected, 1e-4, 1e-5)


def test_an_error_in_a_pass_leaves_nothing_behind():
    model = sampled(tiny_bert(), "block")
    expected = step(model)
    hidden = torch.randn(4, 10, 15)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            model.bert.encoder.layer[0](hidden)
    assert torch.is_autocast_cache_enabled()
    assert_same_step(step(model), expected, 1e-6)


def test_nothing_ends_before_another_linear_layer(make_encoder):
    """As with adapters on q, k and v: what lies between is not saved in the first pass."""
    x, saved = torch.randn(2, 10, 4, requires_grad=True), []
    for include in (["*.q"], None):
        model = make_encoder(2)
        if include is not None:
            sample_linears_(model, SamplingConfig(budget=0.5, include=include))
        recompute_(model, "block")
        with SavedBytes(model) as bytes_saved:
            model(x)
        saved.append(bytes_saved.bytes)
    assert saved[0] == saved[1]
