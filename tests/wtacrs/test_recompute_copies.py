"""Copies and files of a recomputed model, its way back, and how long it lives."""

import copy
import gc
import io
import pickle
import types
import weakref

import pytest
import torch

from tests.saved import SavedBytes
from tests.wtacrs.tiny import assert_same_step, models, step, tiny_bert
from wtacrs.recompute import recompute_, restore_forward_

parts = pytest.mark.parametrize("what", ["attention", "block"])


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


copies = pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_a_file],
    ids=["deepcopy", "pickle", "torch.save"],
)


@copies
@parts
@models
def test_a_copy_recomputes_with_its_own_modules(make, what, copied):
    """It makes the same step, with parameters that are not the model's, which may be gone."""
    model = make()
    names = recompute_(model, what)
    expected = step(model)
    mine = copied(model)
    assert [n for n, m in mine.named_modules() if "forward" in vars(m)] == names
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    del model
    gc.collect()
    assert_same_step(step(mine), expected, 0)
    restore_forward_(mine)
    assert not any("forward" in vars(module) for module in mine.modules())
    assert_same_step(step(mine), expected, 1e-6)


def test_a_copy_keeps_no_more_than_the_model(make_encoder):
    """So it recomputes as well; one that was restored does not."""
    model, x = make_encoder(blocks=2), torch.randn(2, 10, 4)

    def saved(one):
        with SavedBytes(one) as counted:
            one(x)
        return counted.bytes

    plain = saved(model)
    recompute_(model, "block")
    mine = through_a_file(model)
    assert saved(mine) == saved(model) == 4 * x.nbytes
    restore_forward_(mine)
    assert saved(mine) == plain > 4 * x.nbytes


def test_a_forward_that_was_there(make_encoder):
    """It is what is recomputed, and comes back as the same object; copies have their own."""
    model, x = make_encoder(blocks=2), torch.randn(2, 10, 4)
    first, second = model.layers
    before = types.MethodType(lambda self, x: 2 * type(self).forward(self, x), first)
    first.forward = before
    expected = model(x)
    recompute_(model, "block")
    assert torch.equal(model(x), expected)
    copied = copy.deepcopy(model)
    restore_forward_(model)
    assert vars(first)["forward"] is before
    assert "forward" not in vars(second)
    assert torch.equal(model(x), expected)
    restore_forward_(copied)
    assert vars(copied.layers[0])["forward"].__self__ is copied.layers[0]
    assert torch.equal(copied(x), expected)


def test_a_deleted_model_is_freed_at_once():
    """No cycle that waits for the garbage collector while a device's memory is full."""
    model = tiny_bert()
    recompute_(model, "block")
    block = weakref.ref(model.bert.encoder.layer[0])
    forward = block().forward
    gc.disable()
    try:
        del model
        assert block() is None
    finally:
        gc.enable()
    with pytest.raises(ReferenceError, match="deleted"):
        forward(torch.ones(4, 10, 16))


def test_the_graph_keeps_the_module(make_encoder):
    """A loss may outlive the name of the model it comes from."""
    model = make_encoder()
    recompute_(model, "block")
    weight = model.layers[0].q.weight
    loss = model(torch.randn(2, 10, 4)).sum()
    del model
    gc.collect()
    loss.backward()
    assert weight.grad.abs().max() > 0
