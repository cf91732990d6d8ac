"""Second derivatives are refused, not zero; and a replica of nn.DataParallel is refused."""

import pytest
import torch
from torch import nn

from tests.wtacrs.tiny import batch_of, tiny_bert
from wtacrs import SamplingConfig, sample_linears_
from wtacrs.attention.interface import set_attention
from wtacrs.layers import save_less_

REFUSED = "second derivatives do not pass"


def sampled(model):
    sample_linears_(model, SamplingConfig(budget=0.5))


SWAPS = {
    "linears": sampled,
    "norms": lambda model: save_less_(model, kinds=("norm",)),
    "dropouts": lambda model: save_less_(model, kinds=("dropout",)),
    "rounded gelu": lambda model: save_less_(model, kinds=(), gelu="rounded"),
    "attention": lambda model: set_attention(model, "recompute"),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_create_graph_is_refused(swap):
    """Also where the loss is a sum, and no incoming gradient needs a gradient."""
    model = tiny_bert()
    SWAPS[swap](model)
    weight = model.bert.encoder.layer[0].output.dense.weight
    with pytest.raises(RuntimeError, match=REFUSED):
        torch.autograd.grad(model(**batch_of(model)).logits.sum(), weight, create_graph=True)
    torch.autograd.grad(model(**batch_of(model)).logits.sum(), weight)  # the first order passes


def test_a_hessian_is_refused(make_encoder):
    model = make_encoder()
    sampled(model)
    with pytest.raises(RuntimeError, match=REFUSED):
        torch.autograd.functional.hessian(lambda x: model(x).sum(), torch.randn(2, 10, 4))


def test_replicas_of_data_parallel_are_refused(make_encoder):
    """torch marks them; they would share a sampler between threads. In eval mode they may run."""
    model = make_encoder()
    sampled(model)
    for module in model.modules():
        module._is_replica = True
    x = torch.randn(2, 10, 4)
    with pytest.raises(RuntimeError, match=r"DataParallel.*DistributedDataParallel"):
        model(x)
    assert model.eval()(x).shape == (2, 10, 2)


def test_adapters_added_after_sampling_are_told():
    peft = pytest.importorskip("peft")
    model = tiny_bert()
    sampled(model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"]))
    with pytest.warns(UserWarning, match=r"none of the 12 sampled layers.*get_peft_model"):
        wrapped(**batch_of(model))


def test_a_layer_in_float16_whose_scale_overflows():
    """dY of 2,000 at a scale of 40 is beyond float16; dW is not."""
    layer = nn.ModuleDict({"fc": nn.Linear(4, 3).half()})
    sampler = sample_linears_(layer, SamplingConfig("uniform", budget=0.025, include=["*"]))
    x = torch.full((4, 10, 4), 2**-9).half()
    sampler.start_batch()
    layer["fc"](x).backward(torch.full((4, 10, 3), 2000.0).half())
    exact = 40 * 2000.0 * 2**-9
    torch.testing.assert_close(layer["fc"].weight.grad.float(), torch.full((3, 4), exact))
