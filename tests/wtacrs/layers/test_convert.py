"""The swap of norms, dropouts and activations in real models, and back."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.saved import SavedBytes
from tests.wtacrs.tiny import (
    MODELS,
    assert_same_step,
    batch_of,
    fake_batch_of,
    step,
    tiny_bert,
    tiny_t5,
)
from wtacrs.layers import restore_layers_, rounding_of, save_less_

models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
gelus = pytest.mark.parametrize("gelu", ["exact", "rounded"])
CLASSES = {
    "bert": {"LosslessLayerNorm": 5, "LosslessDropout": 8},
    "t5": {
        "LosslessNorm": 12,
        "LosslessDropout": 12,
        "LosslessReLUDropout": 4,
        "DoneDropout": 4,
    },
}


def classes(model):
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_turned(name):
    """Each layer by its name, and no other."""
    model = MODELS[name]()
    before = dict(zip([n for n, _ in model.named_modules()], classes(model), strict=True))
    turned = save_less_(model)
    counts = {new: [*turned.values()].count(new) for new in turned.values()}
    assert counts == CLASSES[name]
    for layer, module in model.named_modules():
        assert type(module).__name__ == turned.get(layer, before[layer].__name__)


@models
@pytest.mark.parametrize(
    "kinds", [("norm",), ("dropout",), ("norm", "dropout", "relu")], ids=" ".join
)
def test_exact_layers_are_exact(make, kinds):
    """The loss bit for bit, so the same draws; gradients to rounding."""
    model = make()
    expected = step(model)
    save_less_(model, kinds)
    assert_same_step(step(model), expected, 1e-5)


@models
def test_under_autocast(make):
    """Where norms end in bf16, the gradients start from 8 bits."""
    model = make()
    expected = step(model, autocast=True)[0]
    save_less_(model)
    loss, gradients, _ = step(model, autocast=True)
    assert (loss - expected).abs() <= 0.02 * expected
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@models
@gelus
def test_parameters_and_tying_stay(make, gelu):
    model = make()
    keys, parameters = [*model.state_dict()], [*model.parameters()]
    modules = [*model.modules()]
    save_less_(model, gelu=gelu)
    assert [*model.state_dict()] == keys
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert all(m is n for m, n in zip(model.modules(), modules, strict=True))
    model.load_state_dict(make().state_dict())
    if make is tiny_t5:
        assert model.encoder.embed_tokens.weight is model.shared.weight


@models
@gelus
def test_restoring_gives_the_model_back(make, gelu):
    model = make()
    types, attributes = classes(model), [sorted(m.__dict__) for m in model.modules()]
    expected = step(model)
    save_less_(model, gelu=gelu)
    step(model)
    restore_layers_(model)
    assert classes(model) == types
    assert [sorted(m.__dict__) for m in model.modules()] == attributes
    assert_same_step(step(model), expected, 0)
    restore_layers_(model)  # nothing to do


@models
def test_a_second_call_changes_nothing(make):
    """Whether it raises, as nothing is left to turn, or not."""
    model = make()
    save_less_(model)
    types, expected = classes(model), step(model)
    try:
        turned = save_less_(model)
    except ValueError:
        turned = {}
    assert not turned
    assert classes(model) == types
    assert_same_step(step(model), expected, 0)
    model.eval()
    with torch.no_grad():
        assert model(**batch_of(model)).loss.isfinite()


def test_kinds_one_after_the_other():
    model = tiny_t5()
    expected = step(model)
    for kind in ("relu", "norm", "dropout"):
        assert save_less_(model, [kind])
    assert_same_step(step(model), expected, 1e-5)


@models
def test_it_saves(make):
    """Bytes of a whole step: of norms, dropouts and ReLUs less than half is left."""
    saved = {}
    for turn in (False, True):
        model = make()
        if turn:
            save_less_(model)
        with SavedBytes(model) as counted:
            model(**batch_of(model))
        saved[turn] = counted.bytes
    assert saved[True] < 0.8 * saved[False]


@models
def test_without_training_it_is_the_plain_model(make):
    model = make().eval()
    with torch.no_grad():
        expected = model(**batch_of(model)).logits
        save_less_(model, gelu="rounded" if make is tiny_bert else "exact")
        assert torch.equal(model(**batch_of(model)).logits, expected)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def torch_saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@models
@gelus
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, torch_saved])
def test_copies(make, gelu, duplicate):
    """After a step, so that generators exist; the copy computes the same and is of its own."""
    model = make()
    save_less_(model, gelu=gelu)
    step(model)
    copied = duplicate(model)
    assert_same_step(step(copied), step(model), 0)
    inner = {id(m) for m in copied.modules()}
    for module in copied.modules():
        assert id(getattr(module, "dropout_after", (module,))[0]) in inner
    if gelu == "rounded" and make is tiny_bert:
        assert rounding_of(copied) is not rounding_of(model)
        assert len({id(m.rounding) for m in copied.modules() if hasattr(m, "rounding")}) == 1
    restore_layers_(copied)
    assert classes(copied) == classes(make())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"kinds": ["norm", "nrom"]}, ["nrom", "norm, dropout, relu, gate"]),
        ({"gelu": "8bit"}, ["8bit", "exact", "rounded"]),
        ({"kinds": ["relu"]}, ["looked for (relu)", "ModuleList", "Linear"]),
        ({"kinds": ["relu"], "gelu": "rounded"}, ["looked for (relu, gelu)", "Linear"]),
    ],
)
def test_bad_input(arguments, parts):
    model = nn.ModuleList([nn.Linear(2, 2), nn.LayerNorm(2)])
    with pytest.raises(ValueError) as error:  # noqa: PT011
        save_less_(model, **arguments)
    assert all(part in str(error.value) for part in parts)
    assert type(model[1]) is nn.LayerNorm


def test_in_place_layers_stay_plain():
    """They write over what the layer before keeps."""
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(inplace=True), nn.LayerNorm(2))
    assert [*save_less_(model)] == ["2"]


@models
def test_on_fake_tensors(make):
    with FakeTensorMode() as mode:
        model = make()
        turned = save_less_(model, gelu="rounded" if make is tiny_bert else "exact")
        step(model, fake_batch_of(model, mode))
    assert {"LosslessLayerNorm", "LosslessNorm"} & {*turned.values()}
