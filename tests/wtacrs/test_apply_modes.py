"""Models of which a part is in another mode than the rest."""

import pytest
from torch import nn

from tests.wtacrs.tiny import assert_same_step, step, tiny_t5
from wtacrs import apply_

exact = pytest.mark.parametrize("preset", ["lean", "leanest"])


@exact
def test_dropout_switched_off_by_its_modules(preset):
    """The usual way to train without dropout; also where a ReLU does a dropout's work."""
    model, plain = tiny_t5(0.1), tiny_t5(0.1)
    apply_(model, preset, budget=1.0)
    for one in (model, plain):
        for module in one.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
    plain.set_attn_implementation("eager")
    assert_same_step(step(model), step(plain), 1e-5)


@exact
def test_an_activation_in_eval_mode(preset):
    model, plain = tiny_t5(0.1), tiny_t5(0.1)
    apply_(model, preset, budget=1.0)
    for one in (model, plain):
        for module in one.modules():
            if isinstance(module, nn.ReLU):
                module.eval()
    assert_same_step(step(model), step(plain), 1e-5)
